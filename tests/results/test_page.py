"""report.html, predictions.parquet and the figures: one set of numbers in every format, and texts of a corpus stay texts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from documents import ROOT, blocks
from made import guessed, rewrite
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, confusion_matrix, f1_score

from ser_hpc.core.errors import UserError
from ser_hpc.report import main, write_report
from ser_hpc.results.figures import pdf
from ser_hpc.results.figures.confusion_matrix import confusion_matrix as draw_confusion
from ser_hpc.results.figures.dot_plot import Row, dot_plot
from ser_hpc.results.figures.learning import learning_figure
from ser_hpc.results.figures.scales import Scale, round_up
from ser_hpc.results.figures.shapes import Box, Dot, Text, cut, visible
from ser_hpc.results.figures.sound import spectrogram, waveform
from ser_hpc.results.figures.svg import to_svg, to_svg_file
from ser_hpc.results.learning_curves import read_curves
from ser_hpc.results.markdown import format_score
from ser_hpc.results.page import page
from ser_hpc.results.tracking.record import read_points
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.tasks.reliability import measure_reliability

MakeRun = Callable[..., RunDir]
NASTY = ("<script>alert(1)</script>", "quo\"te's & </style>", "a\u202ebc\u2066", "ش中")
EMPTY = {"meta", "br", "img", "polyline", "rect", "circle", "path"}  # elements that end where they begin


class Page(HTMLParser):
    """A parsed page: its elements are closed in order; `tables` as rows of texts, `data` the numbers that name their origin."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.data: dict[str, tuple[float, str]] = {}
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self._data = ""
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in EMPTY or tag in ("rect", "circle", "path"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "data":
            given = dict(attributes)
            self._data = given["data-of"] or ""
            self.data[self._data] = (float(given["value"] or "nan"), "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & {*self._open}:
            self.tables[-1][-1][-1] += data
        if self._open[-1:] == ["data"]:
            self.data[self._data] = (self.data[self._data][0], data)


def read_page(run: RunDir) -> Page:
    return Page(run.report_html.read_text(encoding="utf-8"))


def markdown_tables(run: RunDir) -> list[list[list[str]]]:
    """The tables of report.md, their rules left out."""
    blocks = re.findall(r"(?m)(?:^\|.*\n)+", run.report_md.read_text(encoding="utf-8"))
    rows = [[line[1:-1].split("|") for line in block.splitlines()] for block in blocks]
    return [[[cell.strip() for cell in row] for i, row in enumerate(table) if i != 1] for table in rows]


def test_every_number_is_the_same_in_all_formats(make_run: MakeRun) -> None:
    """The page's tables are those of report.md, its headline is report.json's, and scikit-learn finds the same in the table of
    predictions."""
    run = make_run(seeds=(0, 1), absent={"02": "sad", "03": "sad"})
    write_report(run)
    shown, report = read_page(run), json.loads(run.report_json.read_text())
    for table in markdown_tables(run):
        assert [[cell.strip() for cell in row] for row in table] in [
            [[" ".join(cell.split()) for cell in row] for row in found] for found in shown.tables
        ]
    assert {"uar.pooled", "wa", "macro_f1", "kappa"} == {*shown.data}
    for path, (value, text) in shown.data.items():
        wanted: Any = report
        for key in path.split("."):
            wanted = wanted[key]
        assert value == wanted and text == format_score(wanted)
    table = pq.read_table(run.predictions_table).to_pandas()
    assert len(table) == sum(map(sum, report["confusion"])) == 2 * report["num_test"]
    assert confusion_matrix(table.truth, table.predicted, labels=report["classes"]).tolist() == report["confusion"]
    of_seeds = [rows for _, rows in table.groupby("seed")]
    of_trials = [balanced_accuracy_score(rows.truth, rows.predicted) for _, rows in table.groupby(["seed", "fold"])]
    assert report["uar"]["mean"] == pytest.approx(np.mean(of_trials))
    assert report["uar"]["std"] == pytest.approx(np.std(of_trials, ddof=1))
    for path, score in (
        ("pooled", balanced_accuracy_score),
        ("macro_f1", lambda truth, predicted: f1_score(truth, predicted, average="macro")),
        ("kappa", cohen_kappa_score),
    ):
        stated = report["uar"]["pooled"] if path == "pooled" else report[path]
        assert stated == pytest.approx(np.mean([score(rows.truth, rows.predicted) for rows in of_seeds]))
    for group in report["groups"]:
        rows = table[("emodb/" + table.speaker) == group["group"]]
        each = [balanced_accuracy_score(part.truth, part.predicted) for _, part in rows.groupby("seed")]
        assert group["by"] == "speaker" and group["uar"] == pytest.approx(np.mean(each))
        assert group["num_test"] * 2 == len(rows) and group["wa"] == pytest.approx((rows.truth == rows.predicted).mean())
    names = [f"probability.{name}" for name in report["classes"]]
    confidence, right = table[names].max(axis=1).to_numpy(), (table.truth == table.predicted).to_numpy()
    assert report["calibration"]["ece"] == pytest.approx(abs(confidence - right).mean())  # all in the last bin


def test_the_same_run_gives_the_same_bytes(make_run: MakeRun) -> None:
    run = make_run()
    write_report(run)
    first = run.report_html.read_bytes(), run.predictions_table.read_bytes()
    write_report(run)
    assert (run.report_html.read_bytes(), run.predictions_table.read_bytes()) == first


def test_the_page_needs_nobody_and_runs_nothing(make_run: MakeRun) -> None:
    """No script, nothing from a network, and no sound unless it is asked for."""
    run = make_run(seeds=(0, 1))
    write_report(run)
    shown, text = read_page(run), run.report_html.read_text()
    assert not {"script", "link", "iframe", "object", "audio"} & {*shown.tags}
    sources = [value or "" for name, value in shown.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in sources)
    assert not [name for name, _ in shown.attributes if name.startswith("on")] and "default-src 'none'" in text
    assert not re.search(r"url\(|@import|https?://", text)
    places = [value for name, value in shown.attributes if name == "id"]
    assert len(places) == len({*places}) and {value[1:] for value in sources if value.startswith("#")} <= {*places}


def test_texts_of_a_corpus_are_shown_as_text(make_run: MakeRun) -> None:
    """Names of classes, runs and reasons: markup is not markup, and what turns text around is written out."""
    run = make_run(classes=NASTY, name="run", notes=[NASTY[0]], protocol=NASTY[1])
    write_report(run)
    shown, text = read_page(run), run.report_html.read_text()
    assert "script" not in shown.tags and shown.tags.count("style") == 1
    assert all(visible(name) in shown.text for name in NASTY)
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", text) and "a\\u202ebc\\u2066" in text
    for name in ("confusion", "classes"):
        assert "&lt;script" in to_svg_file(dot_plot(name, [Row(NASTY[0], 0.5, note=NASTY[1])], "UAR"))


def test_an_incomplete_run_says_so_before_anything_else(make_run: MakeRun) -> None:
    run = make_run(seeds=(0, 1))
    shutil.rmtree(run.trial(Trial(1, 2)).path)
    write_report(run)
    shown = read_page(run)
    assert shown.text.index("Incomplete: 1 of 10 trials") < shown.text.index("0.")
    assert "uar.pooled" not in shown.data and "This is not the score of the run" in shown.text
    assert "All that follows is of the 9 finished trials only" in shown.text
    shutil.rmtree(run.path / "seed_0")
    shutil.rmtree(run.path / "seed_1")
    write_report(run)
    assert "there are no scores yet" in read_page(run).text


def test_warnings_stand_above_the_score(make_run: MakeRun) -> None:
    run = make_run()
    first = "angry"

    def collapse(found: list[Any]) -> list[Any]:
        return [guessed(p, first) for p in found]

    for fold in range(5):
        rewrite(run, Trial(0, fold), collapse)
    write_report(run)
    shown = read_page(run)
    assert shown.text.index("The model has collapsed") < shown.text.index("pooled unweighted average recall")


def test_fifty_folds_of_three_seeds_stay_below_five_megabytes(make_run: MakeRun) -> None:
    run = make_run(num_folds=50, seeds=(0, 1, 2), each=2)
    lines = "".join(json.dumps({"epoch": i, "train_loss": 1 / (i + 1), "dev_uar": i / 100}) + "\n" for i in range(100))
    for trial in run.trials():
        run.trial(trial).current.epochs.write_text(lines)
    write_report(run)
    assert run.report_html.stat().st_size < 5_000_000
    assert "the 12 lowest and the 12 highest of 100" in read_page(run).text


def test_figures_are_written_for_papers(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SVG and PDF of each, with fonts in it; without matplotlib it is said how to get it."""
    run, out = make_run(), tmp_path / "figures"
    run.trial(Trial(0, 0)).current.epochs.write_text('{"epoch": 0, "train_loss": 1.5, "dev_uar": 0.3}\n')
    pytest.importorskip("matplotlib")
    assert main([str(run.path), "--figures", str(out)]) == 0
    names = {"confusion", "classes", "folds", "learning", "speakers", "reliability"}
    assert {path.name for path in out.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("svg", "pdf")}
    assert all(b"/FontFile2" in path.read_bytes() for path in out.glob("*.pdf"))
    assert all(
        "var(" not in path.read_text() and "http" not in path.read_text().split("xmlns", 1)[0] for path in out.glob("*.svg")
    )
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'ser_hpc\[figures\]'"):
        pdf.write_pdf(tmp_path / "no.pdf", dot_plot("t", [Row("a", 0.5)], "UAR"))


def test_a_confusion_matrix_shades_shares_and_writes_counts() -> None:
    figure = draw_confusion(np.array([[9, 1], [0, 0]]), ["a", "b"])
    shades = {shape.title: shape.opacity for shape in figure.shapes if isinstance(shape, Box) and shape.title}
    assert shades["a, predicted a: 9 of 10"] == 0.9 and shades["b, predicted b: 0 of 0"] == 0
    assert {"90", "10", "9", "1"} <= {shape.text for shape in figure.shapes if isinstance(shape, Text)}
    many = to_svg(draw_confusion(np.eye(40, dtype=int), [f"class {i}" for i in range(40)]))
    assert "nan" not in many and len(many) < 500_000


def test_a_dot_lies_where_its_score_is() -> None:
    figure = dot_plot("t", [Row("a", 0.0), Row("b", 1.0), Row("c", float("nan"))], "UAR", 0.25)
    low, high = (shape.x for shape in figure.shapes if isinstance(shape, Dot))
    ticks = {shape.text: shape.x for shape in figure.shapes if isinstance(shape, Text) and shape.anchor == "middle"}
    assert (low, high) == (ticks["0"], ticks["1"]) and ticks["chance 0.250"] == pytest.approx(low + (high - low) / 4, abs=0.1)


def test_axes_have_round_ticks_that_lie_on_them() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        low = float(rng.uniform(-5, 5))
        scale = Scale(low, low + float(10 ** rng.uniform(-3, 3)), 0, 100)
        ticks = scale.ticks()
        assert 1 <= len(ticks) <= 7 and all(scale.low - 1e-6 <= tick <= scale.high + 1e-6 for tick in ticks)
    assert [round_up([3.1, float("nan")]), round_up([]), round_up([0.02])] == [5.0, 1.0, 0.02]


def test_long_names_are_cut_and_letters_that_hide_are_shown() -> None:
    assert cut("abc", 100) == "abc" and cut("a" * 100, 60).endswith("…") and cut("中" * 9, 60) < "中" * 9
    assert visible("a\u200fb") == "a\\u200fb"


def test_a_clip_has_a_picture() -> None:
    """Of any length, silence too: a PNG of 64 rows, and a line within its figure."""
    import base64

    tone = (8000 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)).astype(np.int16)
    for samples in (tone, tone[:1], np.zeros(800, np.int16)):
        head, _, content = spectrogram(samples).partition(",")
        png = base64.b64decode(content)
        assert head == "data:image/png;base64" and png[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(png[20:24], "big") == 64 and 1 <= int.from_bytes(png[16:20], "big") <= 240
        assert "nan" not in to_svg(waveform(samples, "a clip"))


def test_reliability_counts_each_prediction_once() -> None:
    found = measure_reliability(np.array([0.0, 0.5, 1.0, 1.0]), np.array([False, True, True, False]))
    assert found.clips.sum() == 4 and found.clips[-1] == 2 and found.accuracy[-1] == 0.5
    assert found.error == pytest.approx((0 + 0.5 + 1.0) / 4)


def test_sound_is_only_there_when_it_is_asked_for(make_run: MakeRun) -> None:
    """A clip's FLAC goes into the page with --with-audio alone."""
    from dataclasses import replace

    from ser_hpc.report import _scored
    from ser_hpc.shards.audio import encode_flac

    result = _scored(make_run())
    assert result.details is not None and result.details.mistakes
    flac = encode_flac((1000 * np.sin(np.arange(16_000) / 5)).astype(np.int16))
    heard = replace(result, details=replace(result.details, sounds={result.details.mistakes[0].clip: flac}))
    silent, loud = page.to_html(heard), page.to_html(heard, audio=True)
    assert "data:audio" not in silent and "holds no sound" in silent and "data:image/png" in silent
    assert loud.count("data:audio/flac;base64,") == 1 and "holds recordings of the corpus" in loud


def test_the_example_of_the_manual_runs(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/numbers.md's few lines, on a run: they print what the report says."""
    run = make_run(seeds=(0, 1))
    write_report(run)
    capsys.readouterr()
    (example,) = blocks(ROOT / "docs" / "numbers.md", "python")
    exec(example.replace("runs/emodb_acrnn-XXXXXXXX", str(run.path)), {})
    shown, report = capsys.readouterr().out, json.loads(run.report_json.read_text())
    assert shown.startswith(f"pooled UAR {report['uar']['pooled']:.3f}\n")
    speakers = [f"{group['group'].replace('/', ' ')} {group['wa']:.3f}" for group in report["groups"]]
    assert shown.splitlines()[1 : 1 + len(speakers)] == speakers


def test_curves_of_evaluations_by_steps_mark_the_best(make_run: MakeRun) -> None:
    """With train.eval_steps a line stands for an evaluation, of which several fall into an epoch."""
    run = make_run()
    trial = next(iter(run.trials()))
    rows = [
        {"evaluation": number, "step": 3 * (number + 1), "train_loss": 1.0, "dev_uar": uar, "best": best}
        for number, (uar, best) in enumerate([(0.2, True), (0.3, True), (0.3, False), (0.4, True), (0.1, False)])
    ]
    run.trial(trial).current.epochs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (curve,) = read_curves(run, [(trial, 1)])
    assert (curve.chosen, curve.unit) == (3, "evaluation")
    assert "over 5 evaluations; chosen evaluations 4 to 4" in learning_figure([curve]).title
    assert [point.step for point in read_points(run.trial(trial).current) if "dev/uar" in point.numbers] == [3, 6, 9, 12, 15]
