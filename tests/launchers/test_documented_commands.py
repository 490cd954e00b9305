"""The cluster's commands of README.md and docs/, as a reader types them, on the real Slurm.

Its nodes are drained: jobs are submitted, shown and cancelled, and never start, which other tests are about.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import slurm_here
import soundfile
from documents import ROOT, commands
from slurm_here import Cluster

SMALL = ["cluster.cpus_per_gpu=1", "cluster.mem_gb_per_gpu=2"]
Type = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a small Emo-DB is packed, as the pages pack it."""
    place = tmp_path_factory.mktemp("documented")
    rng = np.random.default_rng(0)
    for speaker in ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16"):
        for emotion in "FNWLEAT":
            path = place / "data" / "emodb" / f"{speaker}a01{emotion}a.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, rng.uniform(-0.3, 0.3, 4000), 16_000)
    out = place / "scratch" / "shards" / "emodb"
    subprocess.run([sys.executable, "-m", "ser_hpc.pack", "emodb", place / "data/emodb", out], check=True, capture_output=True)
    return place


@pytest.fixture
def reader(slurm: Cluster, scratch: Path, tmp_path: Path) -> Iterator[Type]:
    """`reader(words)`: what a documented command does (the shortest with all of these words), in a folder of the reader's own.

    Its nodes have few cores and little memory, so jobs ask for less than by default.
    """
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(ROOT / "configs" / "cluster" / "generic.yaml", tmp_path / "mine.yaml")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    environment = inherited | {"SLURM_CONF": slurm.env["SLURM_CONF"], "COLUMNS": "120", "PYTHONPATH": str(ROOT)}

    def type_in(*words: str, start: bool = False) -> subprocess.CompletedProcess[str] | subprocess.Popen[str]:
        found = [said for said in commands() if set(words) <= {*said.split()}]
        command = min(found, key=len).replace("/scratch/", f"{scratch}/scratch/").replace("CLUSTER", "far")
        if "XXXXXXXX" in command:
            (run,) = (tmp_path / "runs").glob("emodb_acrnn-*")
            command = re.sub(r"runs/\w+-XXXXXXXX", str(run), command)
        arguments = [*shlex.split(command)[1:], *(SMALL if "ser_hpc.launch" in command else [])]
        options = {"cwd": tmp_path, "env": environment, "text": True}
        if start:
            pipe = subprocess.PIPE
            return subprocess.Popen([sys.executable, *arguments], stdout=pipe, stderr=subprocess.STDOUT, **options)
        return subprocess.run([sys.executable, *arguments], capture_output=True, **options)

    nodes = ",".join(slurm.nodes)
    slurm.run("scontrol", "update", f"nodename={nodes}", "state=drain", "reason=test")
    yield type_in
    slurm.run("scancel", "--user=root")
    with contextlib.suppress(RuntimeError):  # they work again already
        slurm.run("scontrol", "update", f"nodename={nodes}", "state=resume")


def queued(slurm: Cluster) -> list[str]:
    return slurm.run("squeue", "--noheader", "--array", "--format=%j").split()


def test_a_dry_run_shows_what_the_site_says(slurm: Cluster, reader: Type) -> None:
    shown = reader("--cluster", "mine.yaml", "--dry-run")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    for words in (
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --time=240",
        "#SBATCH --array=0-14%8",
        "to wait until nodes come back",
    ):
        assert words in shown.stdout, words
    readme = reader("--strategy", "zero2", "--dry-run")
    assert readme.returncode == 0 and "#SBATCH --partition=gpu" in readme.stdout and not queued(slurm)


def test_jobs_are_submitted_shown_cancelled_and_submitted_again(slurm: Cluster, reader: Type, tmp_path: Path) -> None:
    done = reader("--queue-anyway")
    assert done.returncode == 0 and "Submitted 15 trials as job" in done.stdout, done.stdout + done.stderr
    assert len(queued(slurm)) == 16  # and the report
    assert reader("ser_hpc.launch", "--partition", "--queue-anyway").returncode == 0 and len(queued(slurm)) == 16
    shown = reader("ser_hpc.status")
    assert shown.returncode == 0 and "15 waiting" in shown.stdout
    few = reader("ser_hpc.status", "--state")
    assert "No trial is what --state" in few.stdout
    assert {trial["state"] for trial in json.loads(reader("ser_hpc.status", "--json").stdout)["trials"]} == {"waiting"}
    cancelled = reader("ser_hpc.status", "--cancel")
    assert cancelled.returncode == 0 and "Slurm was asked to cancel" in cancelled.stdout and not queued(slurm)
    again = reader("ser_hpc.status", "--retry")
    assert again.returncode == 0 and len(queued(slurm)) == 16, again.stdout + again.stderr


def test_waiting_for_the_jobs_ends_with_the_report(slurm: Cluster, reader: Type) -> None:
    waiting = reader("ser_hpc.launch", "--wait", start=True)
    deadline = time.monotonic() + 120
    while len(queued(slurm)) < 16 and waiting.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
    assert reader("ser_hpc.status", "--cancel").returncode == 0
    said, _ = waiting.communicate(timeout=120)
    assert waiting.returncode == 1 and "15" in said and "missing" in said, said


def test_jobs_on_another_cluster_hold_their_trials_until_they_ended(slurm: Cluster, reader: Type, tmp_path: Path) -> None:
    assert reader("--queue-anyway").returncode == 0
    assert reader("ser_hpc.status", "--cancel").returncode == 0
    (ledger,) = (tmp_path / "runs").glob("*/jobs/submitted.jsonl")
    lines = [json.loads(line) | {"cluster": "far"} for line in ledger.read_text().splitlines()]
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused = reader("--queue-anyway")
    assert refused.returncode == 2 and "add --ended far" in refused.stderr and not queued(slurm)
    ended = reader("--ended")
    assert ended.returncode == 0 and len(queued(slurm)) == 16, ended.stdout + ended.stderr


@pytest.mark.skipif(slurm_here.missing() is not None, reason=str(slurm_here.missing()))
def test_a_slurm_on_one_machine_is_started_cut_mended_and_stopped(short_path: Path) -> None:
    said = [command for command in commands() if command.startswith("python tools/slurm_here")]
    assert [command.split()[2] for command in said] == ["start", "cut", "mend", "stop"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    try:
        for command in said:
            words = shlex.split(command.replace("/tmp/slurm", str(short_path / "slurm")))[1:]
            done = subprocess.run([sys.executable, *words], cwd=ROOT, env=inherited, capture_output=True, text=True)
            unable = "cut" in words and "network" in done.stderr  # where the system permits no networks of nodes' own
            assert done.returncode == 0 or unable, f"{command}\n{done.stdout}{done.stderr}"
            if "start" in words:
                conf = re.search(r"export SLURM_CONF=(\S+)", done.stdout)
                assert conf, done.stdout
                environment = inherited | {"SLURM_CONF": conf[1]}
                nodes = subprocess.run(["sinfo", "-h", "-N", "-o", "%N %P"], env=environment, capture_output=True, text=True)
                assert {line.split()[0] for line in nodes.stdout.splitlines()} == {"n1", "n2", "n3"}
                assert {line.split()[1].strip("*") for line in nodes.stdout.splitlines()} == {"gpu", "urgent", "short", "cpu"}
    finally:
        subprocess.run(
            [sys.executable, "tools/slurm_here", "stop", short_path / "slurm"], cwd=ROOT, env=inherited, capture_output=True
        )
