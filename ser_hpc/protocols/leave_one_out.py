"""Leave-one-out protocols over sessions, speakers or groups of speakers, within every corpus.

Fold k tests what comes k-th and chooses on what comes next, so over the folds a clip is tested once and is dev once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ser_hpc.core.errors import UserError, listed
from ser_hpc.protocols.clip_table import DEV, NOWHERE, TEST, TRAIN, ClipTable, FoldDraft, ProtocolOptions
from ser_hpc.protocols.speaker_balance import FEWEST, SpeakerTable

_GROUPS = 5  # of speakers, where nobody says how many
_MOST_FOLDS = 200  # more is a slip: leaving out each of thousands of speakers is thousands of trainings


def leave_one_session_out(clips: ClipTable, options: ProtocolOptions) -> tuple[list[FoldDraft], list[str]]:
    """Make folds, of which fold k tests the k-th session of every corpus; a corpus that has none trains.

    Raises UserError where a known speaker's clip has no session, sessions are too few, or `count` is another number.
    """
    need_sessions(clips, "leave_one_session_out")
    corpus_of = np.full(len(clips.session.names), -1)
    corpus_of[clips.session.codes[clips.has_known_speaker]] = clips.corpus.codes[clips.has_known_speaker]
    sessions = np.flatnonzero(corpus_of >= 0)  # those of unknown speakers alone are never left out
    names = [clips.session.names[code] for code in sessions]
    corpus = corpus_of[sessions]
    of_corpus = np.bincount(corpus, minlength=len(clips.corpus.names))
    by_corpus = np.argsort(corpus, kind="stable")
    place = np.empty_like(by_corpus)
    place[by_corpus] = np.arange(len(corpus)) - np.repeat(np.cumsum(of_corpus) - of_corpus, of_corpus)
    most = int(of_corpus.max(initial=0))
    _need_three(most, "session", "leave_one_session_out", names, clips)
    _check_count(options.count, most, "session", "leave_one_session_out", names, clips)
    unit = np.full(len(corpus_of) + 1, -1)
    unit[sessions] = np.arange(len(sessions))
    descriptions = [f"session {name}" for name in names]
    notes = [
        f"{clips.corpus.names[code]} has {count} of the {most} sessions: in folds {count} to {most - 1} all of it trains."
        for code, count in enumerate(of_corpus.tolist())
        if 0 < count < most
    ]
    next_place = (place - 1) % of_corpus[corpus]
    return _rotate(clips, unit[clips.session.codes], descriptions, place, next_place, "the other sessions"), notes


def leave_one_speaker_out(clips: ClipTable, options: ProtocolOptions) -> tuple[list[FoldDraft], list[str]]:
    """Make a fold for each speaker. Raises UserError where there are fewer than three or too many, or `count` differs."""
    speakers = SpeakerTable.from_clips(clips)
    unit = speakers.units()
    count = int(unit.max(initial=-1)) + 1
    _need_three(count, "speaker", "leave_one_speaker_out", clips.speaker.names, clips)
    _check_count(options.count, count, "speaker", "leave_one_speaker_out", clips.speaker.names, clips)
    return _rotate_speakers(clips, unit, count, "the other speakers"), _kept_together(clips, speakers)


def speaker_groups(clips: ClipTable, options: ProtocolOptions) -> tuple[list[FoldDraft], list[str]]:
    """Make a fold for each balanced group of speakers, a part of every corpus where it has enough of them.

    Raises UserError where the groups would be fewer than three or more than the speakers.
    """
    speakers = SpeakerTable.from_clips(clips)
    most = int(speakers.units().max(initial=-1)) + 1
    _need_three(most, "speaker", "speaker_groups", clips.speaker.names, clips)
    num_groups = min(_GROUPS, most) if options.count is None else options.count
    if not 3 <= num_groups <= most:
        known = f"{listed(clips.speaker.names)}{_counted(clips)}"
        raise UserError(
            f"{num_groups} folds were asked for, but speaker_groups needs at least 3 groups (training, dev, test) and no more "
            f"than speakers, of whom {most} are known ({known}): ask for 3 to {most} folds"
        )
    return _rotate_speakers(clips, speakers.groups(num_groups), num_groups, "the other groups"), _kept_together(clips, speakers)


def _rotate_speakers(clips: ClipTable, group: np.ndarray, count: int, rest: str) -> list[FoldDraft]:
    """Leave out one group of speakers after the other. `group`: of each speaker, (num_speakers,)."""
    members = [[clips.speaker.names[i] for i in np.flatnonzero(group == k)] for k in range(count)]
    descriptions = [f"speakers {listed(names)}" if len(names) > 1 else f"speaker {names[0]}" for names in members]
    fold = np.arange(count)
    return _rotate(clips, np.append(group, -1)[clips.speaker.codes], descriptions, fold, (fold - 1) % count, rest)


def _rotate(
    clips: ClipTable, unit: np.ndarray, descriptions: Sequence[str], tested: np.ndarray, chosen_on: np.ndarray, rest: str
) -> list[FoldDraft]:
    """Make the folds, where unit u is tested in fold `tested[u]`, is dev in fold `chosen_on[u]` and trains in the others.

    `unit`: of each clip, int (num_clips,), -1 = in none: always training. `descriptions`: of each unit. `rest`: what trains.
    """
    drafts = []
    for fold in range(int(tested.max()) + 1):
        of_unit = np.full(len(descriptions) + 1, TRAIN, dtype=np.int8)
        of_unit[:-1][chosen_on == fold] = DEV
        of_unit[:-1][tested == fold] = TEST  # a single session has no next one to be dev
        side = of_unit[unit]
        side[~clips.has_known_speaker & (side != TRAIN)] = NOWHERE
        train, dev, test = (
            [descriptions[int(u)] for u in np.flatnonzero(of_unit[:-1] == number)] for number in (TRAIN, DEV, TEST)
        )
        drafts.append(FoldDraft(side, (_joined(train) if len(train) <= 8 else rest, _joined(dev), _joined(test))))
    return drafts


def _joined(descriptions: Sequence[str]) -> str:
    """Join `session A, session B` to `sessions A, B`; groups stay apart: `speakers 03, 08; speakers 09, 10`."""
    if all(description.count(" ") == 1 for description in descriptions) and len(descriptions) > 1:
        return descriptions[0].split(" ")[0] + "s " + listed([description.split(" ")[1] for description in descriptions])
    return "; ".join(descriptions)


def need_sessions(clips: ClipTable, protocol: str) -> None:
    """Raise UserError where a clip of a known speaker has no session, or two names may be one session."""
    if clips.doubtful_sessions:
        raise UserError(
            f"{protocol} needs sessions, but these may be one each: {clips.doubtful_sessions}. Pack the corpus again with "
            "--same-session NAME=OTHER, or --distinct-session NAME=OTHER if they are not"
        )
    without = int((clips.has_known_speaker & (clips.session.codes < 0)).sum())
    if without:
        raise UserError(
            f"{protocol} needs sessions, but {without} of {len(clips)} clips have none "
            f"(corpus {listed(clips.corpus.names_in(clips.session.codes < 0))}): use the protocol speaker_groups or "
            "leave_one_speaker_out"
        )


def _need_three(count: int, noun: str, protocol: str, names: Sequence[str], clips: ClipTable) -> None:
    if count < FEWEST:
        found = count if len(clips.corpus.names) > 1 else len(names)
        raise UserError(
            f"{protocol} needs at least three {noun}s, one each for training, dev and test, but the corpus has {found} "
            f"({listed(names) or 'none known'}{_counted(clips)}): use another protocol, or several corpora together"
        )


def _check_count(count: int | None, folds: int, noun: str, protocol: str, names: Sequence[str], clips: ClipTable) -> None:
    if count not in (None, folds):
        raise UserError(
            f"{count} folds were asked for, but {protocol} makes one of each {noun} and the corpus has {folds} "
            f"({listed(names)}{_counted(clips)}): ask for {folds}, or use the protocol speaker_groups, which makes any number "
            "of groups"
        )
    if folds > _MOST_FOLDS:
        raise UserError(
            f"{protocol} would make {folds} folds, one of each {noun}, each a training of its own (at most {_MOST_FOLDS} "
            "are allowed): use the protocol speaker_groups"
        )


def _counted(clips: ClipTable) -> str:
    """Explain how sessions and speakers of several corpora are counted, for error messages."""
    if len(clips.corpus.names) == 1:
        return ""
    return f"; sessions are counted within a corpus, and a corpus of fewer than {FEWEST} known speakers counts as one"


def _kept_together(clips: ClipTable, speakers: SpeakerTable) -> list[str]:
    few = [members for members in speakers.corpora() if len(members) < FEWEST]
    names = sorted(clips.corpus.names[speakers.corpus[members[0]]] for members in few)
    if not names:
        return []
    return [f"Fewer than {FEWEST} known speakers, who stay together in every fold: {listed(names)}."]
