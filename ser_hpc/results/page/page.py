"""Make the content of report.html: a cross-validation for who never read the code.

Its numbers are those of report.json, its tables and sentences those of report.md.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ser_hpc.core.errors import counted
from ser_hpc.results import markdown, report_tables
from ser_hpc.results.cross_validation import CrossValidation
from ser_hpc.results.details import Details
from ser_hpc.results.figures import run_figures
from ser_hpc.results.figures.dot_plot import Row, dot_plot
from ser_hpc.results.figures.learning import small_learning_figure
from ser_hpc.results.figures.shapes import Figure, visible
from ser_hpc.results.figures.sound import spectrogram, waveform
from ser_hpc.results.figures.svg import to_svg
from ser_hpc.results.mistakes import SureMistake
from ser_hpc.results.page.style import style_sheet
from ser_hpc.results.page.template import TEMPLATE
from ser_hpc.results.report_json import to_json
from ser_hpc.results.report_summary import (
    DEMO_NOTE,
    HOW_PANEL,
    SCORE_NAMES,
    absent_classes,
    calibration_sentence,
    counted_predictions,
    incomplete_sentence,
    interval_words,
    protocol_words,
    reading_notes,
    report_headline,
    report_notes,
    unseen_groups,
)

if TYPE_CHECKING:
    from markupsafe import Markup

_MOST_SMALL = 300  # learning curves of a trial each


def to_html(cv: CrossValidation, *, audio: bool = False) -> str:
    """Return the content of report.html; `audio`: with the sound of the mistakes that are shown."""
    from jinja2 import Environment, StrictUndefined  # a twentieth of a second: not for every command that knows reports
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=shown)
    page.globals |= {"svg": lambda figure: Markup(to_svg(figure)), "style": Markup(style_sheet())}
    content = {**_head(cv), **_scores(cv), **_details(cv, audio), "tables": _tables(cv), "with_audio": audio}
    return page.from_string(TEMPLATE).render(content, sections=list(_sections(cv)))


def _head(cv: CrossValidation) -> dict[str, Any]:
    """What stands on the page of every run."""
    beside = cv.without_listening
    return {
        "name": cv.plan["name"],
        "title": "incomplete" if cv.missing else f"UAR {markdown.format_score(cv.scores.uar.pooled)}" if cv.scores else "",
        "complete": cv.scores is not None,
        "finished": cv.finished is not None,
        "missing": [f"{m.trial}: {m.reason}" for m in cv.missing],
        "incomplete": incomplete_sentence(cv) if cv.missing else "",
        "over": f"the {counted(len(cv.trials), 'finished trial')}" if cv.missing else "",
        "warnings": cv.warnings,
        "demo": DEMO_NOTE if cv.plan["demo"] else "",
        "headline": _strong(report_headline(cv)),
        "meaning": beside.meaning(cv.scores.uar.pooled if cv.scores else None) if beside else "",
        "remarks": beside.remarks() if beside else [],
        "how_panel": HOW_PANEL,
        "ledger": beside.ledger.sentence() if beside and beside.ledger else "",
        "about": cv.about,
        "protocol": protocol_words(cv.plan),
        "notes": report_notes(cv),
        "reading": reading_notes(cv),
    }


def _scores(cv: CrossValidation) -> dict[str, Any]:
    """The headline's numbers, straight from the content of report.json."""
    report, of = to_json(cv), cv.finished
    facts: list[tuple[str, Any]] = []
    if of is not None:
        facts += [("UAR, mean ± std", f"{markdown.format_score(of.uar.mean)} ± {markdown.format_score(of.uar.std)}")]
        if cv.scores:
            facts += [(SCORE_NAMES[score], _number(report, score)) for score in SCORE_NAMES if score != "uar"]
        facts += [("chance", f"{1 / len(cv.classes):.3f}"), ("test clips", f"{report['num_test']:,}")]
        facts += [("trials", f"{len(cv.trials)} of {report['num_trials']}" if cv.missing else str(report["num_trials"]))]
    return {"number": lambda path: _number(report, path), "facts": facts, "interval": interval_words(cv.interval)}


def _tables(cv: CrossValidation) -> dict[str, report_tables.Table | None]:
    beside, of = cv.without_listening, cv.finished
    counts, shares = report_tables.confusion_tables(cv, of) if of else (None, None)
    return {
        "scores": report_tables.score_table(cv.scores) if cv.scores else None,
        "seeds": report_tables.seed_table(cv.seeds) if len(cv.seeds) > 1 else None,
        "panel": report_tables.panel_table(beside.panel) if beside and beside.panel else None,
        "tasks": report_tables.task_table(cv) if cv.tasks else None,
        "classes": report_tables.class_table(cv, of) if of else None,
        "counts": counts,
        "shares": shares,
        "trials": report_tables.trial_table(cv),
        "groups": report_tables.group_table(cv.details.groups) if cv.details and cv.details.groups else None,
        "fold_parts": report_tables.fold_table(cv),
    }


def _details(cv: CrossValidation, audio: bool) -> dict[str, Any]:
    """Figures and sentences of the finished trials; nothing where none is finished."""
    of = cv.details
    if of is None or cv.finished is None:
        return {"figures": {}, "hero": None, "mistakes": [], "unseen": []}
    figures = run_figures.draw_all(cv, of)
    seeds = len({t.trial.seed for t in cv.trials})
    num_speakers = sum(group.by == "speaker" for group in of.groups)
    return {
        "figures": {name: figures.get(name) for name in run_figures.NAMES},
        "hero": _hero(cv),
        "hero_caption": "The run (diamond) beside what regression reaches without listening, with 95% intervals.",
        "counted": counted_predictions(cv).lower(),
        "confused": [
            f"{pair.truth}, taken for {pair.predicted}: {counted(pair.count, 'time')}, {pair.share:.0%} of {pair.truth}"
            for pair in of.confused
        ],
        "folds_caption": "UAR of each fold" + (f": the mean of {seeds} seeds, and each seed faint." if seeds > 1 else "."),
        "absent": absent_classes(cv),
        "small": [small_learning_figure(curve) for curve in of.curves[:_MOST_SMALL]] if len(of.curves) > 1 else [],
        "unseen": unseen_groups(cv),
        "speakers_caption": run_figures.speakers_caption(num_speakers),
        "calibration": calibration_sentence(of),
        "mistakes": [_clip(mistake, of, audio) for mistake in of.mistakes],
    }


def _hero(cv: CrossValidation) -> Figure | None:
    """Draw the run's score beside the shortcut panel."""
    beside = cv.without_listening
    if cv.scores is None or beside is None or beside.panel is None:
        return None
    rows = [Row("this run", cv.scores.uar.pooled, cv.interval.bounds, marked=True)]
    rows += [Row(row.name, row.uar, row.interval.bounds) for row in beside.panel.rows if row.uar is not None]
    return dot_plot("Pooled UAR of the run, and of what is told without listening", rows, "UAR", 1 / len(cv.classes))


def _clip(of: SureMistake, details: Details, audio: bool) -> dict[str, Any]:
    """Describe a clip that the run is wrong about, with its picture where its sound can be read."""
    told: dict[str, Any] = {
        "name": of.clip,
        "speaker": of.speaker,
        "truth": of.truth,
        "predicted": of.predicted,
        "confidence": markdown.format_score(of.confidence),
        "of_truth": markdown.format_score(of.of_truth),
        "picture": None,
        "audio": "",
    }
    if (payload := details.sounds.get(of.clip)) is None:
        return told
    from ser_hpc.shards import RATE
    from ser_hpc.shards.audio import decode_flac

    samples = decode_flac(payload)
    told |= {"picture": waveform(samples, f"Waveform of {visible(of.clip)}"), "spectrogram": spectrogram(samples)}
    told["seconds"] = f"{len(samples) / RATE:.1f} s"
    return told | ({"audio": f"data:audio/flac;base64,{base64.b64encode(payload).decode()}"} if audio else {})


def _sections(cv: CrossValidation) -> Iterator[tuple[str, str]]:
    """Yield the places of the page to go to, and their names."""
    yield "trained", "What was trained"
    if cv.details is not None:
        yield "listening", "Without listening"
        yield "classes", "Classes"
        yield "trials", "Folds and seeds"
        if cv.details.curves:
            yield "learning", "How it learned"
        if cv.details.groups:
            yield "groups", "For whom it works"
        yield "confidence", "How sure it is"
    yield "protocol", "Protocol"
    yield "notes", "Notes"


def _number(report: Mapping[str, Any], path: str) -> Markup:
    """Show a number of report.json, with its value for programs."""
    from markupsafe import Markup

    value: Any = report
    for key in path.split("."):
        value = value[key]
    number = math.nan if value is None else float(value)
    return Markup('<data value="{}" data-of="{}">{}</data>').format(number, path, markdown.format_score(number))


def _strong(text: str) -> Markup:
    """Set what stands between ** in bold."""
    from markupsafe import Markup, escape

    parts = [escape(visible(part)) for part in text.split("**")]
    return Markup("").join(Markup("<strong>{}</strong>").format(part) if i % 2 else part for i, part in enumerate(parts))
