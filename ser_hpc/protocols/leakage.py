"""Check folds for leakage between training, dev and test, and write the notes for readers of their scores.

A fold is checked as an array of sides, one a clip. Refused: a speaker, an identical sound or a stretch of one recording on two
sides, a class that the training part lacks; and near-duplicates (near_duplicates.py). Noted: texts shared by training and test,
classes that a dev or test part lacks, identical sound under two labels, classes that few speakers or one gender alone say. A
protocol that breaks a rule by its own definition (an official split, SUPERB's dev part) is run only by name, and what it breaks
is counted and noted instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ser_hpc.core.errors import UserError, listed
from ser_hpc.protocols.clip_table import DEV, NOWHERE, SIDE_PAIRS, SIDES, TEST, TRAIN, ClipTable
from ser_hpc.protocols.near_duplicates import NearDuplicates, check_near_duplicates

_FEW = 3  # speakers of a class

Pair = tuple[int, int]

# What a protocol shares between sides by its own definition.
_SHARED_SPEAKERS: dict[str, tuple[Pair, ...]] = {"given_split": SIDE_PAIRS, "superb": ((TRAIN, DEV),)}
_SHARED_SOUNDS: dict[str, tuple[Pair, ...]] = {"given_split": SIDE_PAIRS}


@dataclass(frozen=True, slots=True)
class Crossing:
    """Names on both sides of `pair` in one fold or more. `fold`: the first; `clips` of `of_clips` on side two are theirs."""

    pair: Pair
    fold: int
    codes: np.ndarray
    clips: int
    of_clips: int


def check_leakage(
    clips: ClipTable,
    folds: Sequence[np.ndarray],
    protocol: str,
    near: NearDuplicates | None = None,
    harmless: Sequence[str] = (),
) -> list[str]:
    """Check the folds, each the side of every clip (int8 (num_clips,), NOWHERE = in no part). Returns notes for the report.

    `near`: clips that share sound, `harmless`: pairs of those that are declared so; see `check_near_duplicates`.
    Raises UserError naming what stands on two sides, or the class that a training part lacks.
    """
    return [
        *_speakers(clips, folds, protocol),
        *_sounds(clips, folds, protocol),
        *_overlaps(clips, folds, protocol),
        *check_near_duplicates(clips, folds, near, harmless, official=protocol in _SHARED_SOUNDS),
        *_classes(clips, folds),
        *_texts(clips, folds),
        *_shortcuts(clips),
    ]


def _crossings(codes: np.ndarray, folds: Sequence[np.ndarray], pairs: Sequence[Pair]) -> list[Crossing]:
    present = np.zeros((len(folds), codes.max(initial=-1) + 1, len(SIDES)), dtype=bool)
    for fold, side in enumerate(folds):
        inside = (codes >= 0) & (side != NOWHERE)
        present[fold, codes[inside], side[inside]] = True
    found = []
    for pair in pairs:
        shared = present[:, :, pair[0]] & present[:, :, pair[1]]
        if shared.any():
            second = [(codes >= 0) & (side == pair[1]) for side in folds]
            clips = sum(int(shared[fold][codes[rows]].sum()) for fold, rows in enumerate(second))
            of_clips = sum(int((side == pair[1]).sum()) for side in folds)
            first = int(shared.any(axis=1).argmax())
            found.append(Crossing(pair, first, np.flatnonzero(shared.any(axis=0)), clips, of_clips))
    return found


def _speakers(clips: ClipTable, folds: Sequence[np.ndarray], protocol: str) -> list[str]:
    notes, refused = [], []
    for crossing in _crossings(clips.speaker.codes, folds, SIDE_PAIRS):
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
    astray = sum(int((side[~clips.has_known_speaker] > TRAIN).sum()) for side in folds)
    if astray:
        assert protocol == "given_split"
        notes.append(f"LEAK possible: {astray} dev and test clips are of unknown speakers, who may be in training.")
    elif not clips.has_known_speaker.all():
        notes.append(f"{int((~clips.has_known_speaker).sum())} of {len(clips)} clips are of unknown speakers: they only train.")
    genders = np.zeros((len(clips.speaker.names), 2), dtype=bool)
    for column, gender in enumerate(("female", "male")):
        genders[clips.speaker.codes[clips.has_known_speaker & clips.gender.equals(gender)], column] = True
    if genders.all(axis=1).any():
        names = listed([clips.speaker.names[code] for code in np.flatnonzero(genders.all(axis=1))])
        notes.append(f"speakers annotated as female and as male: {names}. Are the speakers' names right?")
    return notes


def _sounds(clips: ClipTable, folds: Sequence[np.ndarray], protocol: str) -> list[str]:
    notes = _refuse_on_two_sides(
        clips,
        clips.sound.codes,
        folds,
        protocol,
        "sounds",
        "Keep one clip of each: leave the others out of the corpus (pack it from a CSV without them), or give their emotion no "
        "class.",
    )
    label = np.zeros(len(clips.sound.names), dtype=np.int64)
    repeated = clips.sound.codes >= 0
    codes, target = clips.sound.codes[repeated], clips.target[repeated]
    label[codes] = target
    twice = np.unique(codes[label[codes] != target])
    if len(twice):
        notes.append(f"{len(twice)} sounds occur under more than one label: {_same(clips, clips.sound.codes, twice)}.")
    return notes


def _overlaps(clips: ClipTable, folds: Sequence[np.ndarray], protocol: str) -> list[str]:
    """Check pieces of one recording that share sound, as `_sounds` does whole clips."""
    notes = _refuse_on_two_sides(
        clips,
        clips.overlap,
        folds,
        protocol,
        "stretches of a recording",
        "Leave one of the pieces out, or cut them so that they do not overlap, and pack the corpus again.",
    )
    groups = clips.overlap[(clips.overlap >= 0) & clips.has_known_speaker]
    speakers = clips.speaker.codes[(clips.overlap >= 0) & clips.has_known_speaker]
    pairs = np.unique(np.stack([groups, speakers], axis=1), axis=0)[:, 0]
    if several := int((np.bincount(pairs) > 1).sum()) if len(pairs) else 0:
        notes.append(f"Pieces of {several} recordings overlap and are of different speakers: whom does one hear there?")
    return notes


def _refuse_on_two_sides(
    clips: ClipTable, codes: np.ndarray, folds: Sequence[np.ndarray], protocol: str, what: str, advice: str
) -> list[str]:
    """Return notes on codes on two sides by the protocol's own definition. Raises UserError for the others."""
    notes, refused = [], []
    for crossing in _crossings(codes, folds, SIDE_PAIRS):
        one, other = (SIDES[side] for side in crossing.pair)
        found = f"{len(crossing.codes)} {what} stand in both {one} and {other}: {_same(clips, codes, crossing.codes)}"
        if crossing.pair in _SHARED_SOUNDS.get(protocol, ()):
            notes.append(f"LEAK by the protocol's own definition: {found}.")
        else:
            refused.append(f"fold {crossing.fold}: {found}")
    if refused:
        raise UserError(f"identical {what} on two sides:\n  " + "\n  ".join(refused) + f"\n{advice}")
    return notes


def _shortcuts(clips: ClipTable) -> list[str]:
    """Return notes on classes that a model may know by the voice: spoken by one gender alone, or by few speakers."""
    num_classes, num_speakers = len(clips.classes), len(clips.speaker.names)
    spoken = np.zeros((num_classes, num_speakers), dtype=bool)
    spoken[clips.target[clips.has_known_speaker], clips.speaker.codes[clips.has_known_speaker]] = True
    speakers = spoken.sum(axis=1)
    few = [f"{clips.classes[i]} by {speakers[i]}" for i in np.flatnonzero(speakers < _FEW)] if num_speakers >= 2 * _FEW else []
    notes = [f"Classes spoken by few of the {num_speakers} known speakers: {listed(few)}."] if few else []
    annotated = clips.gender.codes >= 0
    genders = np.zeros((num_classes, len(clips.gender.names)), dtype=bool)
    genders[clips.target[annotated], clips.gender.codes[annotated]] = True
    complete = np.bincount(clips.target[annotated], minlength=num_classes) == np.bincount(clips.target, minlength=num_classes)
    alone = np.flatnonzero(complete & (genders.sum(axis=1) == 1))
    if len(clips.gender.names) > 1 and len(alone):
        each = listed([f"{clips.classes[i]} by {clips.gender.names[int(genders[i].argmax())]} ones" for i in alone])
        notes.append(f"Classes spoken by speakers of one gender alone, so that the voice's pitch tells them: {each}.")
    return notes


def _same(clips: ClipTable, codes: np.ndarray, shared: np.ndarray) -> str:
    """List the clips that have each of the `shared` codes, as `one/a = two/b, one/c = one/d`."""
    clips_of: dict[int, list[str]] = {code: [] for code in shared.tolist()}
    rows = np.flatnonzero(np.isin(codes, shared))
    for code, key in zip(codes[rows].tolist(), clips.keys(rows).to_pylist(), strict=True):
        clips_of[code].append(key)
    return listed([" = ".join(names) for names in clips_of.values()])


def _classes(clips: ClipTable, folds: Sequence[np.ndarray]) -> list[str]:
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


def _texts(clips: ClipTable, folds: Sequence[np.ndarray]) -> list[str]:
    notes = []
    for crossing in _crossings(clips.text.codes, folds, [(TRAIN, TEST)]):
        silent = sum(int((clips.text.codes[side == TEST] < 0).sum()) for side in folds)
        notes.append(
            f"{crossing.clips} of {crossing.of_clips} test clips say a text that training has too ({len(crossing.codes)} texts)"
            + (f"; {silent} have no text id." if silent else ".")
        )
    return notes
