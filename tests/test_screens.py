"""Every screen as a person reads it: the user's own words as they are, whole at 80 columns, in a pipe no line broken."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile
from rich.columns import Columns
from rich.table import Table

from ser_hpc import inspect, launch, pack, report, status, train
from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.launchers import local
from ser_hpc.monitor.local_progress import show_progress
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.shards import write

ROOT = Path(__file__).parents[1]
MARKED = ("[/a/emodb]", "[sp2]", "[red]x[/red]", ":smile:", "[link=x]")
Screen = Callable[..., str]


@pytest.fixture
def screen(capsys: pytest.CaptureFixture[str]) -> Screen:
    """`screen(main, *arguments)`: what a command prints into a pipe."""

    def run(main: Callable[[list[str]], int], *arguments: object) -> str:
        capsys.readouterr()
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


def corpus(folder: Path, speakers: int, classes: list[str], name: str = "mini") -> list[Utterance]:
    """Noise: a clip of each class by each speaker, who are named as if they were markup, as are the sessions."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(speakers)
    clips = []
    for speaker in range(speakers):
        for number, emotion in enumerate(classes):
            path = folder / f"{speaker}-{number}.wav"
            soundfile.write(path, rng.uniform(-0.3, 0.3, 2000), 16_000)
            clip = Utterance(name, path.stem, path, f"[sp{speaker}]", emotion, session=f"[/bold]{speaker:02}")
            clips.append(replace(clip, gender=("female", "male")[speaker % 2]))
    return clips


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards in a folder that looks like markup, of speakers and classes that do so too."""
    folder = tmp_path_factory.mktemp("screens") / "[red]"
    write.pack(corpus(folder / "wav", 4, ["[/angry]", "[bold]"]), folder / "shards", workers=1)
    return folder / "shards"


def plan(root: Path, *shards: Path) -> tuple[object, ...]:
    """Arguments of a dry run of a model whose check takes no time."""
    names = ",".join(f"'{path}'" for path in shards)
    small = ("model.kind=acrnn", "train.global_batch=2", f"run.root={root}", f"data.shards=[{names}]")
    return ("--cluster", "local", "--gpus-per-node", 1, *small, "--dry-run")


def test_only_one_maker_of_consoles() -> None:
    """Which has markup switched off: so no screen, old or new, reads a user's text as markup."""
    bad = []
    for path in [*(ROOT / "ser_hpc").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
            plain = any(
                keyword.arg == "markup" and ast.unparse(keyword.value) == "False" for keyword in getattr(node, "keywords", [])
            )
            if called in ("from_markup", "escape") and "rich" in path.read_text(encoding="utf-8"):
                bad.append(f"{path.name}:{node.lineno} {called}")
            is_richs = called in ("Console", "TextColumn") and "from rich" in path.read_text(encoding="utf-8")
            if is_richs and not plain and path.name != "cli.py":
                bad.append(f"{path.name}:{node.lineno} {called}")
    assert not bad


def test_whatever_is_printed_stands_there_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """As a line, and everywhere in a table."""
    out = cli.make_console()
    for text in MARKED:
        table = Table(text, title=text, caption=text)
        table.add_row(text)
        out.print(f"{text}!", table, Columns([table, text]))
    printed = capsys.readouterr().out
    assert all(printed.count(text) == 10 for text in MARKED)


def test_a_pipe_has_no_width(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are whole, however long, and the shorter rows of a table are not filled up with blanks; COLUMNS is obeyed."""
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table.grid()
    for words in ("word " * 100, "short"):
        table.add_row(words)
    cli.make_console().print("word " * 100, table, sep="\n")
    assert [len(line) for line in capsys.readouterr().out.splitlines()] == [499, 499, 5]
    monkeypatch.setenv("COLUMNS", "80")
    cli.make_console().print(table)
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 80


def test_the_plan(screen: Screen, marked: Path, tmp_path: Path) -> None:
    root = tmp_path / "[runs]"
    shown = screen(launch.main, *plan(root, marked), "data.labels=as_annotated")
    assert str(marked) in shown.splitlines()[-1] and f"{root}/ser-" in shown
    assert all(f"session [/bold]{number:02}" in shown for number in range(4))
    assert re.search(r"^\[/angry\] +4 ", shown, re.M) and re.search(r"^\[bold\] +4 ", shown, re.M)


def test_what_lies_in_shards(screen: Screen, marked: Path) -> None:
    shown = screen(inspect.main, marked)
    assert all(text in shown for text in (str(marked), "[sp0]", "[/angry]", "[bold]"))
    shown = screen(inspect.main, marked, "--folds", "leave_one_session_out")
    assert "session [/bold]03" in shown and re.search(r"^\[/angry\] +4 ", shown, re.M)
    assert "[sp1]" in screen(inspect.main, marked, "--clip", "1-0")
    assert f"{marked}: every byte" in screen(inspect.main, marked, "--verify")


def test_packing(screen: Screen, tmp_path: Path) -> None:
    folder = tmp_path / "[/b]"
    clips = corpus(folder / "wav", 3, ["[bold]", "calm"])
    rows = [f"{clip.audio_path},{clip.emotion},{clip.speaker}" for clip in clips]
    (folder / "mini.csv").write_text("\n".join(["audio,emotion,speaker", *rows]))
    shown = screen(pack.main, "csv", folder / "mini.csv", tmp_path / "[out]", "--workers", 1)
    assert all(text in shown for text in ("[sp2]", "[bold]", f"shards: {tmp_path}/[out]", f"6 clips in {folder}"))


def test_status(screen: Screen, tmp_path: Path) -> None:
    """A run of an odd name, whose trial failed with odd words. (Reports: tests/results/test_render.py.)"""
    run = RunDir(tmp_path / "[run]")
    write_json(run.plan, {"trials": [{"seed": 0, "fold": 0}]})
    attempt = run.trial(Trial(0, 0)).claim()
    write_json(attempt.attempt, {"started": 1.0, "host": "[n1]", "job": None})
    write_json(attempt.end, {"outcome": "failed", "error": "UserError: no [bold]file[/bold]", "host": "n1", "ended": 1.0})
    shown = screen(status.main, run.path)
    assert "[run]: 1 trial" in shown and "[n1]" in shown and "no [bold]file[/bold]" in shown


def test_following_trials_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, trial = RunDir(tmp_path), Trial(0, 0)
    attempt = run.trial(trial).claim()
    write_json(attempt.progress, {"state": "failed", "updated": 2.0})
    write_json(attempt.end, {"outcome": "failed", "error": "no [/red] file", "host": "n1", "ended": 1.0})
    job = local.LocalJob((trial,), 0, [], SimpleNamespace(close=lambda: None), 1.0, 2, {trial: 2})  # type: ignore[arg-type]
    for out in (cli.make_console(), forced_terminal()):
        with show_progress(run, [trial], out) as watch:
            watch([job])
        assert "failed: no [/red] file" in capsys.readouterr().out


def forced_terminal() -> object:
    """As `console.screen` in a terminal."""
    stream, sys.stdout = sys.stdout, SimpleNamespace(isatty=lambda: True)  # type: ignore[assignment]
    try:
        out = cli.make_console()
    finally:
        sys.stdout = stream
    out._force_terminal, out._width, out._height = True, 120, 40  # type: ignore[assignment]
    return out


@pytest.mark.parametrize(("speakers", "classes"), [(5, 7), (24, 21)])
def test_the_plan_reads_well_at_80_columns(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speakers: int, classes: int
) -> None:
    """Every fold is a line, every class too with its whole name; only paths and commands may be longer than the terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"emotion-number-{number:02}" for number in range(classes)]
    write.pack(corpus(tmp_path / "wav", speakers, names), tmp_path / "shards", workers=1)
    shown = screen(launch.main, *plan(tmp_path / "runs", tmp_path / "shards"))
    lines = shown.splitlines()
    for fold in range(speakers):
        (line,) = (line for line in lines if re.match(rf" *{fold} +\d+ +\d+ +\d+  session", line))
        assert f"session [/bold]{fold:02}" in line and f"session [/bold]{(fold + 1) % speakers:02}" in line
    for name in names:
        (line,) = (line for line in lines if line.startswith(name))
        assert line.split()[1:] == [str(speakers), str(speakers - 2), "1", "1"]
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)
    assert len(lines) < speakers + classes + 28


def test_two_corpora_in_a_plan(screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is trained on stands there where it is not simply all the others; long lists are broken, never cut."""
    monkeypatch.setenv("COLUMNS", "80")
    for name, speakers in (("one", 12), ("two", 9)):
        write.pack(corpus(tmp_path / "wav" / name, speakers, ["a", "b"], name), tmp_path / name, workers=1)
    both = plan(tmp_path / "runs", tmp_path / "one", tmp_path / "two")
    shown = screen(launch.main, *both, "folds.protocol=cross_corpus", "folds.test_corpora=two")
    assert re.search(r"tested on +epoch chosen on +trained on", shown)
    assert all(words in shown for words in ("corpus two", "corpus one", "[sp"))
    shown = screen(launch.main, *both, "folds.protocol=speaker_groups", "--folds", 3)
    assert "trained on all the others" in shown
    who = shown.split("note:")[0]
    assert all(who.count(f"{name}/[sp{number}]") == 2 for name, count in (("one", 12), ("two", 9)) for number in range(count))
    assert all(len(line) <= 80 for line in shown.splitlines() if str(tmp_path) not in line)


@pytest.mark.parametrize("command", [launch, pack, inspect, train, status, report])
def test_help_fits_80_columns(command: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """But for commands to be copied, which stay whole."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = capsys.readouterr().out
    assert all(line.startswith("  ") and "python -m" in line for line in shown.splitlines() if len(line) > 80)
    assert "\n\n" in shown


def test_settings_fit_80_columns(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = screen(launch.main, "--settings")
    assert max(map(len, shown.splitlines())) <= 80 and "  train.lr = 3e-05\n      Peak learning rate" in shown
