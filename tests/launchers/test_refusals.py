"""What a site would refuse, or cannot do just now, is said in words, on a real Slurm; nothing is queued, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_here import Cluster, missing
from small import newest_jobs, packed_tones, planned, run_here, wav2vec2

from ser_hpc.run.attempt_end import read_end
from ser_hpc.run.run_dir import RunDir, Trial

needs_slurm = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refusals")


def launch(slurm: Cluster, base: Path, root: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    model = ["model.weights=null", f"model.config={wav2vec2()}", "model.head.projection=16", "train.lr=1e-3"]
    what = [f"data.shards={packed_tones(base)}", f"run.root={base / root}", *model, "--folds", "4"]
    small = ["cluster.cpus_per_gpu=1", "cluster.mem_gb_per_gpu=2"]
    command = [sys.executable, "-m", "ser_hpc.launch", *what, *small, *arguments]
    return subprocess.run(command, env=slurm.env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200)


@needs_slurm
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--partition", "fast"], ["fast", "gpu", "urgent", "short", "cpu"]),
        (["--partition", "short", "--time", "5"], ["short", "1 minute"]),
        (["--gpus-per-node", "4"], ["4", "GPUs"]),
        (["cluster.gpu_type=a100"], ["a100", "h100"]),
        (["cluster.account=nobody"], ["nobody"]),
        (["--nodes", "5"], ["cluster.nodes=5", "3 such nodes"]),
        (["cluster.mem_gb_per_gpu=100000"], ["GB"]),
    ],
)
def test_what_the_site_would_refuse(slurm: Cluster, base: Path, arguments: list[str], words: list[str]) -> None:
    before = slurm.states()
    result = launch(slurm, base, "refused", "--partition", "gpu", *arguments)
    said = " ".join(result.stderr.split())
    assert result.returncode == 2 and "nothing was submitted" in said and "Traceback" not in said, said
    for word in words:
        assert word in said
    assert slurm.states().keys() <= before.keys()


@needs_slurm
def test_while_the_controller_is_away(slurm: Cluster, base: Path) -> None:
    """Nothing is submitted or trained here by accident; jobs that run go on, and status tells what they have written."""
    result = launch(slurm, base, "away", "--partition", "gpu", "--gpus-per-node", "1", "train.epochs=12")
    assert result.returncode == 0, result.stderr
    (path,) = (base / "away").glob("ser-*")
    run = RunDir(path)
    jobs = newest_jobs(run)
    status = [sys.executable, "-m", "ser_hpc.status", str(path)]
    slurm.stop_controller()
    try:
        again = launch(slurm, base, "away", "--partition", "gpu", "--gpus-per-node", "1", "train.epochs=12")
        assert again.returncode == 2 and "does not answer" in again.stderr and "Nothing was started" in again.stderr
        shown = subprocess.run(status, env=slurm.env, capture_output=True, text=True)
        assert shown.returncode == 0 and "The queue is not known" in shown.stdout
    finally:
        slurm.start_controller()
    assert set(slurm.wait(jobs, timeout_s=400).values()) == {"COMPLETED"}
    assert json.loads(run.report_json.read_text())["missing"] == []
    without = slurm.env | {"PATH": str(base / "bin")}  # a site without accounting: no sacct
    (base / "bin").mkdir()
    for name in ("squeue", "scontrol"):
        (base / "bin" / name).symlink_to(str(shutil.which(name)))
    shown = subprocess.run(status, env=without, capture_output=True, text=True)
    assert shown.returncode == 0 and "4 trials, all done" in shown.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting is not permitted here")
def test_a_disk_that_fills_up_while_saving(base: Path, tmp_path: Path) -> None:
    """The checkpoint does not fit: the trial stops and says so, keeps what it had, and goes on once there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        run = planned(disk, packed_tones(base), "train.epochs=3", "train.checkpoint_minutes=0.0001")
        (disk / "others").write_bytes(bytes(150_000))
        assert run_here(run, Trial(0, 0)) == {Trial(0, 0): 2}
        end = read_end(run.trial(Trial(0, 0)).current)
        assert end.error is not None and "does not fit on the disk" in end.error and "Free some space" in end.error
        (disk / "others").unlink()
        assert subprocess.run(["mount", "-o", "remount,size=20m", str(disk)]).returncode == 0
        assert run_here(run, Trial(0, 0)) == {Trial(0, 0): 0}
    finally:
        subprocess.run(["umount", str(disk)], check=True)
