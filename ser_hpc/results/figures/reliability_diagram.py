"""Draw a reliability diagram (Guo et al. 2017): how often predictions of a confidence are right."""

from __future__ import annotations

from ser_hpc.results.figures.scales import Scale
from ser_hpc.results.figures.shapes import WIDTH, Box, Dot, Figure, Line, Shape, Text
from ser_hpc.tasks.reliability import BINS, Reliability

_LEFT, _TOP, _HEIGHT, _CLIPS, _BOTTOM = 34.0, 22.0, 200.0, 44.0, 34.0


def reliability_diagram(of: Reliability) -> Figure:
    """Draw accuracy by confidence above the number of predictions of each confidence; on the diagonal, confidence is right."""
    across, up = Scale(0, 1, _LEFT, WIDTH - 8), Scale(0, 1, _TOP + _HEIGHT, _TOP)
    floor = _TOP + _HEIGHT + 8 + _CLIPS
    shapes: list[Shape] = [Text(0, _TOP - 9, "share that is right", bold=True)]
    for tick in up.ticks():
        shapes += [
            Line(((across.start, up(tick)), (across.end, up(tick)))),
            Text(_LEFT - 6, up(tick) + 4, f"{tick:g}", "end", "muted"),
        ]
        shapes += [Text(across(tick), floor + 14, f"{tick:g}", "middle", "muted")]
    shapes += [Line(((across(0), up(0)), (across(1), up(1))), "ink", gap=True)]
    most = int(of.clips.max())
    filled = [i for i in range(BINS) if of.clips[i]]
    abouts = {i: f"confidence {of.confidence[i]:.2f}: {of.accuracy[i]:.2f} right, of {of.clips[i]}" for i in filled}
    for i in filled:
        low, high, tall = across(i / BINS), across((i + 1) / BINS), round(_CLIPS * int(of.clips[i]) / most, 1)
        width = round(high - low - 2, 1)
        shapes += [Box(round(low + 1, 1), round(floor - tall, 1), width, tall, "muted", 0.6, abouts[i])]
    points = [(across(float(of.confidence[i])), up(float(of.accuracy[i]))) for i in filled]
    shapes += [Line(tuple(points), "one", 1.5)] if len(points) > 1 else []
    shapes += [Dot(x, y, 4.5, "one", title=abouts[i]) for i, (x, y) in zip(filled, points, strict=True)]
    shapes += [
        Text(_LEFT - 6, floor - _CLIPS + 8, f"{most:,}", "end", "muted", 10),
        Text((_LEFT + WIDTH) / 2, floor + 29, "confidence; bars: number of predictions", "middle", "muted"),
    ]
    title = f"Reliability diagram; expected calibration error {of.error:.3f}"
    return Figure(title, floor + _BOTTOM, tuple(shapes))
