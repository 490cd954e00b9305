"""Stream the clips of a fold's part to anyone's own training code, as a `WebDataset` of the webdataset package.

    from ser_hpc.shards import as_webdataset

    train = as_webdataset("shards/emodb", protocol="speaker_groups", fold=0, part="train", shuffle=1000)
    for sample in train:                          # a dict: __key__, audio, label, emotion, speaker, corpus, ...
        ...
    loader = DataLoader(train.batched(16, collation_fn=pad_batch), batch_size=None, num_workers=4, persistent_workers=True)

Tars are read in sequence, from beginning to end, and clips of other parts are passed over undecoded. Nodes (ranks) and workers
of a DataLoader are dealt whole tars, so that over them all an epoch has every clip exactly once; those beyond the number of
tars get none. What arrives is compared with the index, and what is damaged or missing is told in words.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlparse

import numpy as np

from ser_hpc.config.load import find_config
from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.corpora.labels import DROPPED, LabelSet, label_set_as_annotated, load_label_set
from ser_hpc.protocols.folds import FoldPlan, plan_folds
from ser_hpc.shards.index import PACK_AGAIN, ShardIndex
from ser_hpc.shards.pair_file import find_near_duplicates
from ser_hpc.shards.read import CorruptClipError, CorruptionCause, Extent, clip_extents, decode_clip
from ser_hpc.shards.storage import Location, parse_location

if TYPE_CHECKING:
    from webdataset import WebDataset

Part = Literal["train", "dev", "test"]
Sample = dict[str, Any]
Handler = Callable[[Exception], bool]

PROTOCOL, AS_ANNOTATED = "leave_one_session_out", "as_annotated"  # as the settings' own defaults
BUFFER = 1000  # clips among which `shuffle=True` chooses
_NUMBERS = ("arousal", "valence", "dominance")
_LEFT_OUT = ("source", "start_s", "end_s", "rate_hz", "sound")  # of a clip's JSON: about its making, and what all share


class PlannedExperiment(Protocol):
    """Shards with a label set and folds, as `experiment.prepare_experiment` and `reopen_experiment` return them."""

    @property
    def index(self) -> ShardIndex: ...
    @property
    def label_set(self) -> LabelSet: ...
    @property
    def folds(self) -> FoldPlan: ...


def as_webdataset(
    shards: str | Path | Sequence[str | Path] | PlannedExperiment,
    *,
    fold: int | None = None,
    part: Part | None = None,
    protocol: str = PROTOCOL,
    folds: int | None = None,
    labels: str | Path = AS_ANNOTATED,
    shuffle: int | bool = False,
    seed: int = 0,
    handler: Handler | None = None,
    **plan_options: Any,
) -> WebDataset:
    """Return a `webdataset.WebDataset` of the clips of a fold's part; without `fold`, of all clips that have a class.

    A sample is a dict: `__key__`; `audio`, float32 (num_samples,) at 16 kHz in [-1, 1); `label`, index of the class, and
    `label_name`; `emotion` as annotated; `speaker`, `corpus` and the clip's other annotations ("" or NaN = not annotated);
    `extra`, a dict. The result's `classes` are the names of the classes, `num_clips` counts the clips of an epoch.

    `shards`: folders of packed shards (or https:// URLs, which webdataset reads by curl); or an experiment, whose own folds and
    label set are taken: those of an existing run are `reopen_experiment(RunDir(path))`. `protocol`, `folds` (how many),
    `labels`: as the settings folds.protocol, folds.count and data.labels; `plan_options`: further arguments of `plan_folds`.
    `shuffle`: tars come in random order, and clips at random out of a buffer of so many (True: 1000); other ones in every
    epoch, from `seed`. A DataLoader needs persistent_workers=True for that: new workers begin with the first epoch again.
    `handler`: called with the error of a damaged clip; None: it is raised. webdataset.warn_and_continue passes over the clip.

    Raises UserError where the shards, the label set or the folds are not possible, and while reading for damage.
    """
    import webdataset  # takes seconds, and torch

    if fold is None and part is not None:
        raise UserError(f"part={part!r} is a fold's: give fold=0 as well, or neither")
    if shuffle < 0:
        raise UserError(f"shuffle={shuffle}: give the number of clips among which to choose, or False")
    index, label_set, plan = _planned(shards, labels, protocol, folds, plan_options, wanted=fold is not None)
    targets = label_set.targets(index.metadata)
    positions = np.flatnonzero(targets != DROPPED) if plan is None else _positions(plan, fold, part)
    if not len(positions):
        raise UserError(f"fold {fold} has no clips in its {part} part" if plan else f"{label_set.name} gives no clip a class")
    clips = _by_tar(index, positions, targets)
    handler = handler or _raise
    dataset = webdataset.WebDataset(
        list(clips),
        handler=handler,
        shardshuffle=len(clips) if shuffle else False,
        detshuffle=bool(shuffle),
        seed=seed,
        nodesplitter=webdataset.split_by_node,
        select_files=_Wanted(frozenset(key for of_tar in clips.values() for key in of_tar)),
        empty_check=False,  # a worker without tars is no mistake
    ).compose(_CheckedTars(clips, handler))
    if shuffle:  # before decoding: the buffer holds FLAC
        size = BUFFER if shuffle is True else shuffle
        dataset = dataset.compose(webdataset.detshuffle(size, initial=size, seed=seed))
    dataset = dataset.compose(_Decoded(clips, label_set.classes, handler))
    dataset.classes, dataset.num_clips = label_set.classes, len(positions)
    return dataset


def pad_batch(samples: Sequence[Sample]) -> Sample:
    """Collate samples into a batch, for `.batched(16, collation_fn=pad_batch)` or a DataLoader's `collate_fn`.

    `audio` is float32 (clips, longest) with zeros behind shorter clips, whose lengths are `num_samples`, int64 (clips,);
    numbers become arrays (clips,), all else lists.
    """
    batch: Sample = {name: [sample[name] for sample in samples] for name in samples[0]}
    lengths = np.array([len(audio) for audio in batch["audio"]])
    padded = np.zeros((len(samples), lengths.max()), dtype=np.float32)
    for row, audio in zip(padded, batch["audio"], strict=True):
        row[: len(audio)] = audio
    numbers = {name: np.array(values) for name, values in batch.items() if isinstance(values[0], int | float)}
    return batch | numbers | {"audio": padded, "num_samples": lengths}


def _raise(error: Exception) -> bool:
    """Raise the error of a damaged clip, and in words what webdataset or tarfile say of a tar."""
    if isinstance(error, UserError):
        raise error
    what = " ".join(map(str, error.args))
    raise UserError(f"a shard cannot be read as a tar ({type(error).__name__}: {what}); {PACK_AGAIN}") from error


Clips = dict[str, dict[str, tuple[Extent, Location, int]]]  # of each tar's path, by key: what it must be, and its class


def _planned(
    shards: str | Path | Sequence[str | Path] | PlannedExperiment,
    labels: str | Path,
    protocol: str,
    count: int | None,
    plan_options: Mapping[str, Any],
    *,
    wanted: bool,
) -> tuple[ShardIndex, LabelSet, FoldPlan | None]:
    """Return the index, the label set and, where `wanted`, the folds."""
    if not isinstance(shards, str | Path | Sequence):
        if plan_options or (protocol, count, str(labels)) != (PROTOCOL, None, AS_ANNOTATED):
            raise UserError("an experiment has its own folds and labels: leave protocol, folds, labels and further options out")
        return shards.index, shards.label_set, shards.folds if wanted else None
    places = [shards] if isinstance(shards, str | Path) else shards
    index = ShardIndex.load(*(parse_location(str(place)) for place in places))
    annotated = str(labels) == AS_ANNOTATED
    label_set = label_set_as_annotated(index.metadata) if annotated else load_label_set(find_config(str(labels), "labels"))
    if not wanted:
        return index, label_set, None
    found: dict[str, Any] = {"distinct": index.distinct, "near": find_near_duplicates(index)}
    return index, label_set, plan_folds(index.metadata, label_set, protocol, count, **found, **plan_options)


def _positions(plan: FoldPlan, fold: int | None, part: Part | None) -> np.ndarray:
    if fold is None or fold not in range(len(plan.folds)):
        raise UserError(f"there is no fold {fold}: {plan.protocol} makes {len(plan.folds)} here, counted from 0")
    if part not in ("train", "dev", "test"):
        raise UserError(f"part={part!r}: a fold has the parts train, dev and test")
    positions: np.ndarray = getattr(plan.folds[fold], part).positions
    return positions


def _by_tar(index: ShardIndex, positions: np.ndarray, targets: np.ndarray) -> Clips:
    """Return the wanted clips of each tar, in the index's order. Raises UserError for a path that webdataset cannot open."""
    clips: Clips = defaultdict(dict)
    for extent, target in zip(clip_extents(index, positions), targets[positions].tolist(), strict=True):
        root = index.roots[extent.dataset]
        clips[str(root.resolve() / extent.tar)][extent.key] = extent, root, target
    for tar in clips:
        if "://" in tar and not tar.startswith(("http://", "https://")):
            raise UserError(f"{tar}: webdataset streams from folders and web servers alone; copy the shards to a folder")
        if "://" not in tar and urlparse(tar).path != tar:
            raise UserError(f"{tar}: webdataset takes a path for a URL, so it opens none with ? # or ; in it; move the shards")
    return dict(clips)


class _Wanted:
    """Tells webdataset which members of a tar to read: those of the wanted keys."""

    def __init__(self, keys: frozenset[str]) -> None:
        self._keys = keys

    def __call__(self, name: str) -> bool:
        return name.partition(".")[0] in self._keys


class _CheckedTars:
    """A stage that passes samples on, and reports the clips that their tars should have had, but had not."""

    def __init__(self, clips: Clips, handler: Handler) -> None:
        self._clips, self._handler = clips, handler

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        import webdataset

        dealt = webdataset.split_by_worker(webdataset.split_by_node(iter(self._clips)))
        missing = {tar: set(self._clips[tar]) for tar in dealt}  # of those dealt to this worker alone
        for sample in samples:
            if sample["__key__"] not in missing[sample["__url__"]]:  # in it twice, or of another dataset's tar
                continue
            missing[sample["__url__"]].discard(sample["__key__"])
            if {"flac", "json"} <= sample.keys():
                yield sample
            elif not self._handler(_missing(sample["__url__"], [sample["__key__"]])):
                return
        for tar, keys in missing.items():
            if keys and not self._handler(_missing(tar, sorted(keys))):
                return


class _Decoded:
    """A stage that makes of a clip's members the sample that users get."""

    def __init__(self, clips: Clips, classes: Sequence[str], handler: Handler) -> None:
        self._clips, self._classes, self._handler = clips, classes, handler

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        for members in samples:
            try:
                sample = self._sample(members)
            except UserError as error:
                if not self._handler(error):
                    return
            else:
                yield sample

    def _sample(self, members: Sample) -> Sample:
        extent, root, target = self._clips[members["__url__"]][members["__key__"]]
        samples = decode_clip(extent, members["flac"], root)
        if isinstance(samples, UserError):
            raise samples
        try:
            described = json.loads(members["json"])
            described |= {name: math.nan if described[name] is None else float(described[name]) for name in _NUMBERS}
            described["extra"] = json.loads(described["extra"] or "{}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{extent.key}.json in {members['__url__']} is damaged ({error}); {PACK_AGAIN}") from error
        label = {"label": target, "label_name": self._classes[target]}
        kept = {name: value for name, value in described.items() if name not in _LEFT_OUT}
        audio = samples.astype(np.float32) / np.float32(32768)
        return {"__key__": extent.key, "audio": audio, **label, **kept}


def _missing(tar: str, keys: Sequence[str]) -> CorruptClipError:
    what = f"shard {tar} ends before {counted(len(keys), 'clip')} of it, or has lost a part: {listed(keys, 4)}"
    return CorruptClipError(f"{what}; {PACK_AGAIN}", CorruptionCause.CUT_OFF)
