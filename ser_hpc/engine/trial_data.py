"""Prepare a trial's data, for the training loop: its clips and targets, the source of its batches, and its weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ser_hpc.config.settings import Settings
from ser_hpc.corpora.words import WordColumn
from ser_hpc.data.batches import BatchSource
from ser_hpc.data.cache import cache_bytes
from ser_hpc.data.prefetch import Crop, default_workers
from ser_hpc.data.sampler import ShardOrder
from ser_hpc.engine.distributed.world import World
from ser_hpc.protocols.folds import Fold
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.storage import Location
from ser_hpc.tasks.targets import ClassTarget
from ser_hpc.tasks.task import ClipTargets, Task


@dataclass(frozen=True, slots=True)
class TrialData:
    """The data of a trial: `tasks` hold the target of every clip of the index, the main one first.

    `roots`: for each dataset a folder with copies of the shards that it reads; none: they are read where they lie.
    """

    index: ShardIndex
    tasks: tuple[Task, ...]
    fold: Fold
    roots: tuple[Location, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the classes of the main task."""
        target = self.tasks[0].target
        assert isinstance(target, ClassTarget)
        return target.classes

    @property
    def targets(self) -> np.ndarray:
        """Return the class index of every clip of the index by the main task, (num_clips,); -1: in no part."""
        return self.tasks[0].values

    @property
    def widths(self) -> dict[str, int]:
        """Return the number of outputs of each task."""
        return {task.name: task.target.width for task in self.tasks}


def make_batch_source(settings: Settings, data: TrialData, targets: ClipTargets, world: World) -> BatchSource:
    """Open the source of a trial's batches, as `settings.data` wants it; the caller closes it."""
    data_settings = settings.data
    workers = (
        default_workers(bool(data_settings.augment), world.local_size)
        if data_settings.workers is None
        else data_settings.workers
    )
    return BatchSource(
        data.index,
        targets,
        copies=data.roots,
        crop=_crop(settings),
        augment=data_settings.augment,
        mixup=data_settings.mixup,
        workers=workers,
        window_bytes=round(data_settings.prefetch_mb * 1e6),
        ahead_bytes=data_settings.window_bytes // world.size,  # of a window each rank needs its part
        keep_bytes=cache_bytes(data_settings.cache_gb, world.local_size),
    )


def lengths(settings: Settings, data: TrialData) -> np.ndarray:
    """Return how many samples every clip of the index has, once it is cut, (clips of the index,)."""
    samples: np.ndarray = np.minimum(data.index.num_samples, _crop(settings).samples or data.index.num_samples)
    return samples


def shard_order(settings: Settings, data: TrialData) -> ShardOrder | None:
    """Return the order in which the clips are read, as `settings.data` wants it; None: any."""
    window_bytes = settings.data.window_bytes
    return ShardOrder.of_index(data.index, window_bytes) if window_bytes else None


def balance_groups(balance: str, data: TrialData) -> np.ndarray | None:
    """Find what counts alike in an epoch: the group of each training clip, int64 (num_clips,). None: clips do."""
    positions = data.fold.train.positions
    if balance == "none":
        return None
    if balance == "class":
        classes: np.ndarray = data.targets[positions]
        return classes
    metadata = data.index.metadata  # speakers are unique only with their corpus
    return WordColumn.join(metadata.corpus, metadata.column(balance)).take(positions).number()[1]


def _crop(settings: Settings) -> Crop:
    return Crop.of_seconds(settings.data.max_seconds, settings.data.crop)
