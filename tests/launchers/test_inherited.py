"""What a caller's environment says to Slurm's commands is dropped, and what the site calls for is not mistaken for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_here import Cluster, missing
from small import newest_jobs, packed_tones

from ser_hpc.config.load import load_settings
from ser_hpc.core import cli
from ser_hpc.launchers.slurm import inherited_variables
from ser_hpc.launchers.slurm.user_limits import submit_room
from ser_hpc.run.run_dir import RunDir

ROOT = Path(__file__).parents[2]
SBATCH_NONE = {"SBATCH_PARTITION": "short", "SBATCH_TIMELIMIT": "1", "SBATCH_ARRAY_INX": "0", "SBATCH_NO_REQUEUE": "1"}
CALLERS = SBATCH_NONE | {
    "SBATCH_EXPORT": "NONE",
    "SLURM_EXPORT_ENV": "NONE",
    "SLURM_GPUS_PER_TASK": "1",
    "SLURM_GPUS": "2",
    "SLURM_CPU_BIND": "quiet,map_cpu:7",
    "SLURM_CPU_BIND_LIST": "7",
}
needs_slurm = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As within `salloc --mem-per-cpu=1G`, with all that a careless profile may add."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH", "SQUEUE"))]:
        monkeypatch.delenv(name)
    allocation = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_MEM_PER_CPU": "1024", "SLURM_JOB_NODELIST": "n1"}
    found = {"SLURM_CONF": "/c", "SLURM_JWT": "t", "SLURM_CLUSTERS": "x", "SLURMY": "1", "SQUEUE_PARTITION": "p"}
    for name, value in {**CALLERS, **allocation, **found}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("environment")
def test_what_speaks_to_slurm_is_dropped_and_what_mattered_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = load_settings(None, []).cluster
    assert inherited_variables.drop_inherited(cluster, cli.make_console()) == cluster
    left = {name for name in os.environ if name.startswith(("SLURM", "SBATCH", "SQUEUE"))}
    assert left == {"SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS", "SLURMY"}
    (line,) = capsys.readouterr().out.splitlines()
    told = {word.split("=")[0] for word in line.split(": ")[1].split(", ")}
    assert told >= {*SBATCH_NONE, "SLURM_MEM_PER_CPU", "SLURM_EXPORT_ENV", "SLURM_CPU_BIND", "SLURM_GPUS_PER_TASK"}
    assert not told & {"SLURM_JOB_ID", "SLURM_NNODES", "SLURM_CONF", "SLURM_CPU_BIND_LIST", "SQUEUE_PARTITION"}
    inherited_variables.drop_inherited(cluster, cli.make_console())
    assert capsys.readouterr().out == ""  # of what is ordinary nothing is said


@pytest.mark.parametrize(
    ("given", "account", "told"),
    [(None, "lab", "Account: lab, from SBATCH_ACCOUNT"), ("lab", "lab", ""), ("own", "own", "SBATCH_ACCOUNT=lab")],
)
def test_an_account_said_once_and_for_all_is_charged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str | None, account: str, told: str
) -> None:
    """sbatch itself would let the variable win over the script, and so over the setting."""
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    cluster = load_settings(None, [f"cluster.account={given}"] if given else []).cluster
    assert inherited_variables.drop_inherited(cluster, cli.make_console()).account == account
    said = capsys.readouterr().out
    assert told in said and bool(told) == bool(said) and "SBATCH_ACCOUNT" not in os.environ


@pytest.mark.parametrize(
    ("job", "stale", "left"),
    [
        ({"MEM_PER_NODE": "4"}, {"MEM_PER_CPU": "1", "MEM_PER_GPU": "1"}, set()),
        ({"MEM_PER_CPU": "4"}, {}, {"MEM_PER_CPU"}),  # a script changed by its user asks so
        ({"GPUS_PER_NODE": "1"}, {"GPUS": "2", "GPUS_PER_TASK": "1"}, set()),
        ({"GPUS_PER_TASK": "1"}, {}, {"GPUS_PER_TASK"}),
        ({"CPUS_PER_TASK": "1"}, {"CPUS_PER_GPU": "1"}, set()),
        ({"GPU_BIND": "none", "JOB_ID": "1"}, {"EXPORT_ENV": "NONE", "CPU_BIND": "map_cpu:1", "TIMELIMIT": "1"}, {"GPU_BIND"}),
    ],
)
def test_a_script_typed_by_hand_keeps_what_slurm_set(job: dict[str, str], stale: dict[str, str], left: set[str]) -> None:
    given = {f"SLURM_{name}": value for name, value in {**job, **stale}.items()}
    script = "\n".join(["set -euo pipefail", *inherited_variables.unset_lines(), "env"])
    said = subprocess.run(["bash", "-c", script], env={"PATH": os.environ["PATH"], **given}, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    names = {line.split("=")[0].removeprefix("SLURM_") for line in said.stdout.splitlines() if line.startswith("SLURM_")}
    assert names == left | job.keys()


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python that trains nothing: it keeps its environment in seen/JOB-RANK, and ends as a trial that is done."""
    path = tmp_path / "bin" / "python"
    path.parent.mkdir()
    (tmp_path / "seen").mkdir()
    path.write_text(
        "#!/bin/bash\n"
        f'case "$*" in *ser_hpc.launch*|*ser_hpc.launchers.slurm.requeue_script*) exec {sys.executable} "$@" ;; esac\n'
        f'[ -z "$SLURM_STEP_ID" ] || env > {tmp_path}/seen/$SLURM_JOB_NAME-$SLURM_ARRAY_TASK_ID-$SLURM_PROCID\n'
        '[ -z "$SER_HPC_FINAL" ] || echo 0 > "$SER_HPC_FINAL"\n'
    )
    path.chmod(0o755)
    return path


def seen(folder: Path, name: str) -> dict[str, str]:
    """The environment that a rank noted."""
    (path,) = (folder / "seen").glob(name)
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)


SMALL = (
    "cluster.cpus_per_gpu=1",
    "cluster.mem_gb_per_gpu=2",
    "model.kind=acrnn",
    "folds.protocol=speaker_groups",
    "folds.count=3",
)


def launch(slurm: Cluster, within: list[str], base: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [
        *within,
        sys.executable,
        "-m",
        "ser_hpc.launch",
        f"run.root={base / 'runs'}",
        f"data.shards={packed_tones(base)}",
    ]
    return subprocess.run(
        [*command, *SMALL, *more], env=slurm.env | {"COLUMNS": "400"}, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def the_jobs(base: Path) -> tuple[str, list[str]]:
    """The run's name, and the ids of its array and report."""
    (path,) = (base / "runs").glob("*/jobs/submitted.jsonl")
    return path.parents[1].name, newest_jobs(RunDir(path.parents[1]))


@needs_slurm
def test_jobs_launched_from_within_an_allocation_are_those_that_were_asked_for(
    slurm: Cluster, tmp_path: Path, python: Path
) -> None:
    """With every variable that would end, move, shorten or thin them out; and what only the site's options say."""
    within = ["salloc", "--quiet", "--mem-per-cpu=1G", "env", *(f"{name}={value}" for name, value in CALLERS.items())]
    options = "cluster.sbatch={comment: two words, nice: 5, wckey: null}"
    done = launch(slurm, within, tmp_path, f"cluster.python={python}", options, 'cluster.srun_args=["--comment=of a step"]')
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Ignored")]
    for word in ("SBATCH_PARTITION=short", "SLURM_MEM_PER_CPU=1024", "SLURM_EXPORT_ENV=NONE"):
        assert word in line
    name, (array, report) = the_jobs(tmp_path)
    assert slurm.wait([array, report]) == dict.fromkeys([f"{array}_{element}" for element in range(3)] + [report], "COMPLETED")
    for element in range(3):
        rank = seen(tmp_path, f"ser-{name}-*-{element}-0")
        assert rank["SLURM_JOB_PARTITION"] == "gpu" and rank["SLURM_CPUS_PER_TASK"] == "1" and len(rank["PATH"]) > 9
        assert not rank.keys() & (CALLERS.keys() - {"SLURM_CPU_BIND", "SLURM_CPU_BIND_LIST"})
        told = slurm.run("scontrol", "show", "job", f"{array}_{element}")
        assert "Comment=two words" in told and "Nice=5" in told and "Requeue=1" in told and "TimeLimit=04:00:00" in told


@needs_slurm
@pytest.mark.faults
def test_so_are_those_that_are_submitted_again(slurm: Cluster, tmp_path: Path, python: Path) -> None:
    assert launch(slurm, [], tmp_path, f"cluster.python={python}").returncode == 0
    name, before = the_jobs(tmp_path)
    slurm.wait(before)
    again = [sys.executable, "-m", "ser_hpc.status", str(tmp_path / "runs" / name), "--retry"]
    environment = slurm.env | CALLERS | {"SLURM_MEM_PER_CPU": "100", "SBATCH_ACCOUNT": "root"}
    done = subprocess.run(again, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "SBATCH_PARTITION=short" in done.stdout, done.stdout + done.stderr
    assert "Account: root, from SBATCH_ACCOUNT" in done.stdout
    _, jobs = the_jobs(tmp_path)
    assert jobs != before
    states = slurm.wait(jobs)
    assert len(states) == 4 and set(states.values()) == {"COMPLETED"}


@needs_slurm
def test_the_script_typed_by_hand_trains_from_within_an_allocation(slurm: Cluster, tmp_path: Path, python: Path) -> None:
    path = f"PATH={python.parent}:{slurm.env['PATH']}"
    variables = ["SLURM_GPUS_PER_TASK=1", "SBATCH_EXPORT=PATH,SLURM_CONF", "SLURM_CPU_BIND=map_cpu:7", path]
    script = ["sbatch", "--parsable", "--array=0-0", "--cpus-per-task=1", "--mem=2G", str(ROOT / "slurm" / "train.sbatch")]
    (tmp_path / "own.yaml").write_text("model: {kind: acrnn}\n")
    run = ["own.yaml", f"run.root={tmp_path / 'runs'}", f"data.shards={packed_tones(tmp_path)}", *SMALL]
    command = ["salloc", "--quiet", "--mem-per-cpu=1G", "--gpus=2", "--ntasks=2", "env", *variables, *script, *run]
    done = subprocess.run(command, env=slurm.env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    array = done.stdout.strip()
    assert slurm.wait([array]) == {f"{array}_0": "COMPLETED"}, done.stderr
    log = (tmp_path / f"slurm-ser-{array}_0.log").read_text()
    rank = seen(tmp_path, "ser-0-0")
    assert rank["SLURM_MEM_PER_NODE"] == "2048" and rank["SER_HPC_FINAL"] and "fatal" not in log
    assert not rank.keys() & {"SLURM_MEM_PER_CPU", "SLURM_GPUS", "SLURM_GPUS_PER_TASK", "SLURM_EXPORT_ENV"}


@needs_slurm
def test_jobs_for_nodes_that_are_drained_are_queued_and_run_when_these_are_back(
    slurm: Cluster, tmp_path: Path, python: Path
) -> None:
    """Slurm's test refuses them in the words that it has for what can never run."""
    for node in slurm.nodes:
        slurm.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    done = launch(slurm, [], tmp_path, f"cluster.python={python}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trials: will be queued, to wait until nodes come back" in done.stdout
    never = launch(slurm, [], tmp_path, "--dry-run", "run.name=never", "cluster.gpu_type=[b200, b100]")
    assert never.returncode == 2 and "cluster.gpu_type=b200: partition gpu has GPUs h100" in never.stdout, never.stderr
    slurm.undrain()
    _, jobs = the_jobs(tmp_path)
    assert set(slurm.wait(jobs).values()) == {"COMPLETED"}


@needs_slurm
def test_room_is_what_slurm_would_still_take(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", slurm.env)
    cluster = load_settings(None, []).cluster
    assert submit_room(cluster) is None
    slurm.run("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=3")
    try:
        while submit_room(cluster) != 3:  # slurmctld is told a moment later
            pass
        slurm.sbatch("--hold", "--array=0-1", "--output=/dev/null", "--wrap", "true")
        assert submit_room(cluster) == 1
        slurm.sbatch("--hold", "--output=/dev/null", "--wrap", "true")
        with pytest.raises(RuntimeError, match="AssocMaxSubmitJobLimit"):
            slurm.sbatch("--hold", "--output=/dev/null", "--wrap", "true")
        assert submit_room(cluster) == 0
    finally:
        slurm.run("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=-1")
