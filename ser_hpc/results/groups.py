"""Score the test clips group by group: each speaker, corpus, gender, language, intensity, and length of a clip.

A mean over all clips can hide that a model fails for some people. Scores of a group are pooled, as the run's own: its test
clips of all folds of a seed as one set, averaged over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ser_hpc.results import plan_checks
from ser_hpc.results.intervals import Interval, uar_interval
from ser_hpc.results.shard_clips import WORDS, ShardClips
from ser_hpc.tasks import metrics

if TYPE_CHECKING:
    from ser_hpc.results.cross_validation import CrossValidation

SPEAKER, CORPUS, LENGTH = "speaker", "corpus", "length"
_LEAST_SPREAD_S = 0.2  # of lengths, from which on they are told apart
_ONE_UNIT = "a single speaker"


@dataclass(frozen=True, slots=True)
class Group:
    """Test clips that have something in common. `uar`: over the classes that the group has; `num_speakers`: None where one is
    unknown."""

    by: str
    name: str
    num_clips: int
    num_speakers: int | None
    uar: float
    wa: float
    interval: Interval


def shown_groups(groups: Sequence[Group], most: int) -> list[Group]:
    """Order groups for people: speakers by UAR, the lowest first, of more than `most` those with the lowest and the highest;
    then all others."""
    speakers = sorted((group for group in groups if group.by == SPEAKER), key=lambda group: (group.uar, group.name))
    if len(speakers) > most:
        speakers = [*speakers[: most // 2], *speakers[-(most - most // 2) :]]
    return [*speakers, *(group for group in groups if group.by != SPEAKER)]


@dataclass(frozen=True, slots=True)
class _Tested:
    """All test predictions, one a row: numbers of seed, clip, true and predicted class; `names` and `speakers` (-1:
    unknown) are of each clip."""

    seeds: np.ndarray
    clips: np.ndarray
    truths: np.ndarray
    predicted: np.ndarray
    names: tuple[str, ...]
    speakers: np.ndarray


def score_groups(cv: CrossValidation, shards: ShardClips | None) -> tuple[Group, ...]:
    """Score every group of the finished trials' test clips, kind by kind; a kind with one group alone tells nothing."""
    if not cv.trials:
        return ()
    tested, of = _read(cv)
    members = {by: _sorted(group_of) for by, group_of in of.items()}
    if shards is not None:
        members |= {column: _sorted(shards.words(column)) for column in WORDS}
        members[LENGTH] = _by_length(shards.seconds())
    classes, complete = len(cv.classes), not cv.missing
    return tuple(group for by, group_of in members.items() for group in _score_kind(by, group_of, tested, classes, complete))


def _read(cv: CrossValidation) -> tuple[_Tested, dict[str, dict[str, str]]]:
    """Number all test predictions; return too each clip's known speaker, and corpus, by name of the clip."""
    same, index = cv.plan.get("speaker_aliases", {}), {name: i for i, name in enumerate(cv.classes)}
    seeds = {seed: i for i, seed in enumerate(sorted({t.trial.seed for t in cv.trials}))}
    number: dict[str, int] = {}
    speaker, corpus = {}, {}
    rows = []
    for t in cv.trials:
        for p in t.test:
            clip = plan_checks.clip_name(p)
            rows.append((seeds[t.trial.seed], number.setdefault(clip, len(number)), index[p.truth], index[p.predicted]))
            corpus[clip] = p.corpus
            if plan_checks.is_known(p):
                speaker[clip] = plan_checks.speaker_id(p, same)
    people = {name: i for i, name in enumerate(sorted(set(speaker.values())))}
    whose = np.array([people.get(speaker.get(clip, ""), -1) for clip in number], dtype=np.int64)
    columns = np.array(rows, dtype=np.int64).T
    return _Tested(columns[0], columns[1], columns[2], columns[3], tuple(number), whose), {SPEAKER: speaker, CORPUS: corpus}


def _sorted(group_of: Mapping[str, str]) -> dict[str, str]:
    """Order clips by the names of their groups: groups are shown in the order in which they come."""
    return dict(sorted(group_of.items(), key=lambda item: item[1]))


def _by_length(seconds: Mapping[str, float]) -> dict[str, str]:
    """Sort clips into thirds by their length; none where all are about as long."""
    low, high = np.quantile([*seconds.values()], (1 / 3, 2 / 3)).round(1)
    if high - low < _LEAST_SPREAD_S:
        return {}
    names = (f"under {low:.1f} s", f"{low:.1f} to {high:.1f} s", f"{high:.1f} s and longer")
    ordered = sorted(seconds.items(), key=lambda item: item[1])
    return {clip: names[int(length >= low) + int(length >= high)] for clip, length in ordered}


def _score_kind(by: str, group_of: Mapping[str, str], tested: _Tested, classes: int, complete: bool) -> list[Group]:
    occurring = {group_of[clip] for clip in tested.names if clip in group_of}
    names = [name for name in dict.fromkeys(group_of.values()) if name in occurring]
    if len(names) < 2:
        return []
    number = {name: i for i, name in enumerate(names)}
    of_clip = np.array([number.get(group_of.get(clip, ""), -1) for clip in tested.names])
    of_row = of_clip[tested.clips]
    known = of_row >= 0
    counts = np.zeros((len(names), int(tested.seeds.max()) + 1, classes, classes), dtype=np.int64)
    np.add.at(counts, (of_row[known], tested.seeds[known], tested.truths[known], tested.predicted[known]), 1)
    return [
        Group(
            by=by,
            name=name,
            num_clips=int((of_clip == i).sum()),
            num_speakers=None if (who := tested.speakers[of_clip == i]).min() < 0 else len(np.unique(who)),
            uar=float(np.nanmean(metrics.uar(counts[i]))),
            wa=float(np.nanmean(metrics.wa(counts[i]))),
            interval=_interval(by, of_row == i, tested, classes, complete),
        )
        for i, name in enumerate(names)
    ]


def _interval(by: str, rows: np.ndarray, tested: _Tested, classes: int, complete: bool) -> Interval:
    if by == SPEAKER:
        return Interval(None, _ONE_UNIT)
    if not complete:
        return Interval(None, "trials are missing")
    numbers, speakers = np.unique(tested.speakers[tested.clips[rows]], return_inverse=True)
    if numbers[0] < 0:
        return Interval(None, "some test clips are of unknown speakers")
    counts = np.zeros((int(tested.seeds.max()) + 1, len(numbers), classes, classes), dtype=np.int64)
    np.add.at(counts, (tested.seeds[rows], speakers, tested.truths[rows], tested.predicted[rows]), 1)
    return uar_interval(counts, None)
