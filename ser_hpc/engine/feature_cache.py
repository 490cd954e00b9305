"""Run a frozen encoder once, for it makes the same of a clip in every epoch, fold and seed, and keep what the head needs.

That is the mean of each clip's frames, its *state*: pooling commutes with the head's linear projection, exactly. For a
probe it is those of several layers, and their deviations if it asks for them, in float32, as float16 overflows.

    RUNS/features/<12 hex>/00017.npy    a block of clips; RUNS is run.root
    RUNS/features/<12 hex>/about.json   what the folder's name is a hash of: weights, preprocessing, clips, code

All trials of all runs beside each other share them. Every rank of every trial goes through the blocks in an order of its own,
reads those that are there and computes the others; of several that compute one, the first to put its file in place wins, so
all read the same bits. Nobody waits for a lock, and what was done before a kill stays done. Nothing here is deleted by itself,
and anything may be: a trial that misses a block makes it anew, and a finished one needs none.

A block with a damaged clip is put nowhere: each start looks at the clip again, and may find it packed anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ser_hpc
from ser_hpc.config.mixup import MixupSettings
from ser_hpc.config.settings import Settings, TrainSettings
from ser_hpc.core.atomic_io import json_digest, write_json_once, write_once
from ser_hpc.core.awake_clock import awake_s
from ser_hpc.core.versions import versions
from ser_hpc.data.batches import Batch, BatchSource, collate
from ser_hpc.data.mixup import Mixer
from ser_hpc.data.sampler import BatchSpec, MicroBatch, epoch_order, evaluation_micro_batches, mix_seed
from ser_hpc.engine import gpu
from ser_hpc.engine.distributed.ddp import autocast
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.fault.preemption import StopFlag, Stopped
from ser_hpc.engine.fault.watchdog import Watchdog
from ser_hpc.engine.frozen_encoder import LoadedEncoder, PooledFeatures
from ser_hpc.engine.frozen_params import FrozenParameters
from ser_hpc.engine.memory.search import CPU_SECONDS
from ser_hpc.engine.progress import write_encoding
from ser_hpc.engine.trial_data import TrialData, lengths, shard_order
from ser_hpc.models.classifier import Classifier, frames_of_layers
from ser_hpc.models.heads.linear_probe import LinearProbe, pool_states
from ser_hpc.models.layer_sum import normalise
from ser_hpc.models.packed import to_device
from ser_hpc.run.run_dir import TrialDir
from ser_hpc.run.start_marks import mark_progress
from ser_hpc.shards import RATE
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import CorruptionCause, corruption_error
from ser_hpc.tasks.task import ClipTargets

_FEWEST_CLIPS, _MOST_BLOCKS = 64, 512  # of a block; of a run


class FeatureSource(AbstractContextManager[Any]):
    """A source of batches as `BatchSource`, with states in place of sounds; `targets`: of the whole index; `mixup`: of clips
    that have partners."""

    def __init__(
        self, states: PooledFeatures, index: ShardIndex, targets: ClipTargets, mixup: MixupSettings | None = None
    ) -> None:
        self._states, self._index, self._targets = states, index, targets
        self._mix = Mixer(mixup) if mixup else None

    def prefetch(self, micros: Iterable[MicroBatch], *, training: bool = False) -> Iterator[Batch]:
        """Make batches. A damaged clip has weight zero in training; else it raises CorruptClipError."""
        for micro in micros:
            rows = np.searchsorted(self._states.positions, micro.clips.positions)
            causes = self._states.causes[rows]
            for i in () if training else np.flatnonzero(causes):
                raise corruption_error(self._index, int(micro.clips.positions[i]), CorruptionCause(causes[i]))
            offsets, means, of_partners = np.arange(len(rows) + 1), self._states.means[rows], np.zeros_like(causes)
            if micro.clips.partners is not None and micro.clips.shares is not None and self._mix is not None:
                partners = np.searchsorted(self._states.positions, micro.clips.partners.positions)
                of_partners = self._states.causes[partners]
                theirs = np.where(of_partners[:, None], np.float32(0), self._states.means[partners])
                means = np.stack(list(map(self._mix, means, theirs, micro.clips.shares.tolist())))
            yield collate(micro, means, offsets, causes, self._targets, of_partners)

    def measure_throughput(self, micros: Sequence[MicroBatch], limit_s: float) -> None:
        """Measure nothing: there is no audio."""

    def __exit__(self, *_: object) -> None:
        pass


def pool_features(
    encoder: LoadedEncoder,
    clips: BatchSource,
    trial: TrialDir,
    settings: Settings,
    data: TrialData,
    world: World,
    stop: StopFlag,
    watchdog: Watchdog,
) -> PooledFeatures:
    """Return the states of the trial's clips, as the model's head takes them; those not there yet `encoder` makes of `clips`,
    then closed.

    Raises Stopped on all ranks when one is asked to stop, UserError for a shard that cannot be read.
    """
    began, model = awake_s(), encoder.model
    width = _Statistics.of(model).width
    used = np.flatnonzero(data.targets >= 0)  # by all trials alike, so that their blocks are the same
    if encoder.states is None:
        encoder.states = PooledFeatures(used, np.zeros((len(used), width), np.float32), np.zeros(len(used), np.int64))
    states = encoder.states
    size = max(_FEWEST_CLIPS, -(-len(used) // _MOST_BLOCKS))
    about = _describe(model, encoder.base, settings, data.index, used, size)
    folder = trial.feature_cache / json_digest(about)[:12]
    folder.mkdir(parents=True, exist_ok=True)
    write_json_once(folder / "about.json", about)
    costs = model.frontend.costs(lengths(settings, data)[used])
    budget = settings.train.budget_seconds or CPU_SECONDS  # without gradients it is small for any GPU
    cut = BatchSpec(1, round(budget * RATE), padded=model.frontend.padded)  # alike, whoever computes
    numbers = np.unique(np.searchsorted(used, data.fold.positions) // size)
    numbers = numbers[
        epoch_order(mix_seed(trial.trial.seed, trial.trial.fold, world.rank), 0, len(numbers))
    ]  # an order of its own
    made, order = 0, shard_order(settings, data)
    with clips:
        todo = [number for number in numbers.tolist() if number not in encoder.blocks]
        for turn, number in enumerate(todo):
            path, rows = folder / f"{number:05d}.npy", slice(number * size, (number + 1) * size)
            means, causes = states.means[rows], states.causes[rows]
            causes[:] = 0  # what an earlier trial of this process could not read, another may have by now
            if not _read(path, means):
                if world.is_main:
                    write_encoding(trial.current, turn, len(todo))
                micros = evaluation_micro_batches(used[rows], costs[rows], cut, rank=0, order=order)
                batches = clips.prefetch(micros, training=True)
                if not _encoded(model, batches, settings.train, world.device, stop, watchdog, means, causes):
                    break
                made += 1
                if not causes.any():
                    mark_progress() if _put(path, means) else _read(path, means)
            if not causes.any():
                encoder.blocks.add(number)
            watchdog.beat()
    model.cpu()
    gpu.release_cached_memory(world.device)  # small trials may share the GPU

    # A rank that has them all waits here until the others do: for one block at most.
    (stopping,) = world.any_rank(stop.reason() is not None)
    if stopping:
        reason = stop.reason() or "another rank was asked to"
        raise Stopped(f"{trial.trial} stopped while its frozen encoder ran; the states that it made are kept ({reason})")
    if world.is_main:
        took = awake_s() - began
        print(f"the frozen encoder's states: {made} of {len(numbers)} blocks made here, {took:.1f} s", flush=True)
    return states


@dataclass(frozen=True, slots=True)
class _Statistics:
    """What is kept of a clip, `width` numbers: the mean of its frames in these layers (None: in what calling the front
    returns), each frame normalised first or not, and their standard deviation or not."""

    layers: Sequence[int] | None
    width: int
    std: bool = False
    normalised: bool = False

    @classmethod
    def of(cls, model: Classifier) -> _Statistics:
        if isinstance(model.head, LinearProbe):
            return cls(model.head.layers, model.head.width, std=model.head.std)
        encoder: Any = model.encoder
        width = int(encoder.config.hidden_size)
        if model.layer_sum is not None:
            return cls(model.layer_sum.layers, len(model.layer_sum.layers) * width, normalised=True)
        return cls(None, width)


@torch.no_grad()
def _encoded(
    model: Classifier,
    batches: Iterator[Batch],
    settings: TrainSettings,
    device: torch.device,
    stop: StopFlag,
    watchdog: Watchdog,
    means: np.ndarray,
    causes: np.ndarray,
) -> bool:
    """Fill in the means and causes of a block's clips, row by row. False if asked to stop."""
    kept = _Statistics.of(model)
    model.to(device)
    for batch in batches:
        watchdog.beat()
        if stop.reason() is not None:
            return False
        with autocast(settings, device):
            states, lengths = frames_of_layers(
                model.frontend, model.encoder, to_device(batch.samples, device), batch.offsets, kept.layers
            )
            seen = map(normalise, states) if kept.normalised else states
            means[batch.rows] = pool_states(seen, lengths, kept.std).cpu().numpy()
        causes[batch.rows] = batch.damaged.numpy()
    return True


def _describe(
    model: Classifier, base: FrozenParameters, settings: Settings, index: ShardIndex, positions: np.ndarray, block: int
) -> dict[str, Any]:
    """Return all that states depend on, but for rounding by devices and threads, and what stands in which file: strict JSON."""
    front: Any = model.frontend
    encoder: Any = model.encoder
    kept = _Statistics.of(model)
    what = {
        "weights": base.sha256,
        "configuration": {name: value for name, value in encoder.config.to_dict().items() if name != "_name_or_path"},
        "normalize": getattr(front, "normalize", None),
        "settings": settings.model.model_dump(mode="json", exclude={"head", "weights", "layers"}),
        "statistics": asdict(kept),
        "precision": settings.train.precision,
        "budget_seconds": settings.train.budget_seconds,
        "max_seconds": settings.data.max_seconds,
        "crop": settings.data.crop,
        "shards": index.fingerprint,
        "clips": hashlib.sha256(positions.tobytes()).hexdigest(),
        "block": block,
        "code": _code_digest(),
        "versions": {name: versions()[name] for name in ("torch", "torchaudio", "transformers")},
    }
    plain: dict[str, Any] = json.loads(json.dumps(what, default=str))
    return plain


@cache
def _code_digest() -> str:
    """Hash the code that makes states: this file, and the rooms that read clips and run encoders."""
    package = Path(ser_hpc.__file__).parent
    sources = [
        Path(__file__),
        *(path for room in ("shards", "data", "models") for path in sorted((package / room).rglob("*.py"))),
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def _put(path: Path, means: np.ndarray) -> bool:
    """Write NumPy's own format, and its crc32 behind it. False if a file is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it, to make room
    buffer = io.BytesIO()
    np.save(buffer, means, allow_pickle=False)
    content = buffer.getvalue()
    return write_once(path, content + zlib.crc32(content).to_bytes(4, "big"))


def _read(path: Path, means: np.ndarray) -> bool:
    """Fill in `means`. False if the file is not there, or not as it was written: then it is left as it is."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    if zlib.crc32(content[:-4]).to_bytes(4, "big") != content[-4:]:
        print(f"{path} is damaged and was passed over; remove it, and it is made anew", flush=True)
        return False
    means[:] = np.load(io.BytesIO(content), allow_pickle=False)
    return True
