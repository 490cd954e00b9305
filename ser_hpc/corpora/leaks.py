"""What must not stand on two sides of a fold, and what a reader of its scores must be told.

A fold is checked as an array of sides, one a clip. Refused: a speaker or an identical sound on two sides, a class that the
training part lacks. Told: texts shared by training and test, classes that a dev or test part lacks, identical sound under two
labels. A protocol that breaks a rule by its own definition (an official split, SUPERB's dev part) is run only by name, and
what it breaks is counted and told instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ser_hpc.corpora.labels import LabelSet
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER, Metadata
from ser_hpc.errors import UserError, listed

NOWHERE, TRAIN, DEV, TEST = -1, 0, 1, 2
SIDES = ("training", "dev", "test")
Pair = tuple[int, int]
PAIRS: tuple[Pair, ...] = ((TRAIN, DEV), (TRAIN, TEST), (DEV, TEST))

# What a protocol shares between sides by its own definition.
_SHARED_SPEAKERS: dict[str, tuple[Pair, ...]] = {"given_split": PAIRS, "superb": ((TRAIN, DEV),)}
_SHARED_SOUNDS: dict[str, tuple[Pair, ...]] = {"given_split": PAIRS}


@dataclass(frozen=True, slots=True)
class Column:
    """Names as numbers: row i has `names[codes[i]]`, or none where its code is -1. `codes`: int64 (num_clips,)."""

    names: tuple[str, ...]
    codes: np.ndarray

    @classmethod
    def of(cls, values: Sequence[str]) -> Column:
        """Empty values have no code; names are sorted."""
        names = tuple(sorted(set(values) - {""}))
        number = {name: code for code, name in enumerate(names)} | {"": -1}
        return cls(names, np.array([number[value] for value in values], dtype=np.int64))

    def within(self, rows: np.ndarray) -> tuple[str, ...]:
        """The names that occur in `rows` (a mask or positions), sorted."""
        codes = np.unique(self.codes[rows])
        return tuple(self.names[code] for code in codes[codes >= 0])


@dataclass(frozen=True, slots=True)
class Clips:
    """The clips that have a class, sorted by corpus and id, so that nothing depends on the order of the metadata.

    Speakers, sessions and texts are unique only with their corpus; where there are several corpora their names say which.
    A clip of an unknown speaker has no speaker. All arrays have shape (num_clips,).
    """

    classes: tuple[str, ...]
    positions: np.ndarray  # rows of the metadata, int64
    target: np.ndarray
    key: Column  # corpus/id
    corpus: Column
    speaker: Column
    session: Column
    text: Column
    sound: Column
    gender: np.ndarray
    split: np.ndarray

    @classmethod
    def of(cls, metadata: Metadata, label_set: LabelSet) -> Clips:
        """Raises UserError where two rows are the same clip or none has a class."""
        targets = label_set.targets(metadata)
        keys = [f"{corpus}/{name}" for corpus, name in zip(metadata.corpus, metadata.utterance_id, strict=True)]
        positions = np.array([i for i in sorted(range(len(keys)), key=keys.__getitem__) if targets[i] >= 0], dtype=np.int64)
        if not len(positions):
            raise UserError(f"label set {label_set.name!r} gives none of the {len(keys)} clips a class")
        rows = metadata.take(positions)
        several = len(set(rows.corpus)) > 1

        def of_corpus(names: Sequence[str]) -> Column:
            return Column.of([f"{c}/{n}" if several and n else n for c, n in zip(rows.corpus, names, strict=True)])

        clips = cls(
            classes=label_set.classes,
            positions=positions,
            target=targets[positions],
            key=Column.of([keys[i] for i in positions]),
            corpus=Column.of(rows.corpus.tolist()),
            speaker=of_corpus(["" if name.lower() == UNKNOWN_SPEAKER else name for name in rows.speaker]),
            session=of_corpus(rows.session.tolist()),
            text=of_corpus(rows.text_id.tolist()),
            sound=Column.of(rows.sound.tolist()),
            gender=rows.gender,
            split=rows.split,
        )
        if len(clips.key.names) < len(clips):
            twice = [clips.key.names[code] for code in np.flatnonzero(np.bincount(clips.key.codes) > 1)]
            raise UserError(f"clips that stand twice in the metadata: {listed(twice)}; pack each corpus once")
        return clips

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def known(self) -> np.ndarray:
        """Mask of the clips whose speaker is known."""
        return self.speaker.codes >= 0


@dataclass(frozen=True, slots=True)
class Crossing:
    """Names on both sides of `pair` in one fold or more (`fold` is the first); how many clips of the second side are theirs."""

    pair: Pair
    fold: int
    codes: np.ndarray
    clips: int
    of_clips: int


def inspect(clips: Clips, folds: Sequence[np.ndarray], protocol: str) -> list[str]:
    """Check the folds, each a side a clip (int8, NOWHERE = in no part). Returns notes for the report.

    Raises UserError naming what stands on two sides, or the class that a training part lacks.
    """
    return [
        *_speakers(clips, folds, protocol),
        *_sounds(clips, folds, protocol),
        *_classes(clips, folds),
        *_texts(clips, folds),
    ]


def _crossings(codes: np.ndarray, folds: Sequence[np.ndarray], pairs: Sequence[Pair]) -> list[Crossing]:
    found = []
    for pair in pairs:
        crossed: list[np.ndarray] = []
        first, clips, of_clips = 0, 0, 0
        for fold, side in enumerate(folds):
            present = np.zeros((codes.max(initial=-1) + 1, len(SIDES)), dtype=bool)
            inside = (codes >= 0) & (side != NOWHERE)
            present[codes[inside], side[inside]] = True
            shared = present[:, pair[0]] & present[:, pair[1]]
            if shared.any():
                first = first if crossed else fold
                crossed.append(np.flatnonzero(shared))
                clips += int(shared[codes[inside & (side == pair[1])]].sum())
            of_clips += int((side == pair[1]).sum())
        if crossed:
            found.append(Crossing(pair, first, np.unique(np.concatenate(crossed)), clips, of_clips))
    return found


def _speakers(clips: Clips, folds: Sequence[np.ndarray], protocol: str) -> list[str]:
    notes, refused = [], []
    for crossing in _crossings(clips.speaker.codes, folds, PAIRS):
        one, other = (SIDES[side] for side in crossing.pair)
        names = listed([clips.speaker.names[code] for code in crossing.codes])
        what = f"{len(crossing.codes)} speakers stand in both {one} and {other} ({names})"
        if crossing.pair in _SHARED_SPEAKERS.get(protocol, ()):
            theirs = f"{crossing.clips} of {crossing.of_clips} {other} clips are theirs"
            notes.append(f"LEAK by the protocol's own definition: {what}; {theirs}.")
        else:
            refused.append(f"fold {crossing.fold}: {what}")
    if refused:
        raise UserError(
            "speakers on two sides:\n  " + "\n  ".join(refused) + f"\n{protocol} does not keep this corpus's speakers apart: "
            "use speaker_groups or leave_one_speaker_out, or correct the speakers' names."
        )
    astray = sum(int((side[~clips.known] > TRAIN).sum()) for side in folds)
    if astray:
        assert protocol == "given_split"
        notes.append(f"LEAK possible: {astray} dev and test clips are of unknown speakers, who may be in training.")
    elif not clips.known.all():
        notes.append(f"{int((~clips.known).sum())} of {len(clips)} clips are of unknown speakers: they only train.")
    genders = np.zeros((len(clips.speaker.names), 2), dtype=bool)
    for column, gender in enumerate(("female", "male")):
        genders[clips.speaker.codes[clips.known & (clips.gender == gender)], column] = True
    if genders.all(axis=1).any():
        names = listed([clips.speaker.names[code] for code in np.flatnonzero(genders.all(axis=1))])
        notes.append(f"speakers annotated as female and as male: {names}. Are the speakers' names right?")
    return notes


def _sounds(clips: Clips, folds: Sequence[np.ndarray], protocol: str) -> list[str]:
    notes, refused = [], []
    for crossing in _crossings(clips.sound.codes, folds, PAIRS):
        one, other = (SIDES[side] for side in crossing.pair)
        same = listed([" = ".join(clips.key.within(clips.sound.codes == code)) for code in crossing.codes])
        what = f"{len(crossing.codes)} sounds stand in both {one} and {other}: {same}"
        if crossing.pair in _SHARED_SOUNDS.get(protocol, ()):
            notes.append(f"LEAK by the protocol's own definition: {what}.")
        else:
            refused.append(f"fold {crossing.fold}: {what}")
    if refused:
        raise UserError(
            "identical sound on two sides:\n  " + "\n  ".join(refused) + "\nKeep one clip of each: leave the others out of the "
            "corpus (pack it from a CSV without them), or give their emotion no class."
        )
    pairs = np.unique(np.stack([clips.sound.codes, clips.target])[:, clips.sound.codes >= 0], axis=1)
    twice = np.flatnonzero(np.bincount(pairs[0]) > 1)
    if len(twice):
        same = listed([" = ".join(clips.key.within(clips.sound.codes == code)) for code in twice])
        notes.append(f"{len(twice)} sounds occur under more than one label: {same}.")
    return notes


def _classes(clips: Clips, folds: Sequence[np.ndarray]) -> list[str]:
    def missing(side: int) -> list[str]:
        counts = (np.bincount(clips.target[sides == side], minlength=len(clips.classes)) for sides in folds)
        return [
            f"{', '.join(clips.classes[i] for i in np.flatnonzero(count == 0))} in fold {fold}"
            for fold, count in enumerate(counts)
            if not count.all()
        ]

    if lacking := missing(TRAIN):
        raise UserError(
            f"classes without a single training clip: {listed(lacking)}. Use another number of folds or another protocol, or a "
            "label set that merges these classes with others or drops them (null)."
        )
    return [
        f"Classes that the {SIDES[side]} part lacks, left out of its UAR: {listed(lacking, 20)}."
        for side in (DEV, TEST)
        if (lacking := missing(side))
    ]


def _texts(clips: Clips, folds: Sequence[np.ndarray]) -> list[str]:
    notes = []
    for crossing in _crossings(clips.text.codes, folds, [(TRAIN, TEST)]):
        silent = sum(int((clips.text.codes[side == TEST] < 0).sum()) for side in folds)
        notes.append(
            f"{crossing.clips} of {crossing.of_clips} test clips say a text that training has too ({len(crossing.codes)} texts)"
            + (f"; {silent} have no text id." if silent else ".")
        )
    return notes
