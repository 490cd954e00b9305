"""On a real Slurm: whatever happens to a trial's jobs, it ends as if nothing had happened, bit for bit.

Every interruption costs a start of Python and a round through the queue, so these tests take minutes:

    pytest -m faults                       pairs that cover the table of ways to train and ways to be interrupted
    pytest -m "faults or all_faults"       the whole table, many random kills, and a queue of 50 trials with random failures
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from slurm_here import Cluster, missing
from small import newest_jobs, packed_tones, run_here, tones, wav2vec2

from ser_hpc.config.load import load_settings
from ser_hpc.launchers.slurm.submissions import read_submissions
from ser_hpc.run import experiment
from ser_hpc.run.attempt_end import read_end
from ser_hpc.run.create_run import write_run
from ser_hpc.run.run_dir import RunDir, Trial, TrialDir
from ser_hpc.shards.write import pack

pytestmark = [pytest.mark.skipif(missing() is not None, reason=str(missing())), pytest.mark.timeout(7200)]
TRIAL = Trial(0, 0)
MANY = [pytest.param(kills, marks=pytest.mark.all_faults) for kills in (20, 100)]
WAYS = {"single": (1, "ddp"), "ddp": (2, "ddp"), "zero1": (2, "zero1"), "zero2": (2, "zero2"), "zero3": (2, "zero3")}
# Long enough to be interrupted in the middle; a checkpoint at every step, so that saving is interrupted too.
TRAINING = ["train.epochs=24", "train.global_batch=8", "train.checkpoint_minutes=0.0001", "model.dropout=0.1", "train.lr=1e-3"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@functools.cache
def one_fold(base: Path) -> Path:
    """Shards of tones with a fixed split, so that a run is one trial."""
    parts = {"s1": "train", "s2": "dev", "s3": "test"}
    pack([replace(u, split=parts[u.session]) for u in tones(base / "wav", 3, 6) if u.session], base / "shards", workers=1)
    return base / "shards"


def overrides(base: Path, root: Path, *more: str) -> list[str]:
    model = ["model.weights=null", f"model.config={wav2vec2()}", "model.head.projection=16"]
    given = ["folds.protocol=given_split", f"run.root={root}", f"data.shards={one_fold(base)}"]
    return [*given, *model, *TRAINING, *more]


@functools.cache
def uninterrupted(base: Path, ranks: int, strategy: str, *more: str) -> TrialDir:
    settings = load_settings(None, overrides(base, base / f"whole-{strategy}-{ranks}", f"train.strategy={strategy}", *more))
    run = write_run(experiment.prepare_experiment(settings))
    assert run_here(run, TRIAL, ranks=ranks) == {TRIAL: 0}
    return run.trial(TRIAL)


def launch(slurm: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A job of two minutes is asked to stop after one, or up to half a minute before: a busy machine needs that to start.
    small = ["cluster.cpus_per_gpu=1", "cluster.mem_gb_per_gpu=2", "cluster.stop_before_end_s=60"]
    command = [sys.executable, "-m", "ser_hpc.launch", *arguments, *small]
    return subprocess.run(command, env=with_slow_steps(slurm), capture_output=True, text=True, timeout=120)


def with_slow_steps(slurm: Cluster) -> dict[str, str]:
    """What a launch hands on to its jobs, so that also a fast machine is still training when it is interrupted."""
    paths = [str(Path(__file__).parent / "slow_steps"), os.environ.get("PYTHONPATH", "")]
    seconds = os.environ.get("STEP_SECONDS", "0.15")
    return slurm.env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths)), "STEP_SECONDS": seconds}


def submitted(slurm: Cluster, base: Path, name: str, way: str, *more: str) -> tuple[RunDir, list[str]]:
    """Launch one trial trained that `way`; its run and the ids of its job and report."""
    ranks, strategy = WAYS[way]
    where = ["--partition", "gpu", "--nodes", str(ranks), "--gpus-per-node", "1", "--strategy", strategy]
    result = launch(slurm, *where, *overrides(base, base / name, *more))
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = (base / name).glob("ser-*")
    run = RunDir(path)
    return run, newest_jobs(run)


def wait_for_step(trial: TrialDir, step: int, timeout_s: float = 240) -> None:
    """Until the newest attempt has made this many steps."""
    deadline = time.monotonic() + timeout_s
    while True:
        end = read_end(trial.current)
        if (end.step or 0) >= step or trial.is_done:
            return
        assert time.monotonic() < deadline, f"step {step} was not reached: {end}"
        time.sleep(0.05)


def same(trial: TrialDir, whole: TrialDir) -> None:
    """Every loss, dev score, weight and prediction, bit for bit."""
    for name in ("steps", "epochs", "predictions"):
        assert getattr(trial.current, name).read_bytes() == getattr(whole.current, name).read_bytes(), name
    best, theirs = (place.path / json.loads(place.done.read_text())["weights"] for place in (trial, whole))
    assert best.read_bytes() == theirs.read_bytes()


def log_of(run: RunDir) -> str:
    return "\n".join(path.read_text() for path in sorted(run.jobs.rglob("*_log.out")))


def preempt(slurm: Cluster, trial: TrialDir, *, own_signal: bool) -> None:
    with slurm.changed(send_user_signal=own_signal):
        nodes = f"--nodelist={','.join(slurm.nodes)}"
        urgent = slurm.sbatch("-p", "urgent", nodes, "--exclusive", "--output=/dev/null", "--wrap", "true")
        assert slurm.wait([urgent]) == {urgent: "COMPLETED"}


def requeue(slurm: Cluster, trial: TrialDir) -> None:
    slurm.run("scontrol", "requeue", json.loads(trial.current.attempt.read_text())["job"])


def kill_a_rank(slurm: Cluster, trial: TrialDir) -> bool:
    """Any rank, at any moment from its first line to its last; False if there is none at the moment."""
    time.sleep(random.uniform(0, 2))
    found = subprocess.run(["pgrep", "-f", "ser_hpc.train --run-dir"], capture_output=True, text=True).stdout.split()
    ours = slurm.env["SLURM_CONF"].encode()  # another Slurm of these tests may run beside this one
    ranks = [int(pid) for pid in found if is_python(pid) and b"SLURM_PROCID" in (told := environment_of(pid)) and ours in told]
    if ranks:
        os.kill(random.choice(ranks), signal.SIGKILL)
    return bool(ranks)


def is_python(pid: str) -> bool:
    """Not the srun that started it, whose command line says the same."""
    try:
        return Path(f"/proc/{pid}/exe").readlink().name.startswith("python")
    except OSError:
        return False


def environment_of(pid: str) -> bytes:
    try:
        return (Path("/proc") / pid / "environ").read_bytes()
    except OSError:
        return b""


INTERRUPTIONS: dict[str, Callable[[Cluster, TrialDir], object]] = {
    "preempted": functools.partial(preempt, own_signal=True),
    "preempted by TERM alone": functools.partial(preempt, own_signal=False),
    "requeued": requeue,
    "rank killed": kill_a_rank,
}
CELLS = [(way, how) for way in WAYS for how in [*INTERRUPTIONS, "time limit"]]
PAIRS = {
    ("single", "preempted by TERM alone"),
    ("ddp", "time limit"),
    ("zero1", "rank killed"),
    ("zero2", "preempted"),
    ("zero3", "requeued"),
}


@pytest.mark.parametrize(
    ("way", "how"),
    [pytest.param(*cell, marks=pytest.mark.faults if cell in PAIRS else pytest.mark.all_faults) for cell in CELLS],
)
def test_interrupted_is_uninterrupted(slurm: Cluster, base: Path, monkeypatch: pytest.MonkeyPatch, way: str, how: str) -> None:
    """In the middle of training; steps since the last save are made again, nothing else is lost."""
    limit = ["--time", "2"] if how == "time limit" else []
    monkeypatch.setenv("STEP_SECONDS", "0.5" if how == "time limit" else "0.15")
    run, jobs = submitted(slurm, base, f"{way} {how}".replace(" ", "-"), way, *limit)
    trial = run.trial(TRIAL)
    if how != "time limit":
        wait_for_step(trial, 20)
        INTERRUPTIONS[how](slurm, trial)
    assert set(slurm.wait(jobs, timeout_s=900).values()) == {"COMPLETED"}, log_of(run)
    assert len(trial.attempts) > 1 or how == "rank killed", "it was not interrupted"
    if how in ("preempted", "time limit"):
        assert read_end(trial.attempts[0]).outcome == "stopped"
    same(trial, uninterrupted(base, *WAYS[way]))
    assert json.loads(run.report_json.read_text())["missing"] == []


@pytest.mark.faults
@pytest.mark.parametrize("way", ["single", "ddp"])
def test_suspended_is_uninterrupted(slurm: Cluster, base: Path, way: str) -> None:
    """For longer than a trial may hang: it goes on, in the same attempt."""
    run, jobs = submitted(slurm, base, f"suspended-{way}", way, "train.hang_minutes=0.4")
    trial = run.trial(TRIAL)
    wait_for_step(trial, 20)
    slurm.run("scontrol", "suspend", jobs[0])
    time.sleep(5)
    before = read_end(trial.current).step
    time.sleep(30)
    assert read_end(trial.current).step == before and not trial.is_done, "it was not suspended"
    slurm.run("scontrol", "resume", jobs[0])
    assert set(slurm.wait(jobs, timeout_s=600).values()) == {"COMPLETED"}, log_of(run)
    assert len(trial.attempts) == 1, log_of(run)
    same(trial, uninterrupted(base, *WAYS[way]))


@pytest.mark.faults
def test_a_job_takes_as_many_threads_as_its_share(slurm: Cluster, base: Path) -> None:
    """Nothing binds it to its cores here, and the node has more of them."""
    env = {name: value for name, value in slurm.env.items() if not name.startswith(("OMP_", "MKL_"))}
    root = base / "threads"
    where = ["--partition", "gpu", "--gpus-per-node", "1", "cluster.cpus_per_gpu=1", "cluster.mem_gb_per_gpu=2"]
    command = [sys.executable, "-m", "ser_hpc.launch", *where, *overrides(base, root, "train.epochs=1")]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = root.glob("ser-*")
    run = RunDir(path)
    assert set(slurm.wait(newest_jobs(run), timeout_s=300).values()) == {"COMPLETED"}, log_of(run)
    assert json.loads(run.trial(TRIAL).current.attempt.read_text())["threads"] == 1
    if (os.cpu_count() or 1) > 1:
        assert "1 thread: SLURM_CPUS_" in log_of(run)


@pytest.mark.parametrize("kills", [pytest.param(5, marks=pytest.mark.faults), *MANY])
def test_random_kills(slurm: Cluster, base: Path, kills: int) -> None:
    """SIGKILL of one of two ranks at random moments, saving, starting and predicting included."""
    random.seed(kills)
    epochs = f"train.epochs={max(24, 4 * kills)}"
    patient = "cluster.max_starts_without_progress=100"  # chance may kill several starts in a row before they have come far
    run, jobs = submitted(slurm, base, f"kills-{kills}", "ddp", epochs, patient)
    trial = run.trial(TRIAL)
    killed = 0
    while killed < kills:
        before = len(trial.attempts)
        killed += kill_a_rank(slurm, trial)
        assert not trial.is_done, f"training ended after {killed} kills"
        deadline = time.monotonic() + 60
        while len(trial.attempts) == before and time.monotonic() < deadline:
            time.sleep(0.1)
        if trial.newest and random.random() < 0.7:  # else it is killed while it starts
            wait_for_step(trial, (read_end(trial.attempts[-1]).step or 0) + random.randint(1, 12))
    assert set(slurm.wait(jobs, timeout_s=900).values()) == {"COMPLETED"}, log_of(run)
    same(trial, uninterrupted(base, 2, "ddp", epochs))


@pytest.mark.faults
@pytest.mark.parametrize("how", ["slurmd and its steps", "slurmd alone", "network"])
def test_a_lost_node(slurm: Cluster, base: Path, how: str) -> None:
    """The job goes on elsewhere and ends right; ranks that were frozen there wake up afterwards, end, and write nothing."""
    if how == "network" and slurm.network is None:
        pytest.skip("network namespaces are not permitted here")
    run, jobs = submitted(slurm, base, f"lost-{how}".replace(" ", "-"), "single")
    trial = run.trial(TRIAL)
    wait_for_step(trial, 20)
    about = json.loads(trial.current.attempt.read_text())
    zombie, node = about["pid"], about["host"]
    with ExitStack() as after:
        after.callback(slurm.rest)
        if how == "slurmd and its steps":
            slurm.kill_slurmd(node, with_steps=True)
        else:
            os.kill(zombie, signal.SIGSTOP)
            slurm.cut(node) if how == "network" else slurm.kill_slurmd(node)
        assert set(slurm.wait(jobs, timeout_s=600).values()) == {"COMPLETED"}, log_of(run)
        assert len(trial.attempts) == 2 and json.loads(trial.current.attempt.read_text())["host"] != node
        if how != "slurmd and its steps":
            before = {path: path.read_bytes() for path in files_of(trial)}
            os.kill(zombie, signal.SIGCONT)
            deadline = time.monotonic() + 60
            while (Path("/proc") / str(zombie)).exists() and b"ser_hpc.train" in command_of(zombie):
                assert time.monotonic() < deadline, "the zombie goes on"
                time.sleep(0.2)
            assert read_end(trial.attempts[0]).outcome == "superseded"
            assert before == {path: path.read_bytes() for path in files_of(trial)}
    same(trial, uninterrupted(base, 1, "ddp"))


def files_of(trial: TrialDir) -> list[Path]:
    """All but the first attempt's."""
    return [path for path in trial.path.rglob("*") if path.is_file() and trial.attempt(1).path not in path.parents]


def command_of(pid: int) -> bytes:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.faults
def test_moved_in_the_middle(slurm: Cluster, base: Path) -> None:
    """From 2 ranks under ZeRO 2 to 1 under DDP, to 3 under DDP, and back: the same curve to 1e-4.

    Without dropout, which is drawn for each micro-batch, and other ranks mean other micro-batches.
    """
    plain = "model.dropout=0"
    run, jobs = submitted(slurm, base, "moved", "zero2", plain)
    trial = run.trial(TRIAL)
    for step, nodes, strategy in ((15, "1", "ddp"), (40, "3", "ddp"), (65, "2", "zero2")):
        wait_for_step(trial, step)
        slurm.run("scancel", "--signal=USR2", jobs[0])  # saves and asks for another start,
        deadline = time.monotonic() + 60
        while read_end(trial.attempts[-1]).outcome != "stopped":
            assert time.monotonic() < deadline, log_of(run)
            time.sleep(0.1)
        slurm.run("scancel", *jobs)  # which it does not get: the launcher gives it another shape
        slurm.wait(jobs)
        where = ["--partition", "gpu", "--nodes", nodes, "--gpus-per-node", "1", "--strategy", strategy]
        result = launch(slurm, *where, *overrides(base, base / "moved", plain))
        assert result.returncode == 0, result.stdout + result.stderr
        jobs = newest_jobs(run)
    assert set(slurm.wait(jobs, timeout_s=600).values()) == {"COMPLETED"}, log_of(run)
    ours, whole = (
        np.array([json.loads(line)["loss"] for line in place.current.steps.read_text().splitlines()])
        for place in (trial, uninterrupted(base, 2, "ddp", plain))
    )
    assert len(trial.attempts) >= 4
    assert np.abs(ours - whole).max() < 1e-4


@pytest.mark.faults
def test_nothing_is_submitted_twice_and_a_failure_is_named_and_retried(slurm: Cluster, base: Path) -> None:
    """A trial that fails for good: the report job still runs and names it; --retry completes it once the cause is mended."""
    shards = base / "retry-shards"
    subprocess.run(["cp", "-r", one_fold(base), shards], check=True)
    tar = next(path for path in shards.rglob("*.tar"))
    whole = tar.read_bytes()
    tar.write_bytes(bytes(len(whole)))  # its bytes are gone: every clip of it is refused
    root = base / "retry"
    arguments = ["--partition", "gpu", "--gpus-per-node", "1", *overrides(base, root), f"data.shards={shards}"]
    first = launch(slurm, *arguments)
    assert first.returncode == 0, first.stdout + first.stderr
    (path,) = root.glob("ser-*")
    run = RunDir(path)
    again = launch(slurm, *arguments)
    assert again.returncode == 0 and "left alone" in again.stdout and len(read_submissions(run)) == 2
    jobs = newest_jobs(run)
    assert set(slurm.wait(jobs[:1]).values()) == {"FAILED"}
    assert set(slurm.wait(jobs[1:]).values()) == {"FAILED"}
    (missing_trial,) = json.loads(run.report_json.read_text())["missing"]
    assert "bytes are not those that were packed" in missing_trial["reason"]
    status = [sys.executable, "-m", "ser_hpc.status", str(run.path)]
    shown = subprocess.run(status, env=slurm.env, capture_output=True, text=True)
    assert shown.returncode == 1 and "bytes are not those that were packed" in shown.stdout
    tar.write_bytes(whole)
    retried = subprocess.run([*status, "--retry"], env=with_slow_steps(slurm), capture_output=True, text=True)
    assert retried.returncode == 0, retried.stdout + retried.stderr
    jobs = newest_jobs(run)
    assert set(slurm.wait(jobs, timeout_s=300).values()) == {"COMPLETED"}, log_of(run)
    same(run.trial(TRIAL), uninterrupted(base, 1, "ddp"))


@pytest.mark.parametrize(
    ("seeds", "failures"), [pytest.param(2, 4, marks=pytest.mark.faults), pytest.param(10, 20, marks=pytest.mark.all_faults)]
)
def test_a_queue_of_many_with_random_failures(slurm: Cluster, base: Path, seeds: int, failures: int) -> None:
    """Five folds and many seeds, ranks killed and jobs preempted at random: one report, complete, as without any of it."""
    random.seed(seeds)
    shards = base / "many-shards"
    if not shards.exists():
        pack(tones(base / "many-wav", 5, 2), shards, workers=1)
    model = ["model.weights=null", f"model.config={wav2vec2()}", "model.head.projection=16"]
    common = [f"data.shards={shards}", *model, "train.epochs=3", "train.lr=1e-3", f"seeds={seeds}"]
    quiet = write_run(experiment.prepare_experiment(load_settings(None, [*common, f"run.root={base / f'quiet-{seeds}'}"])))
    assert set(run_here(quiet).values()) == {0}
    root = base / f"many-{seeds}"
    result = launch(slurm, "--partition", "gpu", "--gpus-per-node", "1", "--parallel", "3", *common, f"run.root={root}")
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = root.glob("ser-*")
    run = RunDir(path)
    jobs = newest_jobs(run)
    for _ in range(failures):
        time.sleep(random.uniform(1, 8))
        kill_a_rank(slurm, run.trial(TRIAL))
    states = slurm.wait(jobs, timeout_s=3000)
    assert set(states.values()) == {"COMPLETED"}, states
    for trial in run.trials():
        same(run.trial(trial), quiet.trial(trial))
    assert any(len(run.trial(trial).attempts) > 1 for trial in run.trials())
    ours = json.loads(run.report_json.read_text())
    subprocess.run([sys.executable, "-m", "ser_hpc.report", str(quiet.path)], check=True, capture_output=True)
    assert ours["uar"] == json.loads(quiet.report_json.read_text())["uar"]


@pytest.mark.faults
def test_several_trials_share_a_job(slurm: Cluster, base: Path) -> None:
    """Four folds in two jobs, one of them preempted in the middle: all end as when each has a job of its own."""
    shards = packed_tones(base, 4, 4)
    model = ["model.weights=null", f"model.config={wav2vec2()}", "model.head.projection=16"]
    common = [f"data.shards={shards}", *model, "train.epochs=12", "train.lr=1e-3", "train.checkpoint_minutes=0.0001"]
    alone = write_run(experiment.prepare_experiment(load_settings(None, [*common, f"run.root={base / 'alone'}"])))
    assert set(run_here(alone).values()) == {0}
    root = base / "shared"
    shared = ["--partition", "gpu", "--gpus-per-node", "1", "--trials-per-gpu", "2", *common, f"run.root={root}"]
    result = launch(slurm, *shared)
    assert result.returncode == 0 and "4 trials in 2 jobs" in result.stdout, result.stdout + result.stderr
    (path,) = root.glob("ser-*")
    run = RunDir(path)
    jobs = newest_jobs(run)
    wait_for_step(run.trial(Trial(0, 0)), 6)
    preempt(slurm, run.trial(TRIAL), own_signal=True)
    assert set(slurm.wait(jobs, timeout_s=600).values()) == {"COMPLETED"}, log_of(run)
    for trial in run.trials():
        same(run.trial(trial), alone.trial(trial))
    assert read_end(run.trial(TRIAL).attempts[0]).outcome == "stopped"


@pytest.mark.faults
def test_heads_on_cached_features_share_a_job_one_after_another(slurm: Cluster, base: Path) -> None:
    """Eight trials in one job, without being asked to; preempted in the middle of one: that one goes on, those before it stay,
    the others begin; they end as when each has a process of its own."""
    model = ["model.weights=null", f"model.config={wav2vec2()}", "model.head.projection=16", "model.freeze=encoder"]
    shards = packed_tones(base, 4, 4)
    common = [f"data.shards={shards}", *model, "train.epochs=12", "train.lr=1e-3", "train.checkpoint_minutes=0.0001", "seeds=2"]
    alone = write_run(experiment.prepare_experiment(load_settings(None, [*common, f"run.root={base / 'heads-alone'}"])))
    root = base / "heads"
    where = ["--partition", "gpu", "--gpus-per-node", "1", *common, f"run.root={root}"]
    assert "8 trials share 1 job, one after another." in launch(slurm, *where, "--dry-run").stdout
    result = launch(slurm, *where)
    assert result.returncode == 0 and "8 trials in 1 job" in result.stdout, result.stdout + result.stderr
    (path,) = root.glob("ser-*")
    run = RunDir(path)
    jobs, trials = newest_jobs(run), run.trials()
    again = launch(slurm, *where)
    assert "8 trials are queued or running already, and are left alone" in again.stdout, again.stdout
    wait_for_step(run.trial(trials[2]), 3)
    preempt(slurm, run.trial(trials[2]), own_signal=True)
    assert set(slurm.wait(jobs, timeout_s=900).values()) == {"COMPLETED"}, log_of(run)
    attempts = [len(run.trial(trial).attempts) for trial in trials]
    assert sorted(attempts) == [1] * 7 + [2] and attempts[:2] == [1, 1]  # a busy machine may have come further meanwhile
    hit = attempts.index(2)
    assert read_end(run.trial(trials[hit]).attempts[0]).outcome == "stopped"
    few = [trials[hit - 1], trials[hit]]
    assert set(run_here(alone, *few).values()) == {0}
    for trial in few:
        same(run.trial(trial), alone.trial(trial))


@pytest.mark.faults
def test_the_sbatch_script_alone(slurm: Cluster, base: Path, tmp_path: Path) -> None:
    """Without submitit: the tasks plan under a lock, train, start again when requeued, and the last one reports it all."""
    root = base / "sbatch"
    config = tmp_path / "small.yaml"
    model = {"weights": None, "config": wav2vec2(), "head": {"projection": 16}}
    train = {"epochs": 12, "lr": 1e-3, "checkpoint_minutes": 0.0001}
    data = {"shards": str(packed_tones(base, 4, 4))}
    config.write_text(json.dumps({"run": {"root": str(root)}, "data": data, "model": model, "train": train}))
    script = Path(__file__).parents[2] / "slurm" / "train.sbatch"
    small = ["--array=0-3", "--gpus-per-node=1", "--cpus-per-task=1", "--mem=2G", f"--chdir={tmp_path}"]
    environment = with_slow_steps(slurm) | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    sent = subprocess.run(["sbatch", "--parsable", *small, script, config], env=environment, capture_output=True, text=True)
    assert sent.returncode == 0, sent.stderr
    job = sent.stdout.strip()
    deadline = time.monotonic() + 120
    while not list(root.glob("ser-*/jobs/submitted.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (path,) = root.glob("ser-*")
    run = RunDir(path)
    wait_for_step(run.trial(TRIAL), 6)
    slurm.run("scontrol", "requeue", f"{job}_0")
    assert set(slurm.wait([job], timeout_s=600).values()) == {"COMPLETED"}
    report = json.loads(run.report_json.read_text())
    assert report["missing"] == [] and len(report["folds"]) == 4
    assert len(run.trial(TRIAL).attempts) == 2
