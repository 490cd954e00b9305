"""Mix channels to mono, measure their level, and choose another way (with a message) where the mean spoils the sound.

out_of_range    float samples far beyond full scale. A few are a fault: limited, since a resampler would spread each over
                hundreds of samples. Many mean that the file holds integers as floats: scaled.
cancelled       channels of opposite phase, the mean of which is silence or hum: the loudest alone is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ser_hpc.shards.containers.contents import BadClipError

_FULL = 32767
_FAR = 8.0  # times full scale, 18 dB: what no recorder's headroom explains
_FEW = 0.01  # share of the samples
_SCALES = {2**15: "16-bit", 2**23: "24-bit", 2**31: "32-bit"}
_CANCELLED = 0.1  # of the loudest channel's energy


@dataclass(slots=True)
class LevelMeter:
    """Counts over the blocks of a recording: `full` samples at full scale or beyond; `far` beyond it, up to `peak` times.

    `beyond`: samples larger than integers of each size would be; `energy`: of each channel and then of their mean, without
    offsets.
    """

    samples: int = 0
    full: int = 0
    far: int = 0
    peak: float = 0.0
    beyond: dict[int, int] = field(default_factory=lambda: dict.fromkeys(_SCALES, 0))
    energy: np.ndarray = field(default_factory=lambda: np.zeros(1))

    @property
    def clipped(self) -> float:
        """Share of the samples at full scale or beyond."""
        return self.full / self.samples

    def hear_far(self, block: np.ndarray, peak: float) -> None:
        """Count the samples of a block that are far beyond full scale; `peak` is its largest magnitude."""
        self.peak = max(self.peak, peak)
        magnitude = np.abs(block)
        self.far += int(np.count_nonzero(magnitude > _FAR))
        for scale in _SCALES:
            self.beyond[scale] += int(np.count_nonzero(magnitude > scale))


@dataclass(frozen=True, slots=True)
class Downmix:
    """A way to mix: `scale` divides float samples, those that are `_FAR` beyond full scale then are limited if `limits`;
    `channel` alone is taken, None: the mean of all. `out_of_range`, `cancelled`: the reasons, as messages."""

    scale: int = 1
    limits: bool = False
    channel: int | None = None
    out_of_range: str = ""
    cancelled: str = ""

    def mono(self, block: np.ndarray, volume: LevelMeter) -> np.ndarray:
        """Mix (frames, channels) of int16, or float32 of full scale 1, to (frames,) of full scale 32768; `volume` measures it.

        The block may be changed. Raises BadClipError for NaN, infinity and values of no known scale.
        """
        if block.dtype != np.int16:
            block = self._in_range(block, volume)
        volume.samples += block.size
        if block.max() >= _FULL or block.min() <= -_FULL:  # rarely
            volume.full += int(np.count_nonzero(block >= _FULL) + np.count_nonzero(block <= -_FULL))
        if block.shape[1] == 1:
            return block[:, 0]
        channels = [np.ascontiguousarray(channel, np.float32) for channel in block.T]
        # Of two, the very numbers of numpy's mean in a fifth of its time.
        mean = (channels[0] + channels[1]) * np.float32(0.5) if len(channels) == 2 else block.mean(axis=1, dtype=np.float32)
        volume.energy = volume.energy + [float(np.var(signal)) * len(signal) for signal in (*channels, mean)]
        return mean if self.channel is None else channels[self.channel]

    def better(self, volume: LevelMeter) -> Downmix:
        """Return the right way to mix what `volume` measured; itself, if that is right. Raises BadClipError if none is."""
        if volume.far and not self.limits:
            return self._limited(volume)
        *channels, mean = volume.energy.tolist()
        if self.channel is None and channels and mean < _CANCELLED * max(channels):
            loudest = channels.index(max(channels))
            share = f"{mean / channels[loudest]:.1%} of the energy of channel {loudest + 1}"
            message = f"the mean of its {len(channels)} channels has {share}, which alone is taken"
            return replace(self, channel=loudest, cancelled=message)
        return self

    def _in_range(self, block: np.ndarray, volume: LevelMeter) -> np.ndarray:
        peak = float(max(block.max(), -block.min()))
        if not np.isfinite(peak):
            raise BadClipError("holds NaN or infinite samples")
        if peak > _FAR and not self.limits:
            volume.hear_far(block, peak)
            block = np.clip(block, -_FAR, _FAR)  # of no further use: it will be mixed again
        if self.limits:
            block = block / np.float32(self.scale)
            block = np.where(np.abs(block) > _FAR, np.sign(block), block)
        block *= np.float32(32768)
        return block

    def _limited(self, volume: LevelMeter) -> Downmix:
        if volume.far <= _FEW * volume.samples:
            number = f"{volume.far:,} of {volume.samples:,} float samples"
            message = f"{number} are far out of [-1, 1] (up to {volume.peak:.3g}): limited"
            return replace(self, limits=True, out_of_range=message)
        for scale, name in _SCALES.items():
            if volume.beyond[scale] <= _FEW * volume.samples:
                message = f"float samples out of [-1, 1] (up to {volume.peak:.3g}): read as {name} integers"
                return replace(self, scale=scale, limits=True, out_of_range=message)
        raise BadClipError(f"holds float samples up to {volume.peak:.3g}: nothing in it is in [-1, 1], or of an integer's size")


AS_IT_IS = Downmix()
