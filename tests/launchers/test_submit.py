"""No job is lost or doubled between the launcher and Slurm, at whatever instant either fails: tested on the real one.

The nodes are drained, so that jobs only wait; what is in the queue is then counted, by the trials that each job would run.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_here import Cluster
from small import packed_tones, wav2vec2

from ser_hpc import launch
from ser_hpc.config.load import load_settings
from ser_hpc.core import cli
from ser_hpc.core.errors import UserError
from ser_hpc.launchers import trial_checks
from ser_hpc.launchers.slurm import jobs, site_checks, submit_once, user_limits
from ser_hpc.launchers.slurm.launcher import SlurmLauncher
from ser_hpc.launchers.slurm.submissions import read_submissions
from ser_hpc.run.experiment import Experiment, prepare_experiment
from ser_hpc.run.run_dir import RunDir, Trial

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def waiting(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The test cluster with drained nodes, found by this process's own Slurm commands."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])
    nodes = ",".join(slurm.nodes)
    slurm.run("scontrol", "update", f"nodename={nodes}", "state=drain", "reason=test")
    yield slurm
    slurm.run("scancel", "--user=root")
    with contextlib.suppress(RuntimeError):  # they work again already
        slurm.run("scontrol", "update", f"nodename={nodes}", "state=resume")


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Eight trials: two seeds, four folds."""
    monkeypatch.setattr(trial_checks, "check_trials", lambda experiment: [])  # seconds of transformers, which this is not about
    monkeypatch.setattr(site_checks, "check_trial_jobs", lambda *_, **__: [])
    small = ["cluster.cpus_per_gpu=1", "cluster.mem_gb_per_gpu=2", "cluster.partition=gpu", "seeds=2", "train.epochs=1"]
    model = ["model.weights=null", f"model.config={wav2vec2()}", "model.head.projection=16"]
    shards = packed_tones(tmp_path, 4, 4)
    return prepare_experiment(load_settings(None, [f"data.shards={shards}", f"run.root={tmp_path / 'runs'}", *model, *small]))


def launch_here(experiment: Experiment) -> int:
    return launch._start(experiment, experiment.trials, SlurmLauncher(), "refuse", cli.make_console())


def launch_and_kill(experiment: Experiment, after_s: float) -> bool:
    """Launch in a process of its own, which is killed after so many seconds; whether it was."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            launch_here(experiment)
        finally:
            os._exit(0)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def queued(run: RunDir, slurm: Cluster) -> tuple[Counter[Trial], int]:
    """How often each trial waits in the queue, and how many reports do, by the names of the jobs; void ones run nothing."""
    named = {submission.name: submission for submission in read_submissions(run)}
    trials: Counter[Trial] = Counter()
    reports = 0
    for line in slurm.run("squeue", "--array", "--noheader", "--format=%j|%K").splitlines():
        name, element = line.split("|")
        submission = named[name]
        if submission.outcome != "void":
            trials.update(submission.elements[int(element)] if submission.kind == "trials" else ())
            reports += submission.kind == "report"
    return trials, reports


def sbatch_that(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a command in front of sbatch, which is `$REAL` in it; `$N`: the how manieth call it is."""
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True).stdout.strip()
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    count = f'case "$*" in *--test-only*) exec {real} "$@";; esac; echo x >> {folder}/calls; N=$(wc -l < {folder}/calls)'
    (folder / "sbatch").write_text(f"#!/bin/bash\n{count}\nREAL={real}\n{script}\n")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


# What goes wrong with the first sbatch, of the trials; all others are as they should be.
FAULTS = {
    "killed before it is asked": 'if [ $N = 1 ]; then kill -9 $PPID; exit 1; fi; exec $REAL "$@"',
    "killed after it was taken": 'if [ $N = 1 ]; then $REAL "$@"; kill -9 $PPID; exit 0; fi; exec $REAL "$@"',
    "killed, and taken later": 'if [ $N = 1 ]; then kill -9 $PPID; sleep 2; fi; exec $REAL "$@"',
    "killed as the report is taken": 'if [ $N = 2 ]; then $REAL "$@"; kill -9 $PPID; exit 0; fi; exec $REAL "$@"',
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_instant_the_launcher_is_killed_at_each_trial_waits_once(
    waiting: Cluster, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    sbatch_that(FAULTS[fault], tmp_path, monkeypatch)
    child = os.fork()
    if child == 0:
        try:
            launch_here(experiment)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert launch_here(experiment) == 0
    trials, reports = queued(experiment.run, waiting)
    assert trials == Counter(experiment.trials) and reports == 1
    assert launch_here(experiment) == 0
    assert queued(experiment.run, waiting) == (trials, 1), "a launch with nothing to do submits nothing"


def test_an_answer_that_timed_out_is_looked_for(
    waiting: Cluster,
    experiment: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Slurm took the jobs, and its answer was lost: `Socket timed out` is no refusal."""
    lost = '$REAL "$@" >/dev/null; echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv" >&2; exit 1'
    sbatch_that(lost, tmp_path, monkeypatch)
    assert launch_here(experiment) == 0
    assert "Submitted 8 trials as job" in capsys.readouterr().out
    assert queued(experiment.run, waiting) == (Counter(experiment.trials), 1)


def test_an_answer_that_never_came_is_told_and_looked_for_by_the_next_launch(
    waiting: Cluster, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm took nothing, or takes it only after the next launch: then its jobs find that they were given up, and end."""
    monkeypatch.setattr(submit_once, "_LOOK_S", 1.0)
    script = tmp_path / "script"
    timed_out = f'if [ $N = 1 ]; then cp "$2" {script}; echo "error: Socket timed out" >&2; exit 1; fi; exec $REAL "$@"'
    sbatch_that(timed_out, tmp_path, monkeypatch)
    with pytest.raises(UserError, match="whether Slurm took the jobs is not known"):
        launch_here(experiment)
    (asked,) = read_submissions(experiment.run)
    assert asked.outcome == "asked" and jobs.active_jobs(experiment.run) == {}
    assert launch_here(experiment) == 0
    waiting.sbatch(script)
    assert queued(experiment.run, waiting) == (Counter(experiment.trials), 1), "it is in the queue, and void"
    about = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "99", "SLURM_JOB_ID": "99"}
    done = subprocess.run(["bash", script], env=os.environ | about, capture_output=True, text=True)
    assert done.returncode == 0 and "given up before Slurm answered" in done.stdout
    assert not experiment.run.trials_on_disk()


def test_a_report_that_does_not_fit_is_added_by_the_next_launch(
    waiting: Cluster,
    experiment: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = 'if [ $N = 2 ]; then echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; fi; exec $REAL "$@"'
    sbatch_that(full, tmp_path, monkeypatch)
    assert launch_here(experiment) == 0
    said = capsys.readouterr().out
    assert "Submitted 8 trials" in said and "their report is not" in said and "QOSMaxSubmitJobPerUserLimit" in said
    assert queued(experiment.run, waiting) == (Counter(experiment.trials), 0)
    assert launch_here(experiment) == 0
    assert queued(experiment.run, waiting) == (Counter(experiment.trials), 1)


def test_more_trials_than_an_array_or_the_queue_holds_go_out_bit_by_bit(
    waiting: Cluster,
    experiment: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(user_limits, "max_array_size", lambda: 3)
    limit = (
        'n=$(squeue -h -r | wc -l); a=$(grep -o "array=0-[0-9]*" "$2" | grep -o "[0-9]*$"); [ -n "$a" ] || exec $REAL "$@"; '
    )
    limit += 'if [ $((n + a + 1)) -gt 5 ]; then echo "sbatch: error: AssocMaxSubmitJobLimit" >&2; exit 1; fi; exec $REAL "$@"'
    sbatch_that(limit, tmp_path, monkeypatch)
    assert launch_here(experiment) == 0
    said = capsys.readouterr().out
    assert "Submitted 5 trials" in said and "3 trials not submitted" in said
    trials, reports = queued(experiment.run, waiting)
    assert trials == Counter(experiment.trials[:5]) and reports == 1
    waiting.run("scancel", "--user=root")
    assert launch_here(experiment) == 0
    assert "Submitted 4 trials" in capsys.readouterr().out or queued(experiment.run, waiting)[0].total() >= 4


def test_one_report_waits_for_all_that_is_queued(waiting: Cluster, experiment: Experiment) -> None:
    """Each job in the queue counts against the user's limit."""
    half = experiment.trials[:4]
    assert launch._start(experiment, half, SlurmLauncher(), "refuse", cli.make_console()) == 0
    assert launch_here(experiment) == 0
    assert queued(experiment.run, waiting) == (Counter(experiment.trials), 1)


def test_a_script_that_waits_holds_its_trials(
    waiting: Cluster, experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sbatch slurm/train.sbatch` of the same run, of which no task has begun: nobody has noted that array yet."""
    from ser_hpc.config.load import dump_settings

    config = tmp_path / "same.yaml"
    config.write_text(dump_settings(experiment.settings))
    script = Path(__file__).parents[2] / "slurm" / "train.sbatch"
    array = waiting.sbatch(
        "--array=0,2-3", "--gpus-per-node=1", "--mem=1G", f"--chdir={tmp_path}", script, config, "train.epochs=1"
    )
    assert launch_here(experiment) == 0
    said = capsys.readouterr().out
    held = [experiment.trials[number] for number in (0, 2, 3)]
    assert "3 trials are queued or running already" in said and f"{array}_2" in said
    made = next(known for known in read_submissions(experiment.run) if known.kind == "trials")
    assert set(made.trials) == set(experiment.trials) - set(held)
    assert jobs.find_older_job(experiment.run, held[0], made.job or "") is not None, "the older array's trials stay its own"


def test_settings_that_come_too_late_for_queued_jobs_are_told(
    waiting: Cluster, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch_here(experiment) == 0
    settings = experiment.settings
    longer = settings.model_copy(update={"cluster": settings.cluster.model_copy(update={"time_min": 999})})
    capsys.readouterr()
    assert launch_here(replace(experiment, settings=longer)) == 0
    assert "not applied to jobs that are queued or running: cluster.time_min=999 (theirs: its default)" in " ".join(
        capsys.readouterr().out.split()
    )


def test_who_waits_for_another_launcher_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys, time; from pathlib import Path; from ser_hpc.core.atomic_io import file_lock\n"
    code += "with file_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(1)"
    run = RunDir(tmp_path)
    with subprocess.Popen([sys.executable, "-c", code, str(run.lock)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with launch._alone(run, cli.make_console()):
            assert "Another launcher, or the sbatch of a killed one, is at work" in capsys.readouterr().out


@pytest.mark.faults
def test_forty_kills_at_random_instants_of_a_submission(waiting: Cluster, experiment: Experiment) -> None:
    """And once more, on nodes that work: one launch brings all to the end, the queue is empty and the report whole."""
    began = time.monotonic()
    assert launch_here(experiment) == 0
    whole_s = time.monotonic() - began
    waiting.run("scancel", "--user=root")
    chance, killed = random.Random(20261126), 0
    for _ in range(40):
        killed += launch_and_kill(experiment, chance.uniform(0, whole_s))
        assert launch_here(experiment) == 0
        assert queued(experiment.run, waiting) == (Counter(experiment.trials), 1)
        waiting.run("scancel", "--user=root")
    assert killed >= 20, "the rest had finished already"
    launch_and_kill(experiment, whole_s / 2)
    assert launch_here(experiment) == 0
    waiting.run("scontrol", "update", f"nodename={','.join(waiting.nodes)}", "state=resume")
    deadline = time.monotonic() + 600
    while waiting.run("squeue", "--noheader"):
        assert time.monotonic() < deadline, waiting.run("squeue")
        time.sleep(1)
    assert all(len(experiment.run.trial(trial).attempts) == 1 for trial in experiment.trials)
    assert '"missing": []' in experiment.run.report_json.read_text()
