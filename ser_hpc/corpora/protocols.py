"""The protocols by name: each divides the clips of a corpus over training, dev and test, fold by fold.

    leave_one_session_out   test = session k, dev = the next session, training = the others
    leave_one_speaker_out   the same with speakers
    speaker_groups          the same with K groups of speakers that are alike in classes and genders
    given_split             the corpus's own train / dev / test column
    iemocap_ses01           training = sessions 2 to 5, dev = session 1's man, test = session 1's woman
    superb                  test = session k, the other sessions' clips at random 80 / 20 training / dev (Yang et al. 2021)

"Leave one out" is rotated, the dev part too: over the folds every clip is tested once and is dev once, and a test part is read
once, after the dev part has chosen. Clips of unknown speakers can only train: they might be anyone, so they are never tested,
and are in no part of a fold that tests or chooses with their session.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ser_hpc.corpora.balance import balanced_groups
from ser_hpc.corpora.leaks import DEV, NOWHERE, TEST, TRAIN, Clips, Column
from ser_hpc.errors import UserError, listed

_GROUPS = 5  # of speakers, where nobody says how many
_MOST_FOLDS = 200  # more is a slip: leaving out each of thousands of speakers is thousands of trainings
_SUPERB_TRAINING_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Draft:
    """A fold before its check: the side of each clip, int8 (num_clips,), and training, dev and test in words."""

    side: np.ndarray
    words: tuple[str, str, str]


Drafts = tuple[list[Draft], list[str]]  # the folds, and notes on what the protocol itself does


def divide(clips: Clips, protocol: str, count: int | None) -> Drafts:
    """The folds of a protocol, not yet checked. Raises UserError where the corpus does not allow the protocol or the count."""
    if protocol not in _PROTOCOLS:
        raise UserError(f"there is no protocol {protocol!r}; choose one of {listed(PROTOCOLS)}")
    return _PROTOCOLS[protocol](clips, count)


def _leave_one_session_out(clips: Clips, count: int | None) -> Drafts:
    _need_sessions(clips, "leave_one_session_out")
    return _rotate_each("leave_one_session_out", "session", clips.session, clips.known, count), []


def _leave_one_speaker_out(clips: Clips, count: int | None) -> Drafts:
    return _rotate_each("leave_one_speaker_out", "speaker", clips.speaker, clips.known, count), []


def _rotate_each(protocol: str, noun: str, column: Column, known: np.ndarray, count: int | None) -> list[Draft]:
    """Leave one name of `column` out after the other. Names without a clip of a known speaker are never left out."""
    names = column.within(known)
    _need_three(names, noun, protocol)
    if count not in (None, len(names)):
        raise UserError(
            f"{count} folds were asked for, but {protocol} makes one of each {noun} and the corpus has {len(names)} "
            f"({listed(names)}): ask for {len(names)}, or use the protocol speaker_groups, which makes any number of groups"
        )
    if len(names) > _MOST_FOLDS:
        raise UserError(
            f"{protocol} would make {len(names)} folds, one of each {noun}, each a training of its own (at most {_MOST_FOLDS} "
            "are allowed): use the protocol speaker_groups"
        )
    number = {column.names.index(name): k for k, name in enumerate(names)}
    group = np.array([number.get(code, -1) for code in column.codes.tolist()])
    return _rotate(group, known, [f"{noun} {name}" for name in names], f"the other {noun}s")


def _speaker_groups(clips: Clips, count: int | None) -> Drafts:
    speakers = clips.speaker.names
    _need_three(speakers, "speaker", "speaker_groups")
    num_groups = min(_GROUPS, len(speakers)) if count is None else count
    if not 3 <= num_groups <= len(speakers):
        raise UserError(
            f"{num_groups} folds were asked for, but speaker_groups needs at least 3 groups (training, dev, test) and no more "
            f"than speakers, of whom {len(speakers)} are known ({listed(speakers)}): ask for 3 to {len(speakers)} folds"
        )
    code = clips.speaker.codes[clips.known]
    classes = np.zeros((len(speakers), len(clips.classes)), dtype=np.int64)
    np.add.at(classes, (code, clips.target[clips.known]), 1)
    gender = Column.of(clips.gender[clips.known].tolist())
    genders = np.zeros((len(speakers), max(len(gender.names), 1)), dtype=np.int64)
    annotated = gender.codes >= 0
    genders[code[annotated], gender.codes[annotated]] = 1
    groups = balanced_groups(classes, genders, num_groups)
    members = [[speakers[i] for i in np.flatnonzero(groups == k)] for k in range(num_groups)]
    group = np.where(clips.known, groups[clips.speaker.codes], -1)
    words = [f"speakers {listed(names)}" if len(names) > 1 else f"speaker {names[0]}" for names in members]
    return _rotate(group, clips.known, words, "the other groups"), []


def _rotate(group: np.ndarray, known: np.ndarray, words: Sequence[str], rest: str) -> list[Draft]:
    """Fold k: test = group k, dev = the next group, training = every other clip. `group`: int (num_clips,), -1 = in none."""
    drafts = []
    for test in range(len(words)):
        dev = (test + 1) % len(words)
        side = np.full(len(group), TRAIN, dtype=np.int8)
        side[group == test], side[group == dev] = TEST, DEV
        side[~known & (side != TRAIN)] = NOWHERE
        training = [name for k, name in enumerate(words) if k not in (test, dev)]
        drafts.append(Draft(side, (_joined(training) if len(training) <= 8 else rest, words[dev], words[test])))
    return drafts


def _given_split(clips: Clips, count: int | None) -> Drafts:
    _need_one_fold("given_split", count)
    sides = {"train": TRAIN, "dev": DEV, "test": TEST, "": NOWHERE}
    for code, corpus in enumerate(clips.corpus.names):
        found = Counter(clips.split[clips.corpus.codes == code].tolist())
        lacking = [name for name in ("train", "dev", "test") if not found[name]]
        if lacking:
            raise UserError(
                f"given_split needs a train, a dev and a test part, but {corpus} has no clip of {listed(lacking)} (it has "
                + (listed([f"{name} {number}" for name, number in sorted(found.items()) if name]) or "no split at all")
                + "). Pack it with the column `split` filled (take dev from training speakers that are then only dev), or use "
                "the protocol speaker_groups"
            )
    side = np.array([sides[name] for name in clips.split.tolist()], dtype=np.int8)
    notes = ["given_split: the parts are the corpus's own; what they share is counted, not mended."]
    words = tuple(f"the corpus's own {name} part" for name in ("training", "dev", "test"))
    return [Draft(side, (words[0], words[1], words[2]))], notes


def _iemocap_ses01(clips: Clips, count: int | None) -> Drafts:
    _need_one_fold("iemocap_ses01", count)
    names = _five_sessions(clips, "iemocap_ses01")
    first = clips.session.codes == clips.session.names.index(names[0])
    dev, test = (first & clips.known & (clips.gender == gender) for gender in ("male", "female"))
    man, woman = clips.speaker.within(dev), clips.speaker.within(test)
    if len(man) != 1 or len(woman) != 1 or (first & clips.known & ~dev & ~test).any():
        raise UserError(
            f"iemocap_ses01 needs one man and one woman in session {names[0]}, but finds the men ({listed(man)}) and the women "
            f"({listed(woman)}) among the speakers {listed(clips.speaker.within(first))}; pack the corpus with genders"
        )
    side = np.where(first, NOWHERE, TRAIN).astype(np.int8)
    side[dev], side[test] = DEV, TEST
    note = f"iemocap_ses01: dev and test speaker talk to each other in the same session; one test speaker ({woman[0]})."
    words = (f"sessions {listed(names[1:])}", f"session {names[0]}, man {man[0]}", f"session {names[0]}, woman {woman[0]}")
    return [Draft(side, words)], [note]


def _superb(clips: Clips, count: int | None) -> Drafts:
    names = _five_sessions(clips, "superb")
    if count not in (None, len(names)):
        raise UserError(f"{count} folds were asked for, but superb makes {len(names)}, one of each session: ask for 5")
    drafts = []
    for k, name in enumerate(names):
        tested = clips.session.codes == clips.session.names.index(name)
        pool = np.flatnonzero(~tested & clips.known)
        shuffled = np.random.default_rng(k).permutation(pool)
        side = np.where(tested, NOWHERE, TRAIN).astype(np.int8)
        side[shuffled[int(_SUPERB_TRAINING_SHARE * len(pool)) :]] = DEV
        side[tested & clips.known] = TEST
        others = listed([other for other in names if other != name])
        words = (f"a random 80 % of sessions {others}", f"the other 20 % of sessions {others}", f"session {name}")
        drafts.append(Draft(side, words))
    note = (
        "superb: dev clips are of training speakers, so the epoch is chosen on voices that the model knows; the random 80 / 20 "
        "split follows SUPERB's rule but is drawn here, so it is not clip for clip that of s3prl."
    )
    return drafts, [note]


_PROTOCOLS: dict[str, Callable[[Clips, int | None], Drafts]] = {
    "leave_one_session_out": _leave_one_session_out,
    "leave_one_speaker_out": _leave_one_speaker_out,
    "speaker_groups": _speaker_groups,
    "given_split": _given_split,
    "iemocap_ses01": _iemocap_ses01,
    "superb": _superb,
}
PROTOCOLS: tuple[str, ...] = tuple(_PROTOCOLS)


def _joined(words: Sequence[str]) -> str:
    """`session A, session B` -> `sessions A, B`; groups stay apart: `speakers 03, 08; speakers 09, 10`."""
    if all(word.count(" ") == 1 for word in words) and len(words) > 1:
        return words[0].split(" ")[0] + "s " + ", ".join(word.split(" ")[1] for word in words)
    return "; ".join(words)


def _need_sessions(clips: Clips, protocol: str) -> None:
    without = int((clips.known & (clips.session.codes < 0)).sum())
    if without:
        raise UserError(
            f"{protocol} needs sessions, but {without} of {len(clips)} clips have none "
            f"(corpus {listed(clips.corpus.within(clips.session.codes < 0))}): use the protocol speaker_groups or "
            "leave_one_speaker_out"
        )


def _need_three(names: Sequence[str], noun: str, protocol: str) -> None:
    if len(names) < 3:
        raise UserError(
            f"{protocol} needs at least three {noun}s, one each for training, dev and test, but the corpus has {len(names)} "
            f"({listed(names) or 'none known'}): use another protocol, or several corpora together"
        )


def _need_one_fold(protocol: str, count: int | None) -> None:
    if count not in (None, 1):
        raise UserError(f"{count} folds were asked for, but {protocol} is one fixed split: leave the number out, or ask for 1")


def _five_sessions(clips: Clips, protocol: str) -> tuple[str, ...]:
    """IEMOCAP's five sessions, in order. Raises UserError unless there is one corpus whose sessions' names end in 1 to 5."""
    _need_sessions(clips, protocol)
    names = clips.session.within(clips.known)
    numbers = [int(match[0]) if (match := re.search(r"\d+$", name)) else None for name in names]
    if len(clips.corpus.names) > 1 or numbers != [1, 2, 3, 4, 5]:
        raise UserError(
            f"{protocol} is defined over IEMOCAP's five sessions, but the corpus {listed(clips.corpus.names)} has "
            f"{len(names)} ({listed(names)}): use leave_one_session_out or speaker_groups"
        )
    return names
