"""Check folds for near-duplicates: clips that share sound although their samples differ (another gain, a cut, a codec).

Refused: a pair of them on two sides, under two speakers, or under two classes; each is named. What somebody has listened to,
and knows to be harmless, is declared: `folds.harmless_pairs`. Told: pairs of one speaker and class on one side; of two speakers
of one session on one side, whose turns overlap where they talk with each other; what an official split breaks, which is run by
name alone; shards in which nobody has looked. Clips whose samples are equal, and pieces of one recording that overlap by their
times, are not counted here: `protocols.leakage` has rules for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.protocols.clip_table import SIDE_PAIRS, SIDES, ClipTable

SETTING = "folds.harmless_pairs"
_PAIR = re.compile(r"\s*([^\s=/]+/[^\s=/]+)\s*=\s*([^\s=/]+/[^\s=/]+)(?:\s|$)")  # whatever follows it


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """Pairs of clips that share sound. `positions`: rows of the metadata, int64 (num_pairs, 2); `seconds` that were compared
    and the share of fingerprint bits that differ there (`error`), float64 (num_pairs,). `not_looked_for`: a sentence on shards
    that have no fingerprints, "" if all have; `too_short`: number of clips of which no pair can be found.
    """

    positions: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    error: np.ndarray = field(default_factory=lambda: np.zeros(0))
    not_looked_for: str = ""
    too_short: int = 0

    def __len__(self) -> int:
        return len(self.positions)


def parse_harmless(texts: Iterable[str]) -> frozenset[tuple[str, str]]:
    """Parse pairs of clips, `corpus/id=corpus/id`, or files with such a pair at the beginning of each line (# begins a
    comment).

    Each is returned with its names in order. Raises UserError for what is neither.
    """
    found = set()
    for text in texts:
        if os.path.isfile(text):  # noqa: PTH113  # never raises
            try:
                lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{SETTING}: {text} cannot be read ({error})") from error
            entries = [(f"{text}, line {n}: ", line.partition("#")[0].strip()) for n, line in enumerate(lines, 1)]
            found |= {_pair(where, line) for where, line in entries if line}
        else:
            found.add(_pair("", text))
    return frozenset(found)


def _pair(where: str, text: str) -> tuple[str, str]:
    match = _PAIR.match(text)
    if match is None or (names := match.groups())[0] == names[1]:
        raise UserError(
            f"{SETTING}: {where}{text!r} is no pair of clips; write CORPUS/ID=CORPUS/ID, or name a file of such lines"
        )
    one, other = sorted(names)
    return one, other


def check_near_duplicates(
    clips: ClipTable, folds: Sequence[np.ndarray], near: NearDuplicates | None, harmless: Iterable[str], *, official: bool
) -> list[str]:
    """Check the folds, each the side of every clip (int8 (num_clips,)). Returns notes; raises UserError naming the pairs.

    `near`: None: nothing is checked. `official`: a split that is run as it is: what it breaks is noted.
    """
    if near is None:
        return []
    notes = [near.not_looked_for] if near.not_looked_for else []
    if near.too_short and not near.not_looked_for:
        notes.append(f"{counted(near.too_short, 'clip')} too short to be compared with others for near-duplicates.")
    declared = parse_harmless(harmless)
    pairs = _named_pairs(clips, near)
    names = {pair.names for pair in pairs}
    if declared & names:
        notes.append(f"{counted(len(declared & names), 'pair')} of near-duplicates were declared harmless ({SETTING}).")
    unknown = f"{SETTING} names pairs that are none here: {listed(['='.join(p) for p in sorted(declared - names)])}."
    if declared - names:
        notes.append(unknown)
    pairs = [pair for pair in pairs if pair.names not in declared]
    talking = _of_one_session(clips, pairs)
    faults, faulty = _faults(clips, folds, pairs, talking)
    if official:
        notes += [f"LEAK by the protocol's own definition: {fault}." for fault in faults]
    elif faults:
        first = "=".join(pairs[min(faulty)].names)
        raise UserError(
            "near-duplicates, clips that share sound although their samples differ:\n  "
            + "\n  ".join(faults)
            + "\nListen to them. Leave one clip of each pair out (pack from a CSV without it, or give its emotion no "
            f"class); or, where they are harmless, say so: {SETTING}=[{first}] (or a file of such lines). All pairs: python -m "
            "ser_hpc.inspect SHARDS --near-duplicates" + (f"\n{unknown}" if declared - names else "")
        )
    overlapping = [pairs[number] for number in np.flatnonzero(talking).tolist() if number not in faulty]
    if overlapping:
        notes.append(
            f"{counted(len(overlapping), 'pair')} of clips of two speakers of one session share sound, as turns of a dialogue "
            f"may, never on two sides: {_listed(overlapping, 4)}."
        )
    rest = [pair for number, pair in enumerate(pairs) if number not in faulty and not talking[number]]
    if rest:
        notes.append(
            f"{counted(len(rest), 'pair')} of clips are near-duplicates, of one speaker and class and never on two sides: "
            f"{_listed(rest, 4)}."
        )
    return notes


@dataclass(frozen=True, slots=True)
class _Pair:
    """A pair of clips of the table. `names`: corpus/id, in order, and so are `rows`."""

    names: tuple[str, str]
    rows: tuple[int, int]
    seconds: float
    error: float

    def __str__(self) -> str:
        return f"{self.names[0]} = {self.names[1]} ({self.seconds:.1f} s, {1 - self.error:.0%} alike)"


def _named_pairs(clips: ClipTable, near: NearDuplicates) -> list[_Pair]:
    """Return the pairs of which both clips have a class."""
    if not len(near):
        return []
    row_of = np.full(int(max(clips.positions.max(), near.positions.max())) + 1, -1, dtype=np.int64)
    row_of[clips.positions] = np.arange(len(clips))
    rows = np.sort(row_of[near.positions], axis=1)  # the table is sorted by name
    there = np.flatnonzero(rows[:, 0] >= 0)
    names = [clips.keys(rows[there, column]).to_pylist() for column in (0, 1)]
    columns = rows[there].tolist(), near.seconds[there].tolist(), near.error[there].tolist()
    found = [
        _Pair((one, other), (row[0], row[1]), seconds, error)
        for one, other, row, seconds, error in zip(*names, *columns, strict=True)
    ]
    return sorted(found, key=lambda pair: pair.names)


def _of_one_session(clips: ClipTable, pairs: Sequence[_Pair]) -> np.ndarray:
    """Tell which pairs are of two known speakers of one session, bool (num_pairs,)."""
    one, other = _rows(pairs)
    speaker, session = clips.speaker.codes, clips.session.codes
    known = (speaker[one] >= 0) & (speaker[other] >= 0) & (session[one] >= 0)
    found: np.ndarray = known & np.not_equal(speaker[one], speaker[other]) & np.equal(session[one], session[other])
    return found


def _rows(pairs: Sequence[_Pair]) -> np.ndarray:
    return np.array([pair.rows for pair in pairs], dtype=np.int64).reshape(-1, 2).T


def _faults(
    clips: ClipTable, folds: Sequence[np.ndarray], pairs: Sequence[_Pair], talking: np.ndarray
) -> tuple[list[str], set[int]]:
    """Return a message for each kind of fault, with its pairs, and the numbers of all pairs that have one. Pairs that are
    `talking` with each other may have two speakers, and two classes."""
    one, other = _rows(pairs)
    of: dict[str, np.ndarray] = {}
    for sides in SIDE_PAIRS:
        crossing = np.array(
            [np.isin(side[one], sides) & np.isin(side[other], sides) & (side[one] != side[other]) for side in folds]
        )
        if crossing.any():
            first = int(crossing.any(axis=1).argmax())
            of[f"in both {SIDES[sides[0]]} and {SIDES[sides[1]]} (fold {first})"] = np.logical_or.reduce(crossing)
    speaker = clips.speaker.codes
    known = (speaker[one] >= 0) & (speaker[other] >= 0)
    of["under two speakers"] = known & ~talking & np.not_equal(speaker[one], speaker[other])
    of["under two classes"] = ~talking & np.not_equal(clips.target[one], clips.target[other])
    messages = [
        f"{counted(int(mask.sum()), 'pair')} {what}: {_listed([pairs[i] for i in np.flatnonzero(mask).tolist()], 8)}"
        for what, mask in of.items()
        if mask.any()
    ]
    return messages, set(np.flatnonzero(np.logical_or.reduce(list(of.values()))).tolist())


def _listed(pairs: Sequence[_Pair], limit: int) -> str:
    return listed([str(pair) for pair in pairs], limit)
