"""Draw the figures of a run: those of its page, and as files for a paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ser_hpc.core.atomic_io import write_text
from ser_hpc.core.errors import UserError
from ser_hpc.results.cross_validation import CrossValidation
from ser_hpc.results.details import Details
from ser_hpc.results.figures.confusion_matrix import confusion_matrix
from ser_hpc.results.figures.dot_plot import Row, dot_plot
from ser_hpc.results.figures.learning import learning_figure
from ser_hpc.results.figures.pdf import write_pdf
from ser_hpc.results.figures.reliability_diagram import reliability_diagram
from ser_hpc.results.figures.shapes import Figure
from ser_hpc.results.figures.svg import to_svg_file
from ser_hpc.results.groups import SPEAKER, Group, shown_groups

NAMES = ("confusion", "classes", "folds", "reliability", "learning", "speakers", "groups")
_SPEAKERS = 24  # drawn: of more, those with the lowest and the highest UAR


def draw_all(cv: CrossValidation, details: Details) -> dict[str, Figure]:
    """Draw those of NAMES that there is something to draw for."""
    assert cv.finished is not None
    chance = 1 / len(cv.classes)
    figures = {
        "confusion": confusion_matrix(cv.finished.confusion, cv.classes),
        "classes": dot_plot("Recall of each class", _classes(cv), "recall"),
        "folds": dot_plot("UAR of each fold", _folds(cv), "UAR", chance),
        "reliability": reliability_diagram(details.reliability),
    }
    if details.curves:
        figures["learning"] = learning_figure(details.curves)
    shown = shown_groups(details.groups, _SPEAKERS)
    speakers = [_group(group) for group in shown if group.by == SPEAKER]
    others = [_group(group) for group in shown if group.by != SPEAKER]
    if speakers:
        figures["speakers"] = dot_plot("UAR of each speaker", speakers, "UAR", chance)
    if others:
        figures["groups"] = dot_plot("UAR of groups of clips", others, "UAR", chance)
    return figures


def write_figures(folder: Path, cv: CrossValidation, details: Details) -> list[Path]:
    """Write every figure as SVG and PDF; return the files. Raises UserError where nothing can be written, or without
    matplotlib, which PDF needs."""
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in draw_all(cv, details).items():
            written += [folder / f"{name}.svg", folder / f"{name}.pdf"]
            write_text(written[-2], to_svg_file(figure))
            write_pdf(written[-1], figure)
    except OSError as error:
        raise UserError(f"the figures cannot be written into {folder}: {error.strerror or error}") from error
    return written


def speakers_caption(number: int) -> str:
    """Say which speakers are drawn."""
    if number <= _SPEAKERS:
        return "UAR of each test speaker, over the classes that they have; the lowest first."
    half = _SPEAKERS // 2
    return f"UAR of test speakers, over the classes that they have: the {half} lowest and the {half} highest of {number:,}."


def _classes(cv: CrossValidation) -> list[Row]:
    return [Row(of.name, of.recall, of.recall_interval.bounds, note=f"{of.num_clips} clips") for of in cv.by_class]


def _folds(cv: CrossValidation) -> list[Row]:
    """Average each fold over its seeds; a fold without a finished trial is left out."""
    rows = []
    for fold in cv.plan["folds"]:
        scores = [t.uar for t in cv.trials if t.trial.fold == fold["fold"]]
        if scores:
            each = tuple(scores) if len(scores) > 1 else ()
            rows.append(Row(f"fold {fold['fold']}", float(np.mean(scores)), others=each, note=fold["test"]["description"]))
    return rows


def _group(of: Group) -> Row:
    return Row(of.name, of.uar, of.interval.bounds, note=f"{of.by}, {of.num_clips} clips")
