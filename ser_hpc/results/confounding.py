"""Describe what in the choice of clips tells classes apart, whatever they sound like: speakers, and class priors.

Where nearly every clip of a speaker is of one class, emotion and person are one, and speaker-disjoint folds cannot part them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ser_hpc.results import plan_checks
from ser_hpc.run.predictions import Prediction

CONFOUNDED = 0.9  # share of clips in their speaker's majority class from which on emotion and person cannot be told apart


@dataclass(frozen=True, slots=True)
class Confounding:
    """`speaker_share`: the part of the test clips that are of their speaker's most frequent class (None: no speaker is known);
    `class_share`: that are of the most frequent class of all, which is what it would be if all speakers were alike.
    `prior_gap`: the largest difference between a class's share of training and of test clips, and where: (class, fold, training
    share, test share)."""

    speaker_share: float | None
    class_share: float
    prior_gap: tuple[str, int, float, float]


def find_confounding(plan: Mapping[str, Any], tested: Iterable[Prediction]) -> Confounding | None:
    """Describe the test clips of a run, each given once, and the folds of its plan; None where there are no test clips."""
    spoken: dict[str, Counter[str]] = defaultdict(Counter)
    total: Counter[str] = Counter()
    for p in tested:
        total[p.truth] += 1
        if plan_checks.is_known(p):
            spoken[plan_checks.speaker_id(p, plan.get("speaker_aliases", {}))][p.truth] += 1
    if not total:
        return None
    known = sum(counts.total() for counts in spoken.values())
    most = sum(max(counts.values()) for counts in spoken.values())
    gaps = [(name, fold["fold"], *_shares(fold, name)) for fold in plan["folds"] for name in plan["classes"]]
    return Confounding(
        speaker_share=most / known if known else None,
        class_share=max(total.values()) / total.total(),
        prior_gap=max(gaps, key=lambda gap: abs(gap[2] - gap[3])),
    )


def confounding_warning(speaker_share: float, class_share: float, what: str) -> str | None:
    """Say that emotion and person are nearly one, where they are; `what`: the clips that the shares are of."""
    if not speaker_share >= CONFOUNDED > class_share:
        return None
    return (
        f"{speaker_share:.0%} of the {what} are of their speaker's most frequent class: emotion and person are nearly one "
        "here, and speaker-disjoint folds cannot part them."
    )


def _shares(fold: Mapping[str, Any], name: str) -> tuple[float, float]:
    """Return the class's share of a fold's training part, and of its test part."""
    train, test = (fold[part]["classes"].get(name, 0) / max(1, fold[part]["num_clips"]) for part in ("train", "test"))
    return train, test
