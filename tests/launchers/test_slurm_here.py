"""The cluster that other tests rely on: what Slurm does to jobs and nodes happens on it, quickly, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_here import Cluster, Options, missing, start

from ser_hpc.core.errors import UserError

needs_slurm = pytest.mark.skipif(missing() is not None, reason=str(missing()))

# Each start of a job is a line: its host, then the signals that it was sent.
NOTE = r"""#!/bin/bash
trap 'echo USR2 >> "$1.signals"' USR2
trap 'echo TERM >> "$1.signals"; exit 143' TERM
echo "$(hostname) $SLURMD_NODENAME ${SLURM_RESTART_COUNT:-0} ${SLURM_ARRAY_TASK_ID:-}" >> "$1"
for second in $(seq "$2"); do sleep 1; done
"""


@pytest.fixture
def note(slurm: Cluster, tmp_path: Path) -> Callable[..., tuple[str, Path]]:
    """`note(seconds, *sbatch_options)`: a job that takes both GPUs of a node; returns its id and the file of its starts."""
    script = tmp_path / "note.sh"
    script.write_text(NOTE)

    def submit(seconds: int, *options: str) -> tuple[str, Path]:
        starts = tmp_path / f"starts-{len(list(tmp_path.iterdir()))}"
        starts.touch()
        job = slurm.sbatch("--output=/dev/null", "--gpus-per-node=2", *options, script, starts, str(seconds))
        return job, starts

    return submit


def lines(path: Path, number: int, timeout_s: float = 60) -> list[list[str]]:
    """The words of a file's lines, once there are so many."""
    deadline = time.monotonic() + timeout_s
    while len(found := path.read_text().splitlines()) < number:
        assert time.monotonic() < deadline, f"{number} lines awaited in {path}: {found}"
        time.sleep(0.1)
    return [line.split() for line in found]


def test_an_array_fills_the_nodes_and_accounting_knows_it(slurm: Cluster, note: Callable[..., tuple[str, Path]]) -> None:
    job, starts = note(1, "--array=0-2", "--time=1")
    assert slurm.wait([job]) == {f"{job}_{index}": "COMPLETED" for index in range(3)}
    assert sorted(node for _, node, *_ in lines(starts, 3)) == slurm.nodes
    for _ in range(50):  # slurmctld tells the database a moment later
        told = slurm.run("sacct", "-n", "-X", "-P", "-j", job, "--format=JobID,State").splitlines()
        if sorted(told) == [f"{job}_{index}|COMPLETED" for index in range(3)]:
            break
        time.sleep(0.2)
    else:
        pytest.fail(f"sacct says {told}")


def test_ranks_reach_each_other_by_host_name(slurm: Cluster, tmp_path: Path) -> None:
    """Rank 0 listens under its own host name and publishes that; rank 1, on another node, gets through."""
    (tmp_path / "rank.py").write_text(
        "import os, pathlib, socket, time\n"
        "where = pathlib.Path('where')\n"
        "if os.environ['SLURM_PROCID'] == '0':\n"
        "    server = socket.create_server((socket.gethostname(), 0))\n"
        "    pathlib.Path('aside').write_text(f'{socket.gethostname()} {server.getsockname()[1]}')\n"
        "    pathlib.Path('aside').rename(where)\n"
        "    server.accept()[0].sendall(os.environ['SLURMD_NODENAME'].encode())\n"
        "else:\n"
        "    while not where.exists(): time.sleep(0.05)\n"
        "    host, port = where.read_text().split()\n"
        "    heard = socket.create_connection((host, int(port)), timeout=10).recv(99).decode()\n"
        "    print(heard, os.environ['SLURMD_NODENAME'], host if host.startswith('n') else 'shared')\n"
    )
    command = f"srun {sys.executable} -I rank.py"
    job = slurm.sbatch("--nodes=2", "--ntasks-per-node=1", f"--chdir={tmp_path}", "--output=said", "--wrap", command)
    assert slurm.wait([job]) == {job: "COMPLETED"}
    assert (tmp_path / "said").read_text().split() == ["n1", "n2", "n1" if slurm.network is not None else "shared"]


def test_requeue_of_one_element_starts_it_again_and_no_other(note: Callable[..., tuple[str, Path]], slurm: Cluster) -> None:
    job, starts = note(100, "--array=0-1")
    lines(starts, 2)
    slurm.run("scontrol", "requeue", f"{job}_1")
    assert [words[2:] for words in lines(starts, 3)][2] == ["1", "1"], "restart 1 of element 1"
    assert slurm.states()[f"{job}_0"] == "RUNNING"


@pytest.mark.parametrize("own_signal", [True, False], ids=["own signal", "TERM alone"])
def test_urgent_preempts_and_the_job_runs_again(
    slurm: Cluster, note: Callable[..., tuple[str, Path]], own_signal: bool
) -> None:
    with slurm.changed(send_user_signal=own_signal):
        job, starts = note(100, "--nodelist=n1", "--signal=B:USR2@60")
        lines(starts, 1)
        urgent, _ = note(1, "--nodelist=n1", "--partition=urgent")
        assert slurm.wait([urgent]) == {urgent: "COMPLETED"}
        assert [words[2] for words in lines(starts, 2)] == ["0", "1"]
        signals = starts.with_name(f"{starts.name}.signals").read_text().split()
        assert ("USR2" in signals) == own_signal and "TERM" in signals
        assert slurm.states()[job] == "RUNNING"


@pytest.mark.faults
def test_a_node_cut_off_is_noticed_and_its_job_runs_elsewhere(slurm: Cluster, note: Callable[..., tuple[str, Path]]) -> None:
    if slurm.network is None:
        pytest.skip("network namespaces are not permitted here")
    _, starts = note(100)
    lost = lines(starts, 1)[0][1]
    slurm.cut(lost)
    again = lines(starts, 2)[1]
    assert again[1] != lost and again[2] == "1"
    slurm.rest()
    back, _ = note(1, f"--nodelist={lost}")
    assert slurm.wait([back]) == {back: "COMPLETED"}


def test_steps_outlive_a_slurmd_that_is_killed_alone(slurm: Cluster, note: Callable[..., tuple[str, Path]]) -> None:
    """As on a node whose daemon has crashed: the ranks there are zombies that no longer belong to a job."""
    _, starts = note(100)
    node = lines(starts, 1)[0][1]
    slurm.kill_slurmd(node)
    assert steps(starts)
    slurm.kill_slurmd(node, with_steps=True)
    assert not steps(starts)


def steps(starts: Path) -> list[str]:
    """Processes of the job that notes its starts there."""
    return subprocess.run(["pgrep", "--full", str(starts)], capture_output=True, text=True).stdout.split()


@needs_slurm
@pytest.mark.parametrize("network", [True, False], ids=["networks", "one host"])
def test_nothing_outlives_a_killed_owner(short_path: Path, network: bool) -> None:
    """A killed pytest leaves no daemon, no job, not even one that hides from its session and environment's names."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(short_path / "c"), str(network)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout
    assert owner.stdout.readline() == "ready\n"
    cluster = Cluster(short_path / "c")
    assert len(cluster.processes()) >= 4  # munged, slurmctld, slurmd and the job
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 20
    while cluster.processes() or steps(short_path / "c"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    owner.stdout.close()
    cluster.stop()  # a second time, to no effect


OWNER = """
import pathlib, sys, time
sys.path.append("tools")
from slurm_here import Options, start
folder = pathlib.Path(sys.argv[1])
cluster = start(folder, Options(nodes=1, accounting=False, network=sys.argv[2] == "True"))
cluster.sbatch("--output=/dev/null", "--wrap", f"setsid sleep 300 & touch {folder}/job; sleep 301")
while not (folder / "job").exists():
    time.sleep(0.1)
print("ready", flush=True)
time.sleep(300)
"""


@needs_slurm
def test_a_start_that_fails_halfway_says_why_and_leaves_nothing(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = short_path / "bin" / "slurmctld"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'out of order'\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"slurmctld has ended(.|\n)*out of order"):
        start(short_path / "c", Options(accounting=False))
    assert not Cluster(short_path / "c").processes()


@needs_slurm
def test_a_folder_with_something_in_it_is_refused(short_path: Path) -> None:
    (short_path / "mine").touch()
    with pytest.raises(UserError, match="not empty"):
        start(short_path)
