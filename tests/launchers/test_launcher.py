"""One protocol for all launchers: what this machine does of it, and a scheduler from outside, as the page shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from documents import ROOT, blocks
from small import packed_tones, wav2vec2

from ser_hpc.config.load import load_settings
from ser_hpc.core.errors import ConfigError, UserError
from ser_hpc.launchers import choose, foreground
from ser_hpc.launchers.foreground import ForegroundLauncher
from ser_hpc.launchers.launcher import Batch, Launcher
from ser_hpc.launchers.local_launcher import LocalLauncher
from ser_hpc.launchers.slurm.launcher import SlurmLauncher
from ser_hpc.run.run_dir import RunDir, Trial

ALL = {Trial(0, fold) for fold in range(3)}
# A scheduler that starts everything at once. A job's id is its process, which leads a group of its own.
SCHEDULER = {
    "qsub": 'while [ "$1" != -o ]; do shift; done; job=$(mktemp); cat >"$job"; setsid bash "$job" >"$2" 2>&1 & echo "$!.head"; '
    'echo $! >>"$0.jobs"',
    "qstat": 'echo "Job id Name User Time Use S Queue"; echo "------"; cd "$(dirname "$0")"; '
    'while read job; do kill -0 "$job" 2>/dev/null && echo "$job.head ser me 0 R q"; done <qsub.jobs; true',
    "qdel": 'for job; do kill -- "-${job%.head}"; done',
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_tones(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that has nothing to do with the package, where commands are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture
def pbs(away: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's launcher and its settings in this folder, and a scheduler for it in PATH."""
    (source,) = blocks(ROOT / "docs" / "clusters.md", "python")
    (settings,) = blocks(ROOT / "docs" / "clusters.md", "yaml")
    (away / "pbs.py").write_text(source)
    (away / "site.yaml").write_text(settings)
    (away / "bin").mkdir()
    for name, script in SCHEDULER.items():
        (away / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
        (away / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{away / 'bin'}:{os.environ['PATH']}")
    return away


def command(shards: Path, *more: str) -> list[str]:
    tiny = ["model.weights=null", f"model.config={wav2vec2()}", "train.global_batch=16", "folds.protocol=speaker_groups"]
    machine = ["--cluster", "local", "--gpus-per-node", "1", "--folds", "3", f"data.shards={shards}"]
    return [sys.executable, "-m", "ser_hpc.launch", *machine, *tiny, *more]


def given(words: Sequence[str], code: int = 0) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return " ".join(done.stdout.split())


def status(run: RunDir, *more: str) -> str:
    done = subprocess.run([sys.executable, "-m", "ser_hpc.status", str(run.path), *more], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def checkpoints() -> list[Path]:
    return list(Path("runs").glob("*/seed_0/fold_*/attempt_*/checkpoints/step_*.json"))


def the_run() -> RunDir:
    (path,) = Path("runs").iterdir()
    return RunDir(path.resolve())


def test_this_machine_says_what_runs_on_it_and_stops_it(away: Path, shards: Path) -> None:
    """Also to another process, as status is: a second launch leaves all of it alone, and a cancelled one saves and ends."""
    words = command(shards, "train.epochs=200", "cluster.max_parallel_trials=1")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(checkpoints)
        run, local = the_run(), LocalLauncher()
        assert set(local.active(run)) == ALL and set(choose.active_trials(run)) == ALL, "those that wait, too"
        assert local.states(run) == ({}, ()), "its trials tell themselves"
        with pytest.raises(UserError, match="another launcher is running trials"), foreground.only_launcher(run, ()):
            pass
        assert "3 trials are queued or running already, and are left alone: process" in given(words)
        assert f"process {process.pid}, was asked to save and stop" in " ".join(status(run, "--cancel").split())
        assert process.wait(timeout=60) == 130
    assert local.active(run) == {} and local.cancel(run) == ()
    assert "Nothing of this run is queued or running" in status(run, "--cancel")
    ends = [json.loads(path.read_text())["outcome"] for path in run.path.glob("seed_0/fold_*/attempt_*/end.json")]
    assert ends == ["stopped"]


def test_a_number_that_is_another_process_now_is_not_signalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, killed = RunDir(tmp_path), []
    monkeypatch.setattr(os, "kill", lambda *given: killed.append(given))
    with foreground.only_launcher(run, [Trial(0, 0)]):
        written = json.loads(run.launcher_lock.read_text())
        assert "was asked" in LocalLauncher().cancel(run)[0] and len(killed) == 1
        for other in ({"began": "1"}, {"host": "elsewhere"}):
            run.launcher_lock.write_text(json.dumps(written | other))
            assert f"`kill -INT {os.getpid()}`" in LocalLauncher().cancel(run)[0] and len(killed) == 1
        run.launcher_lock.write_text("cut o")
        assert LocalLauncher().active(run) == {}
    assert LocalLauncher().active(run) == {}


def test_a_scheduler_of_the_page_trains_to_the_end(pbs: Path, shards: Path) -> None:
    """From settings in a file. The run is the one that this machine would make, and has a copy of the launcher."""
    words = command(shards, "train.epochs=1")
    here = given([*words, "--dry-run"]).split()[0]
    shown = given([*words, "--config", "site.yaml", "--dry-run"])
    assert shown.split()[0] == here and "by pbs:Pbs" in shown
    said = given([*words, "--config", "site.yaml", "--wait"])
    assert "The trials are started by pbs:Pbs" in said and "Submitted seed 0 fold 1 as job" in said and "pooled" in said
    run = the_run()
    assert not json.loads(run.report_json.read_text())["missing"]
    assert (run.code / "extensions" / "pbs.py").read_text() == (pbs / "pbs.py").read_text()
    attempt = json.loads(run.trial(Trial(0, 0)).current.attempt.read_text())
    assert attempt["code"] and attempt["job"] is None and "resources: select=1:ncpus=8:ngpus=1" in run.settings.read_text()
    assert "3 of 3 trials are done already" in given(words), "without it, too"


def test_what_a_scheduler_has_is_left_alone_shown_and_cancelled(pbs: Path, shards: Path) -> None:
    """By every later command, also one that names no launcher, and where its source is no more."""
    words = command(shards, "train.epochs=200")
    given([*words, "cluster.launcher=pbs:Pbs"])
    until(checkpoints)
    run = the_run()
    (pbs / "pbs.py").unlink()
    assert set(choose.active_trials(run)) == ALL
    assert "3 trials are queued or running already, and are left alone" in given(words)
    trials = json.loads(status(run, "--json"))["trials"]
    assert "running" in {trial["state"] for trial in trials} <= {"running", "starting"}
    assert "PBS was asked to cancel" in status(run, "--cancel")
    until(lambda: not choose.active_trials(run))


def test_one_that_runs_trials_itself_needs_one_method(away: Path, shards: Path) -> None:
    (away / "mine.py").write_text(
        "import os, subprocess\n"
        "from ser_hpc.config.launchers import LauncherSettings\n"
        "from ser_hpc.launchers.foreground import ForegroundLauncher\n"
        "class OneByOne(LauncherSettings):\n"
        "    def build(self):\n"
        "        return Loop()\n"
        "class Loop(ForegroundLauncher):\n"
        "    def run(self, batch):\n"
        "        for trial in batch.todo[:1]:\n"  # the others would tell nothing new
        "            subprocess.run(batch.command(trial), env=os.environ | batch.environment, check=True)\n"
    )
    assert "2 of 3 trials are missing" in given(command(shards, "train.epochs=1", "cluster.launcher=mine:OneByOne"), code=1)
    assert the_run().trial(Trial(0, 0)).is_done and not the_run().launchers.exists()


class Idle(ForegroundLauncher):
    def run(self, batch: Batch) -> None:
        raise AssertionError("never asked to")


@pytest.mark.parametrize(
    "launcher", [LocalLauncher(), SlurmLauncher(is_here=False), Idle()], ids=lambda each: type(each).__name__
)
def test_of_a_run_that_was_never_launched_nobody_knows_anything(launcher: Launcher, tmp_path: Path) -> None:
    run, cluster = RunDir(tmp_path), load_settings(None, []).cluster
    assert launcher.active(run) == {} and launcher.states(run) == ({}, ()) and not launcher.cancel(run)
    held = launcher.held(run, cluster)
    assert (held.trials, [*held.notes], held.codes) == ({}, [], {})
    assert not [*tmp_path.iterdir()], "asking leaves nothing"


HEADER = "from ser_hpc.config.launchers import LauncherSettings\nfrom ser_hpc.launchers.launcher import Launcher\n"
EMPTY = "class L(Launcher):\n    def submit(self, batch): return [][1]\n    active = submit\n    cancel = submit\n"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("class S:\n    pass\n", "must be a class derived from ser_hpc.config.launchers.LauncherSettings"),
        ("class S(LauncherSettings):\n    def build(self): return 7\n", "must return a ser_hpc.launchers.launcher.Launcher"),
        ("class S(LauncherSettings):\n    def build(self): return 1 / 0\n", r"ZeroDivisionError: .*mistaken\d.py:4, in build"),
        (EMPTY + "class S(LauncherSettings):\n    def build(self): return L()\n", r"IndexError: .*mistaken\d.py:4, in submit"),
    ],
    ids=range(4),
)
def test_mistakes_of_a_launcher_name_its_line(source: str, words: str, request: pytest.FixtureRequest, away: Path) -> None:
    name = f"mistaken{request.node.callspec.id}"
    (away / f"{name}.py").write_text(HEADER + source)
    with pytest.raises((UserError, ConfigError), match=words):
        launcher, _ = choose.choose_launcher(load_settings(None, [f"cluster.launcher={name}:S"]).cluster)
        launcher.active(RunDir(away))


def test_a_launcher_that_there_is_not() -> None:
    for value, words in (("nowhere:S", "no module 'nowhere'"), ("slurm", "there is no kind 'slurm': write module:Class")):
        with pytest.raises(ConfigError, match=words):
            load_settings(None, [f"cluster.launcher={value}"])


def test_a_queue_that_can_no_more_be_asked_submits_nothing_and_shows_the_rest(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.jobs.mkdir()
    run.launchers.write_text(json.dumps([{"kind": "lost_launcher:S"}]))
    with pytest.raises(UserError, match="cannot be asked: there is no module 'lost_launcher'"):
        choose.active_trials(run)
    states, (note,) = choose.trial_states(run)
    assert not states and "lost_launcher" in note
