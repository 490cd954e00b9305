"""What a trial is fed with: its data, the source of its batches, and what counts alike in an epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ser_hpc.config.settings import Settings
from ser_hpc.corpora.folds import Fold
from ser_hpc.data.batches import Batch, BatchSource, Source
from ser_hpc.data.kept import keep_bytes
from ser_hpc.data.order import MicroBatch
from ser_hpc.data.workers import default_workers
from ser_hpc.engine.world import World
from ser_hpc.shards.audio import RATE
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.storage import Place


@dataclass(frozen=True, slots=True)
class TrialData:
    """What a trial learns from: `targets` is the class index of every clip of the index (-1: in no part).

    `roots`: for each dataset a folder with copies of the shards that it reads; none: they are read where they lie.
    """

    index: ShardIndex
    classes: tuple[str, ...]
    targets: np.ndarray
    fold: Fold
    roots: tuple[Place, ...] = ()


def source(settings: Settings, data: TrialData, weights: np.ndarray, world: World) -> BatchSource:
    told = settings.data
    return BatchSource(
        data.index,
        data.targets,
        weights,
        copies=data.roots,
        max_samples=max_samples(settings),
        augment=told.augment,
        workers=default_workers(bool(told.augment), world.local_size) if told.workers is None else told.workers,
        window_bytes=round(told.read_ahead_mb * 1e6),
        keep_bytes=keep_bytes(told.keep_gb, world.local_size),
    )


def max_samples(settings: Settings) -> int | None:
    return None if settings.data.max_seconds is None else round(settings.data.max_seconds * RATE)


def groups(balance: str, data: TrialData) -> np.ndarray | None:
    """What counts alike in an epoch: the group of each training clip, int64 (num_clips,)."""
    positions = data.fold.train.positions
    if balance == "none":
        return None
    if balance == "class":
        classes: np.ndarray = data.targets[positions]
        return classes
    words = data.index.metadata.column(balance)[positions]
    corpora = data.index.metadata.corpus[positions]  # speakers are unique only with their corpus
    names = np.array([f"{corpus}/{word}" for corpus, word in zip(corpora, words, strict=True)])
    numbers: np.ndarray = np.unique(names, return_inverse=True)[1]
    return numbers


def grouped(source: Source, steps: Iterable[list[MicroBatch]]) -> Iterator[list[Batch]]:
    """The batches of each step, decoded ahead across the border between steps, which are cut up only as they come near."""
    sizes: deque[int] = deque()

    def micros() -> Iterator[MicroBatch]:
        for step in steps:
            sizes.append(len(step))
            yield from step

    batches = source.ahead(micros(), training=True)
    for first in batches:
        yield [first, *islice(batches, sizes.popleft() - 1)]
