"""Write a comparison of systems as a LaTeX table, for a paper: booktabs, a row a system."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ser_hpc.results import markdown
from ser_hpc.results.comparison import Difference
from ser_hpc.results.intervals import mean_uar, uar_interval
from ser_hpc.results.speaker_counts import SpeakerCounts
from ser_hpc.results.systems import System
from ser_hpc.tasks.metrics import macro_f1, wa

_ESCAPES = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "\\": "\\textbackslash{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
}


def comparison_latex(systems: Sequence[System], counts: Sequence[SpeakerCounts], found: Sequence[Difference]) -> str:
    """Return the table: mean and deviation of UAR over trials, pooled UAR with its 95 % interval, accuracy (WA) and macro-F1
    pooled, and the p of the difference from the first system, by Holm where there are several pairs."""
    against = {of.other: of.corrected_p for of in found if of.one == 0}
    rows = [_row(i, systems[i], counts[i], against.get(i)) for i in range(len(systems))]
    head = "system & UAR & pooled UAR [95\\,\\%] & WA & macro-F1 & $p$"
    lines = ["% \\usepackage{booktabs}", "\\begin{tabular}{lccccc}", "\\toprule", f"{head} \\\\", "\\midrule", *rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def escape_latex(text: str) -> str:
    """Write text so that LaTeX shows it as it is."""
    return "".join(_ESCAPES.get(letter, letter) for letter in text)


def _row(number: int, system: System, of: SpeakerCounts, p: float | None) -> str:
    scores = [*system.uar_by_trial().values()]
    spread = f" $\\pm$ {np.std(scores, ddof=1):.3f}" if len(scores) > 1 else ""
    pooled = of.confusions.sum(1)
    bounds = uar_interval(of.confusions, of.folds).bounds
    tested = "" if number == 0 else "--" if p is None else f"{p:.3f}" if p >= 0.001 else "$<$.001"
    cells = [
        escape_latex(system.name),
        f"{markdown.format_score(float(np.mean(scores)))}{spread}",
        f"{markdown.format_score(float(mean_uar(pooled)))} {markdown.format_bounds(bounds)}".rstrip(),
        *(markdown.format_score(float(score(pooled).mean())) for score in (wa, macro_f1)),
        tested,
    ]
    return " & ".join(cells) + " \\\\"
