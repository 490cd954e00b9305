"""Show a comparison of systems, on the terminal and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ser_hpc.core.errors import counted
from ser_hpc.results import markdown
from ser_hpc.results.comparison import MIN_SPEAKERS, Difference
from ser_hpc.results.intervals import mean_uar, uar_interval
from ser_hpc.results.report_json import json_bounds, json_number
from ser_hpc.results.speaker_counts import SpeakerCounts
from ser_hpc.results.systems import System
from ser_hpc.tasks.metrics import recalls

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_BESIDE = 7  # systems, in 80 columns; two have room for the spread over their seeds
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def comparison_screen(
    systems: Sequence[System], counts: Sequence[SpeakerCounts], found: Sequence[Difference]
) -> RenderableType:
    """Lay out the systems, a sentence and a row for each pair, then folds and classes; for 80 columns."""
    from rich.console import Group
    from rich.text import Text

    names = system_letters(systems)
    lines: list[RenderableType] = [_systems_table(systems, counts, names), Text("")]
    lines += [Text(difference_sentence(each, names)) for each in found]
    lines += [Text(note) for note in comparison_notes(found)]
    groups = [slice(start, start + _BESIDE) for start in range(0, len(systems), _BESIDE)]
    trials = [_trials_table(systems[some], names[some]) for some in groups]
    return Group(*lines, Text(""), *trials, *(_classes_table(systems[some], counts[some], names[some]) for some in groups))


def system_letters(systems: Sequence[System]) -> list[str]:
    """Return a short name for each system: A, B, C ..., S27 and so on."""
    return [_LETTERS[i] if i < len(_LETTERS) else f"S{i + 1}" for i in range(len(systems))]


def difference_sentence(of: Difference, names: Sequence[str]) -> str:
    """Say one difference in words."""
    value = f"{names[of.one]} minus {names[of.other]}: {100 * of.value:+.1f} points of pooled UAR"
    if of.interval.bounds is None:
        return f"{value}, no interval ({of.interval.reason})."
    low, high = (100 * bound for bound in of.interval.bounds)
    over = f"{of.interval.num_units} {of.interval.unit}s"
    test = "no test" if of.p is None else f"p {_p(of.p)}"
    if of.corrected_p is not None and len(names) > 2:
        test += f" (by Holm {_p(of.corrected_p)})"
    seen = "" if of.detectable is None else f"; smallest difference to be seen {100 * of.detectable:.1f}"
    return f"{value} [{low:+.1f}, {high:+.1f}] over {over}; {test}{seen}."


def comparison_notes(found: Sequence[Difference]) -> list[str]:
    """Say how the numbers are made, and what they do not tell."""
    speakers = found[0].interval.num_speakers
    notes = [
        "Intervals: jackknife of the paired difference, 95 %. p: sign-flip test over speakers, seeds averaged. The smallest "
        "difference to be seen is found in 80 of 100 such comparisons."
    ]
    if speakers < MIN_SPEAKERS:
        notes.append(f"No test with {counted(speakers, 'speaker')}: p could not fall below .05.")
    elif len(found) > 1:
        notes.append(f"Holm's correction is for {len(found)} pairs; intervals are of each pair alone, not corrected.")
        if (least := len(found) * 2 / 2**speakers) > 0.05:
            notes.append(
                f"With {counted(speakers, 'speaker')} and so many pairs no corrected p can be below {_p(least).lstrip('= ')}, "
                "however large a difference: compare fewer systems at once."
            )
    return notes


def comparison_json(systems: Sequence[System], counts: Sequence[SpeakerCounts], found: Sequence[Difference]) -> dict[str, Any]:
    """Return the comparison for programs: scores in [0, 1], null where there is none."""
    return {
        "format": 1,
        "classes": systems[0].classes,
        "speakers": list(counts[0].speakers),
        "systems": [
            {
                "name": system.name,
                "seeds": list(of.seeds),
                "pooled_uar": float(mean_uar(of.confusions.sum(1))),
                "ci95": json_bounds(uar_interval(of.confusions, of.folds)),
                "recall": dict(zip(system.classes, map(json_number, recalls(of.confusions.sum((0, 1)))), strict=True)),
                "trials": [
                    {"seed": trial.seed, "fold": trial.fold, "uar": json_number(score)}
                    for trial, score in sorted(system.uar_by_trial().items())
                ],
            }
            for system, of in zip(systems, counts, strict=True)
        ],
        "differences": [
            {
                "one": systems[of.one].name,
                "other": systems[of.other].name,
                "difference": of.value,
                "ci95": json_bounds(of.interval),
                "unit": of.interval.unit,
                "p": of.p,
                "p_holm": of.corrected_p,
                "smallest_seen": of.detectable,
                "recall": dict(zip(systems[0].classes, map(json_number, of.recalls), strict=True)),
            }
            for of in found
        ],
    }


def _systems_table(systems: Sequence[System], counts: Sequence[SpeakerCounts], names: Sequence[str]) -> RenderableType:
    table = _table(["", "system", "seeds", "pooled UAR", "95 % interval"], left=(0, 1))
    for name, system, of in zip(names, systems, counts, strict=True):
        bounds = uar_interval(of.confusions, of.folds).bounds
        interval = f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else "-"
        score = markdown.format_score(float(mean_uar(of.confusions.sum(1))))
        table.add_row(*_cells(name, system.name, str(len(of.seeds)), score, interval))
    return table


def _trials_table(systems: Sequence[System], names: Sequence[str]) -> RenderableType:
    """UAR of each fold, over the system's seeds: the mean, and of two systems the least and most where there are several."""
    table = _table(["UAR in fold", *names])
    scores = [system.uar_by_trial() for system in systems]
    for fold in sorted({trial.fold for trial in scores[0]}):
        row = []
        for of in scores:
            here = [score for trial, score in sorted(of.items()) if trial.fold == fold]
            spread = f" ({min(here):.3f} to {max(here):.3f})" if len(here) > 1 and len(names) <= 2 else ""
            row.append(markdown.format_score(float(np.mean(here))) + spread)
        table.add_row(*_cells(str(fold), *row))
    return table


def _classes_table(systems: Sequence[System], counts: Sequence[SpeakerCounts], names: Sequence[str]) -> RenderableType:
    table = _table(["recall of", "clips", *names], left=(0,))
    each = [recalls(of.confusions.sum((0, 1))) for of in counts]
    clips = counts[0].confusions[0].sum((0, -1))
    for i, name in enumerate(systems[0].classes):
        table.add_row(*_cells(name, str(int(clips[i])), *(markdown.format_score(float(of[i])) for of in each)))
    return table


def _table(header: Sequence[str], left: Sequence[int] = ()) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i in left else "right", overflow="fold")
    return table


def _cells(*texts: str) -> list[RenderableType]:
    from rich.text import Text

    return [Text(text) for text in texts]


def _p(value: float) -> str:
    return f"= {value:.3f}".replace("= 0.", "= .") if value >= 0.001 else "< .001"
