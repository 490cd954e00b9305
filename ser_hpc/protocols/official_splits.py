"""Divide clips as a corpus or a benchmark prescribes: given_split, iemocap_ses01, superb.

All protocols (`folds` calls them by name):

    leave_one_session_out   test = session k, dev = the next session, training = the others; so within each of several corpora
    leave_one_speaker_out   the same with speakers
    speaker_groups          the same with K groups of speakers that are alike in classes and genders, within each corpus
    leave_one_corpus_out    test = corpus k, dev = a fifth of the others' speakers, training = the rest of the others
    cross_corpus            test = the corpora named, the others as above; one fold
    given_split             the corpus's own train / dev / test column
    iemocap_ses01           training = sessions 2 to 5, dev = session 1's man, test = session 1's woman
    superb                  test = session k, the other sessions' clips at random 80 / 20 training / dev (Yang et al. 2021)

"Leave one out" is rotated: over the folds every clip is tested once, and a test part is read once, after the dev part has
chosen. Clips of unknown speakers can only train: they might be anyone, so they are never tested, and are in no part of a fold
that tests or chooses with their session, or tests their corpus. A corpus of fewer than three known speakers is never tested
with one of them in training.
"""

from __future__ import annotations

import re

import numpy as np

from ser_hpc.core.errors import UserError, listed
from ser_hpc.protocols.clip_table import DEV, NOWHERE, TEST, TRAIN, ClipTable, FoldDraft, ProtocolOptions
from ser_hpc.protocols.leave_one_out import need_sessions

_SUPERB_TRAINING_SHARE = 0.8

Drafts = tuple[list[FoldDraft], list[str]]  # the folds, and notes on what the protocol itself does


def given_split(clips: ClipTable, options: ProtocolOptions) -> Drafts:
    """Make one fold of the corpus's own split. Raises UserError where a corpus lacks one of its parts."""
    _need_one_fold("given_split", options.count)
    sides = {"train": TRAIN, "dev": DEV, "test": TEST}
    for code, corpus in enumerate(clips.corpus.names):
        rows = clips.corpus.codes == code
        found = {name: int((rows & clips.split.equals(name)).sum()) for name in clips.split.names_in(rows)}
        lacking = [name for name in sides if name not in found]
        if lacking:
            raise UserError(
                f"given_split needs a train, a dev and a test part, but {corpus} has no clip of {listed(lacking)} (it has "
                + (listed([f"{name} {number}" for name, number in found.items()]) or "no split at all")
                + "). Pack it with the column `split` filled (take dev from training speakers that are then only dev), or use "
                "the protocol speaker_groups"
            )
    side = np.full(len(clips), NOWHERE, dtype=np.int8)
    for name, number in sides.items():
        side[clips.split.equals(name)] = number
    notes = ["given_split: the parts are the corpus's own; what they share is counted, not mended."]
    descriptions = tuple(f"the corpus's own {name} part" for name in ("training", "dev", "test"))
    return [FoldDraft(side, (descriptions[0], descriptions[1], descriptions[2]))], notes


def iemocap_ses01(clips: ClipTable, options: ProtocolOptions) -> Drafts:
    """Make one fold, with dev and test from session 1. Raises UserError where that has not one man and one woman."""
    _need_one_fold("iemocap_ses01", options.count)
    names = _five_sessions(clips, "iemocap_ses01")
    first = clips.session.equals(names[0])
    dev, test = (first & clips.has_known_speaker & clips.gender.equals(gender) for gender in ("male", "female"))
    man, woman = clips.speaker.names_in(dev), clips.speaker.names_in(test)
    if len(man) != 1 or len(woman) != 1 or (first & clips.has_known_speaker & ~dev & ~test).any():
        raise UserError(
            f"iemocap_ses01 needs one man and one woman in session {names[0]}, but finds the men ({listed(man)}) and the women "
            f"({listed(woman)}) among the speakers {listed(clips.speaker.names_in(first))}; pack the corpus with genders"
        )
    side = np.where(first, NOWHERE, TRAIN).astype(np.int8)
    side[dev], side[test] = DEV, TEST
    note = f"iemocap_ses01: dev and test speaker talk to each other in the same session; one test speaker ({woman[0]})."
    descriptions = (
        f"sessions {listed(names[1:])}",
        f"session {names[0]}, man {man[0]}",
        f"session {names[0]}, woman {woman[0]}",
    )
    return [FoldDraft(side, descriptions)], [note]


def superb(clips: ClipTable, options: ProtocolOptions) -> Drafts:
    """Make five folds, one of each session, as SUPERB does. Raises UserError unless there are IEMOCAP's five sessions."""
    names = _five_sessions(clips, "superb")
    if options.count not in (None, len(names)):
        raise UserError(f"{options.count} folds were asked for, but superb makes {len(names)}, one of each session: ask for 5")
    drafts = []
    for k, name in enumerate(names):
        tested = clips.session.equals(name)
        pool = np.flatnonzero(~tested & clips.has_known_speaker)
        shuffled = np.random.default_rng(k).permutation(pool)
        side = np.where(tested, NOWHERE, TRAIN).astype(np.int8)
        side[shuffled[int(_SUPERB_TRAINING_SHARE * len(pool)) :]] = DEV
        side[tested & clips.has_known_speaker] = TEST
        others = listed([other for other in names if other != name])
        descriptions = (f"a random 80 % of sessions {others}", f"the other 20 % of sessions {others}", f"session {name}")
        drafts.append(FoldDraft(side, descriptions))
    note = (
        "superb: dev clips are of training speakers, so the epoch is chosen on voices that the model knows; the random 80 / 20 "
        "split follows SUPERB's rule but is drawn here, so it is not clip for clip that of s3prl."
    )
    return drafts, [note]


def _need_one_fold(protocol: str, count: int | None) -> None:
    if count not in (None, 1):
        raise UserError(f"{count} folds were asked for, but {protocol} is one fixed split: leave the number out, or ask for 1")


def _five_sessions(clips: ClipTable, protocol: str) -> tuple[str, ...]:
    """Return IEMOCAP's five sessions, in order. Raises UserError unless one corpus has sessions whose names end in 1 to 5."""
    need_sessions(clips, protocol)
    names = clips.session.names_in(clips.has_known_speaker)
    numbers = [int(match[0]) if (match := re.search(r"\d+$", name)) else None for name in names]
    if len(clips.corpus.names) > 1 or numbers != [1, 2, 3, 4, 5]:
        raise UserError(
            f"{protocol} is defined over IEMOCAP's five sessions, but the corpus {listed(clips.corpus.names)} has "
            f"{len(names)} ({listed(names)}): use leave_one_session_out or speaker_groups"
        )
    return names
