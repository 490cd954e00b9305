"""Folds: which clips train, which choose the epoch (dev) and which are tested, so that no speaker is on two sides.

`protocols` divides the clips, `leaks` refuses or tells what is wrong with that, and `plan` makes positions and words of it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ser_hpc.corpora.labels import DROPPED, LabelSet
from ser_hpc.corpora.leaks import DEV, NOWHERE, TEST, TRAIN, Clips, inspect
from ser_hpc.corpora.protocols import PROTOCOLS, Draft, divide
from ser_hpc.corpora.utterance import Metadata
from ser_hpc.errors import listed

__all__ = ["PROTOCOLS", "Fold", "FoldPlan", "Part", "plan"]


@dataclass(frozen=True, slots=True)
class Part:
    """One side of a fold. `positions`: rows of the metadata table, int64, ascending; known speakers and sessions by name."""

    words: str
    positions: np.ndarray
    speakers: tuple[str, ...]
    sessions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    index: int
    train: Part
    dev: Part
    test: Part


@dataclass(frozen=True, slots=True)
class FoldPlan:
    """`notes`: what everyone who reads a score must know. `digest`: of every clip and position; equal digests, equal plans."""

    protocol: str
    folds: tuple[Fold, ...]
    notes: tuple[str, ...]
    digest: str


def plan(metadata: Metadata, label_set: LabelSet, protocol: str, count: int | None) -> FoldPlan:
    """The folds of a protocol over the clips that the label set gives a class; independent of the metadata's order.

    `count`: how many folds were asked for; None: as many as the protocol makes of this corpus (5 groups of speakers).
    Raises UserError where the corpus does not allow the protocol or the count, and for every leak (`leaks.inspect`).
    """
    clips = Clips.of(metadata, label_set)
    drafts, notes = divide(clips, protocol, count)
    sides = [draft.side for draft in drafts]
    folds = tuple(Fold(k, *(_part(clips, draft, side) for side in (TRAIN, DEV, TEST))) for k, draft in enumerate(drafts))
    notes = [*notes, *_left_out(clips, metadata, label_set, sides), *inspect(clips, sides, protocol)]
    return FoldPlan(protocol, folds, tuple(notes), _digest(metadata, folds))


def _part(clips: Clips, draft: Draft, side: int) -> Part:
    rows = draft.side == side
    unknown = int((rows & ~clips.known).sum())
    words = draft.words[side] + (f"; {unknown} clips of unknown speakers" if unknown else "")
    return Part(words, np.sort(clips.positions[rows]), clips.speaker.within(rows), clips.session.within(rows))


def _digest(metadata: Metadata, folds: Sequence[Fold]) -> str:
    content = hashlib.sha256()
    for column in (metadata.corpus, metadata.utterance_id):
        content.update("\n".join(column.tolist()).encode() + b"\0")
    for fold in folds:
        for part in (fold.train, fold.dev, fold.test):
            content.update(len(part.positions).to_bytes(8, "little") + part.positions.astype("<i8").tobytes())
    return content.hexdigest()


def _left_out(clips: Clips, metadata: Metadata, label_set: LabelSet, sides: Sequence[np.ndarray]) -> list[str]:
    notes = []
    dropped = Counter(label_set.annotations(metadata)[label_set.targets(metadata) == DROPPED].tolist())
    if dropped:
        each = listed([f"{emotion} {number}" for emotion, number in sorted(dropped.items())], 20)
        notes.append(f"{dropped.total()} of {len(metadata)} clips have no class in the label set {label_set.name}: {each}.")
    never = int(np.all([side == NOWHERE for side in sides], axis=0).sum())
    if never:
        notes.append(f"{never} of {len(clips)} clips that have a class are in no part of any fold.")
    return notes
