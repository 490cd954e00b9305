"""Draw learning curves: dev UAR and training loss by epoch (or evaluation), with the one whose weights were tested."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ser_hpc.results.figures.scales import Scale, round_up
from ser_hpc.results.figures.shapes import WIDTH, Colour, Dot, Figure, Line, Shape, Text
from ser_hpc.results.learning_curves import LearningCurve

_LEFT, _TOP, _HEIGHT, _BETWEEN, _BOTTOM = 34.0, 20.0, 110.0, 30.0, 34.0
_SMALL_WIDTH, _SMALL_HEIGHT = 112.0, 64.0
_FAINT, _LEAST = 0.55, 0.1  # of a curve among several, among very many


def learning_figure(curves: Sequence[LearningCurve]) -> Figure:
    """Draw all trials over one another: dev UAR above, training loss below; a dot for each chosen epoch, or evaluation."""
    epochs, unit = max(len(curve.dev_uar) for curve in curves), curves[0].unit
    across = Scale(1, max(2, epochs), _LEFT, WIDTH - 8)
    highest = round_up(loss for curve in curves for loss in curve.train_loss)
    second = _TOP + _HEIGHT + _BETWEEN
    up = Scale(0, 1, _TOP + _HEIGHT, _TOP), Scale(0, highest, second + _HEIGHT, second)
    shapes = [*_axes(across, up[0], "dev UAR"), *_axes(across, up[1], "training loss")]
    opacity = 1.0 if len(curves) == 1 else max(_LEAST, min(_FAINT, 6 / len(curves)))
    for curve in curves:
        shapes += _curve(curve.dev_uar, across, up[0], "one", opacity)
        shapes += _curve(curve.train_loss, across, up[1], "two", opacity)
    for curve in curves:
        shapes += _chosen(curve, across, up[0], 4.0)
    below = second + _HEIGHT
    shapes += [Text(across(tick), below + 14, f"{tick:g}", "middle", "muted") for tick in across.ticks() if tick == int(tick)]
    shapes += [Text((_LEFT + WIDTH) / 2, below + 29, unit, "middle", "muted")]
    chosen = sorted(curve.chosen + 1 for curve in curves)
    title = f"Learning curves of {len(curves)} trials over {epochs} {unit}s; chosen {unit}s {chosen[0]} to {chosen[-1]}"
    return Figure(title, below + _BOTTOM, tuple(shapes))


def small_learning_figure(curve: LearningCurve) -> Figure:
    """Draw one trial small, to stand among many: dev UAR, training loss on a scale of its own, the chosen epoch."""
    across = Scale(1, max(2, len(curve.dev_uar)), 4, _SMALL_WIDTH - 4)
    up = Scale(0, 1, _SMALL_HEIGHT - 4, 16), Scale(0, round_up(curve.train_loss), _SMALL_HEIGHT - 4, 16)
    frame = Line(((0, _SMALL_HEIGHT - 1), (_SMALL_WIDTH, _SMALL_HEIGHT - 1)))
    shapes: list[Shape] = [frame, *_curve(curve.train_loss, across, up[1], "two", 1.0)]
    shapes += [*_curve(curve.dev_uar, across, up[0], "one", 1.0), *_chosen(curve, across, up[0], 3.0)]
    name = f"seed {curve.trial.seed} fold {curve.trial.fold}"
    shapes += [Text(0, 10, name, size=10), Text(_SMALL_WIDTH, 10, f"{curve.unit[:2]}. {curve.chosen + 1}", "end", "muted", 10)]
    return Figure(
        f"{name}: {curve.unit} {curve.chosen + 1} of {len(curve.dev_uar)} chosen", _SMALL_HEIGHT, tuple(shapes), _SMALL_WIDTH
    )


def _axes(across: Scale, up: Scale, name: str) -> list[Shape]:
    shapes: list[Shape] = [Text(0, up.end - 8, name, colour="ink", bold=True)]
    for tick in up.ticks(5):
        y = up(tick)
        shapes += [Line(((across.start, y), (across.end, y))), Text(across.start - 6, y + 4, f"{tick:g}", "end", "muted")]
    return shapes


def _curve(values: Sequence[float], across: Scale, up: Scale, colour: Colour, opacity: float) -> list[Shape]:
    points = tuple((across(i + 1), up(value)) for i, value in enumerate(values) if not math.isnan(value))
    return [Line(points, colour, 1.5, opacity)] if len(points) > 1 else []


def _chosen(curve: LearningCurve, across: Scale, up: Scale, radius: float) -> list[Shape]:
    if not curve.chosen < len(curve.dev_uar) or math.isnan(value := curve.dev_uar[curve.chosen]):
        return []
    about = f"{curve.trial}: {curve.unit} {curve.chosen + 1}, dev UAR {value:.3f}"
    return [Dot(across(curve.chosen + 1), up(value), radius, "ink", diamond=True, title=about)]
