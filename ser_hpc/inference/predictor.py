"""Predict recordings with a trained model: `ser_hpc.load(MODEL).predict(recordings)`.

Clips of like length share a packed batch, as in training's evaluation, so a clip's probabilities do not depend on what else is
predicted. While the model computes, the next clips are decoded; memory holds a few batches, however long a recording is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ser_hpc.core.errors import UserError
from ser_hpc.data.prefetch import Crop
from ser_hpc.data.sampler import BatchSpec, split_micro_batches
from ser_hpc.inference import recordings
from ser_hpc.inference.ensemble import Ensemble
from ser_hpc.inference.pauses import Pauses
from ser_hpc.inference.recordings import Recording
from ser_hpc.inference.results import ClipPrediction, Failure
from ser_hpc.inference.spec import ModelSpec
from ser_hpc.inference.windows import Clip, Cutter, Windows, cut
from ser_hpc.models.packed import to_device
from ser_hpc.shards import RATE
from ser_hpc.tasks.targets import OverClasses, Target, softmax

BATCH_SECONDS = {"cpu": 20.0, "cuda": 320.0}
"""Seconds of sound in a batch, by kind of device; more is hardly faster, and takes more memory."""
_POOL = 4  # batches whose clips are sorted by length together
_MOST_CLIPS = 4096  # of them, however short
_STRANGE = 50.0  # standard deviations; of n clips that a probe is fitted to none is farther than the root of n from their mean


@dataclass(frozen=True, slots=True)
class _Found:
    """Clips read together, in order, and failures with the number of clips before them."""

    clips: list[Clip]
    failures: list[tuple[int, Failure]]


class Predictor:
    """A trained model that predicts. `source`: where it came from, in words; `spec`: what it is."""

    def __init__(
        self, spec: ModelSpec, model: Ensemble, source: str, device: str | None = None, batch_seconds: float | None = None
    ) -> None:
        """Take a model to a device: `cpu`, `cuda` or `cuda:1`; none: a GPU if there is one. Raises UserError."""
        self.spec, self.source = spec, source
        self.device = _device(device)
        self._model = model.to(self.device).eval()
        self._samples = round((batch_seconds or BATCH_SECONDS[self.device.type]) * RATE)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the classes, in the order of their probabilities."""
        return self.spec.classes

    @property
    def most_s(self) -> float | None:
        """Return how many seconds the model hears of a clip (of its beginning or its center: `spec.crop`); None: all."""
        limits = [front.max_seconds for front in self._model.fronts] + [self.spec.max_seconds]
        return min((limit for limit in limits if limit is not None), default=None)

    def predict(
        self,
        audio: Any,
        *,
        window_s: float | None = None,
        hop_s: float | None = None,
        pauses: Pauses | None = None,
        rate: int = RATE,
    ) -> list[ClipPrediction]:
        """Predict recordings, each as one clip; in windows of `window_s` seconds, one every `hop_s` (none: every window_s); or
        cut at `pauses`.

        `audio`: a path, or an array of samples (int16, or floats in [-1, 1], of `rate` Hz), or any number of these. Of one
        recording or several: a prediction for each clip, or window, in order. Raises UserError for what cannot be predicted.
        """
        if pauses is not None and window_s is not None:
            raise UserError("window_s and pauses are two ways of cutting a recording: give one")
        cutter = pauses if window_s is None else Windows(window_s, hop_s or window_s)
        found = []
        for each in self.stream(recordings.of_python(audio, rate), cutter):
            if isinstance(each, Failure):
                raise UserError(str(each))
            found.append(each)
        return found

    def stream(self, given: Iterable[Recording], cutter: Cutter | None = None) -> Iterator[ClipPrediction | Failure]:
        """Predict recordings one after another, of any number and length, in order; a Failure stands where one could not be
        read to its end."""
        if cutter is not None:
            cutter.check(self.most_s)
        for found in _ahead(self._pools(cut(given, cutter, Crop.of_seconds(self.most_s, self.spec.crop)))):
            predictions = self._predict(found.clips)
            failures = iter(found.failures)
            upcoming = next(failures, None)
            for number in range(len(found.clips) + 1):
                while upcoming is not None and upcoming[0] == number:
                    yield upcoming[1]
                    upcoming = next(failures, None)
                if number < len(found.clips):
                    yield predictions[number]

    def _pools(self, clips: Iterable[Clip | tuple[str, str]]) -> Iterator[_Found]:
        """Group clips as they come: a few batches' worth."""
        found, samples = _Found([], []), 0
        for clip in clips:
            if isinstance(clip, Clip):
                found.clips.append(clip)
                samples += len(clip.samples)
            else:
                found.failures.append((len(found.clips), Failure(*clip)))
            if samples >= _POOL * self._samples or len(found.clips) + len(found.failures) >= _MOST_CLIPS:
                yield found
                found, samples = _Found([], []), 0
        if found.clips or found.failures:
            yield found

    def _predict(self, clips: list[Clip]) -> list[ClipPrediction]:
        if not clips:
            return []
        outputs, distances = self._outputs([clip.samples for clip in clips])
        targets = self.spec.targets
        main, *others = targets
        probabilities = softmax(outputs[main])
        return [
            ClipPrediction(
                audio=clip.audio,
                start_s=clip.start_s,
                end_s=clip.end_s,
                label=self.classes[int(probabilities[i].argmax())],
                confidence=float(probabilities[i].max()),
                probabilities=dict(zip(self.classes, probabilities[i].tolist(), strict=True)),
                tasks={name: _written(targets[name], outputs[name][i]) for name in others},
                cut=clip.cut,
                strange=bool(distances[i] > _STRANGE),
            )
            for i, clip in enumerate(clips)
        ]

    def outputs(self, clips: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs of clips, int16 (n,) each at 16 kHz, by task, float32 (clips, width)."""
        return self._outputs(clips)[0]

    @torch.inference_mode()
    def _outputs(self, clips: list[np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Compute outputs, and the distance of each clip from what a probe was fitted to, (clips,)."""
        front, lengths = self._model.fronts[0], np.array([len(clip) for clip in clips])
        cut_by = BatchSpec(1, self._samples, padded=front.padded)
        found = {task: np.zeros((len(clips), target.width), np.float32) for task, target in self.spec.targets.items()}
        distances = np.zeros(len(clips))
        for rows in split_micro_batches(np.arange(len(clips)), front.costs(lengths), cut_by):
            samples = torch.from_numpy(np.concatenate([clips[row] for row in rows]))
            offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths[rows])]))
            outputs, distance = self._model.with_distance(to_device(samples, self.device), offsets)
            distances[rows] = distance.numpy()
            for task, of_task in found.items():
                of_task[rows] = outputs[task].float().cpu().numpy()
        return found, distances


def _written(target: Target, output: np.ndarray) -> Any:
    """Write a task's outputs of a clip: probabilities by class, or numbers by name."""
    if isinstance(target, OverClasses):
        return {name: round(p, 6) for name, p in zip(target.classes, softmax(output).tolist(), strict=True)}
    return target.prediction(output)


def _ahead(pools: Iterator[_Found]) -> Iterator[_Found]:
    """Make the next one while the last one is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as thread:
        coming = thread.submit(next, pools, None)
        while (found := coming.result()) is not None:
            coming = thread.submit(next, pools, None)
            yield found


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in BATCH_SECONDS:
        raise UserError(f"there is no device {name!r}: give cpu, cuda, or cuda:1 and so on")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device {name!r} here: torch finds {torch.cuda.device_count()} GPUs")
    return device
