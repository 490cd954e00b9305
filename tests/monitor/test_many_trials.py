"""A run of a thousand trials is told in a screen: how many are in each state, and rows of those that need a look."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import pytest
from made_run import MIN, MadeRun, queue, slurm
from rich.console import Console

from ser_hpc import launch, status
from ser_hpc.core.errors import UserError
from ser_hpc.monitor import poll, status_screen
from ser_hpc.monitor.trial_filter import EVERYTHING, parse_trial_filter
from ser_hpc.run.run_dir import RunDir

DONE, FAILED, RUNNING = 20, 40, 50  # the trials up to these; all others wait but the last, which is held


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """200 seeds of 5 folds, little of which has begun. No test here writes into it."""
    made = MadeRun(tmp_path_factory.mktemp("many") / "x", seeds=200)
    made.submit()
    for number in range(1, RUNNING + 1):
        if number <= DONE:
            made.attempt(number, began=100, until=50, state="done", end="done", step=1200, left=None)
        elif number <= FAILED:
            made.attempt(number, began=100, until=50, end="failed", error=f"ValueError: {number % 7}")
        else:
            made.attempt(number, began=10, left=30 * MIN)
    return made


@pytest.fixture
def many(made_once: MadeRun, monkeypatch: pytest.MonkeyPatch) -> MadeRun:
    """With what Slurm says of it."""
    slurm(
        monkeypatch,
        squeue=queue(
            *(f"{number - 1} FAILED NonZeroExitCode n1 50:00 0 256" for number in range(DONE + 1, FAILED + 1)),
            *(f"{number - 1} RUNNING None n1 10:00 0" for number in range(FAILED + 1, RUNNING + 1)),
            *(f"{number - 1} PENDING JobArrayTaskLimit - 0:00 0" for number in range(RUNNING + 1, 1000)),
            "999 PENDING JobHeldUser - 0:00 0",
        ),
    )
    return made_once


def rows(shown: str) -> list[tuple[int, str]]:
    """Number and state of each row."""
    found = (re.match(r" *(\d+) +\d+ +\d+  ([a-z ]+?)(  |$)", line) for line in shown.splitlines())
    return [(int(row[1]), row[2]) for row in found if row]


def shown(made: MadeRun, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    capsys.readouterr()
    assert status.main([str(made.run.path), *options]) == 1
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120])
def test_a_thousand_trials_are_told_by_those_that_need_a_look(
    many: MadeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = shown(many, capsys)
    assert "1,000 trials: 20 done, 10 running, 20 failed, 949 waiting, 1 held" in " ".join(out.split())
    failed, running = range(DONE + 1, FAILED + 1), range(FAILED + 1, RUNNING + 1)
    told = [(number, "failed") for number in failed] + [(1000, "held")] + [(number, "running") for number in running]
    assert rows(out) == told
    assert "and 969 more: --state done (20), waiting (949)" in out
    assert len(out.splitlines()) < 60 and max(map(len, out.splitlines())) <= width
    assert "51-999 waiting: for others of its array" in " ".join(out.split())


def test_of_many_that_are_held_one_sentence_tells_how_to_let_them_go(
    many: MadeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = (f"{number - 1} PENDING JobHeldUser - 0:00 0" for number in range(RUNNING + 1, 1000))
    slurm(monkeypatch, squeue=queue(*held, "998 SUSPENDED None n1 1:00 0"), sacct="")
    out = shown(many, capsys)
    assert re.findall("scontrol [a-z]+ [0-9_]+", " ".join(out.split())) == ["scontrol release 123", "scontrol resume 123_998"]


def test_what_is_asked_for_is_shown_whole(many: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(rows(shown(many, capsys, "--state", "waiting"))) == 949
    assert rows(shown(many, capsys, "--state", "done,held", "--seed", "0,199", "--fold", "1,4")) == [
        (2, "done"),
        (5, "done"),
        (1000, "held"),
    ]
    assert "No trial is what" in shown(many, capsys, "--state", "not-started")
    told = json.loads(shown(many, capsys, "--json", "--state", "failed"))["trials"]
    assert {trial["state"] for trial in told} == {"failed"} and len(told) == 20
    assert len(json.loads(shown(many, capsys, "--json"))["trials"]) == 1000


def test_only_what_is_asked_for_is_submitted_again(
    many: MadeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(launch, "resubmit", lambda _, trials, *more: asked.append(trials) or 0)
    assert status.main([str(many.run.path), "--retry", "--seed", "5"]) == 0
    assert asked == [many.trials[25:30]]
    assert status.main([str(many.run.path), "--retry", "--state", "waiting"]) == 0 and len(asked) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--state", "broken"), "knows no 'broken'; it takes any of these"),
        (("--seed", "0-3"), "--seed takes numbers"),
        (("--cancel", "--seed", "0"), "--cancel stops the whole run"),
        (("--logs", "3", "--state", "failed"), "--logs takes one trial"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(many: MadeRun, options: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        status.main([str(many.run.path), *options])


def test_running_is_also_what_starts_or_ends() -> None:
    assert parse_trial_filter("running", None, None).states == {"running", "starting", "ending"} and not EVERYTHING
    assert parse_trial_filter("not_started, lost", None, None).states == {"not started", "lost"}


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 30), (80, 10), (200, 120)])
def test_watching_fits_the_terminal(many: MadeRun, width: int, height: int) -> None:
    """However little room there is, the headline stays; what failed has rows before what runs, as many as there is room for."""
    out = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, markup=False, highlight=False)
    standings, notes = poll.poll_once(many.run)
    lines = [
        "".join(part.text for part in line).rstrip()
        for line in out.render_lines(status_screen.fitted(many.run, standings, notes, time.time(), out, EVERYTHING))
    ]
    assert len(lines) < height and "1,000 trials: 20 done" in lines[0]
    told = rows("\n".join(lines))
    assert len(told) >= (3 if height > 20 else 1) and told[0] == (21, "failed")
    assert len(lines) >= min(height - 3, 45), "what room there is, is used"
    assert height < 100 or len(told) == 31


def test_a_small_run_is_watched_whole_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = MadeRun(tmp_path / "x", seeds=2)
    made.submit()
    slurm(monkeypatch, squeue=queue(*(f"{element} PENDING Priority - 0:00 0" for element in range(10))))
    standings, notes = poll.poll_once(made.run)
    out = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    out.print(status_screen.fitted(made.run, standings, notes, time.time(), out, EVERYTHING))
    assert "10" in out.file.getvalue() and len(rows(re.sub(r"\x1b\[[0-9;]*m", "", out.file.getvalue()))) == 10


def test_watching_does_not_read_again_what_was_done(many: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    standings, _ = poll.poll_once(many.run)
    read: list[Path] = []
    whole = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *more, **options: read.append(path) or whole(path, *more, **options))
    again = poll.read_status(many.run, {}, time.time(), standings)
    assert [standing.state for standing in again[:DONE]] == ["done"] * DONE
    trials = {RunDir(many.run.path).trial(trial).path for trial in many.trials[:DONE]}
    assert read and not [path for path in read if trials & set(path.parents)]
