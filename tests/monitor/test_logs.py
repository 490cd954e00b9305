"""Of all that several ranks print when one of them fails, the cause is found, not what followed from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ser_hpc.monitor.logs import find_cause, last_lines, log_files
from ser_hpc.results.run_dir import RunDir, Trial

BEGIN = "submitit INFO (2026-11-21 12:35:07,424) - Starting with JobEnvironment(job_id=7_0, hostname=n1, local_rank=0(2))\n"
GLOO = """\
Traceback (most recent call last):
  File "/scratch/runs/x/code/ab/ser_hpc/engine/ddp.py", line 71, in step
    dist.all_reduce(flat)
RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:34567
seed 0 fold 0 failed: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:34567
srun: error: n1: task 0: Exited with exit code 1
srun: Terminating StepId=7.0
slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-21T12:36:00 ***
"""
NCCL = """\
[rank0]:[E1121 12:36:00.1 ProcessGroupNCCL.cpp:632] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=88)
[rank0]:[E1121 12:36:00.2 ProcessGroupNCCL.cpp:756] [Rank 0] To avoid data inconsistency, we are taking the entire process down.
[rank0]: torch.distributed.DistBackendError: NCCL communicator was aborted on rank 0.
terminate called after throwing an instance of 'c10::DistBackendError'
"""
CUDA = """\
[rank1]: Traceback (most recent call last):
[rank1]:   File "/scratch/runs/x/code/ab/ser_hpc/engine/loop.py", line 120, in train_trial
[rank1]:     loss.backward()
[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.20 GiB. GPU 1 has a total capacity of 79.11 GiB
srun: error: n2: task 1: Exited with exit code 1
"""
CHAINED = """\
Traceback (most recent call last):
  File "read.py", line 3, in clip
KeyError: 'sample_rate'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "read.py", line 5, in clip
ValueError: clip emodb-03a01Fa cannot be decoded
"""
WORKER = """\
Traceback (most recent call last):
  File "loop.py", line 3, in train_trial
RuntimeError: Caught IndexError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "worker.py", line 5, in fetch
IndexError: index 12 is out of bounds
"""
HOST_MEMORY = """\
slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.
srun: error: n1: task 1: Out Of Memory
"""
TIME_LIMIT = """\
slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-21T13:00:00 DUE TO TIME LIMIT ***
srun: Job step aborted: Waiting up to 32 seconds for job step to finish.
slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-21T13:00:00 DUE TO TIME LIMIT ***
"""


@pytest.mark.parametrize("fellow", [GLOO, NCCL], ids=["gloo", "nccl"])
@pytest.mark.parametrize(
    ("text", "line", "blames_node"),
    [
        (CUDA, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", False),
        (CHAINED, "ValueError: clip emodb-03a01Fa cannot be decoded", True),
        (WORKER, "IndexError: index 12 is out of bounds", True),
        (HOST_MEMORY, "slurmstepd: error: Detected 1 oom_kill event", False),
        (TIME_LIMIT, "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-21T13:00:00 DUE TO TIME LIMIT", False),
        (TIME_LIMIT.replace("TIME LIMIT", "PREEMPTION"), "slurmstepd: error: *** JOB 7 ON n1 CANCELLED", False),
        ("srun: error: Node failure on n2\n", "srun: error: Node failure on n2", True),
        ("error: data.shards names no shards: /scratch/gone\n", "data.shards names no shards", False),
        ("ser_hpc.errors.UserError: the loss is not finite at step 3\n", "the loss is not finite", False),
        ("OSError: [Errno 122] Disk quota exceeded: 'model.tmp'\n", "OSError: [Errno 122] Disk quota exceeded", False),
        (
            "Fatal Python error: Segmentation fault\n\nThread 0x1 (most recent call first):\n  File\n",
            "Fatal Python error",
            True,
        ),
        ("srun: fatal: SLURM_MEM_PER_CPU and SLURM_MEM_PER_NODE are mutually exclusive.\n", "srun: fatal: SLURM_MEM", False),
        ("/var/spool/slurmd/job7/slurm_script: line 9: module: command not found\n", "/var/spool/slurmd", True),
    ],
)
def test_the_cause_is_found_behind_the_fellow_ranks_errors(
    tmp_path: Path, text: str, line: str, blames_node: bool, fellow: str
) -> None:
    """Whichever rank it is in, whoever was told first, and also where all ranks share one log."""
    logs = [tmp_path / f"7_0_{rank}_log.out" for rank in range(3)]
    for texts in ((fellow, text, fellow), (text, fellow, fellow), (fellow + text, "", ""), (text + fellow, "", "")):
        for path, content in zip(logs, texts, strict=True):
            path.write_text(BEGIN + content)
        told = "RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer"
        for also in (None, told):
            cause = find_cause(logs, also)
            assert cause and cause.line.startswith(line) and cause.blames_node == blames_node


def test_a_fellows_error_is_better_than_none(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(GLOO)
    cause = find_cause([log, tmp_path / "not there"])
    assert cause and "Connection closed by peer" in cause.line and cause.blames_node
    log.write_text("training ...\n")
    assert find_cause([log]) is None


def test_an_earlier_start_in_the_same_log_does_not_count(tmp_path: Path) -> None:
    """Requeued jobs append. But one that only refuses to go on has its cause in the start before."""
    log = tmp_path / "log"
    log.write_text(BEGIN + CUDA + BEGIN + CHAINED)
    cause = find_cause([log])
    assert cause and cause.line.startswith("ValueError: clip")
    refusal = "seed 0 fold 0 failed 2 times in a row at step 3; it is not tried again. The reason: killed without a word"
    log.write_text(BEGIN + TIME_LIMIT + BEGIN + HOST_MEMORY + BEGIN + f"error: {refusal}\n")
    cause = find_cause([log], f"UserError: {refusal}")
    assert cause and "oom_kill" in cause.line
    log.write_text(BEGIN + f"error: {refusal}\n")
    cause = find_cause([log], f"UserError: {refusal}")
    assert cause and cause.line == refusal


def test_progress_bars_and_colours_do_not_reach_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("loading 1%\rloading 99%\r\nValueError: \x1b[31mred\x1b[0m \x07bell\n")
    cause = find_cause([log])
    assert cause and cause.line == "ValueError: red bell"
    assert last_lines(log, 5)[0] == "loading 99%" and len(last_lines(log, 1)) == 1


def test_logs_are_those_of_the_attempts_ranks_in_their_order(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    names = [f"trials/7_1_{rank}_log.out" for rank in range(12)]
    for name in (
        *names,
        "trials/7_11_0_log.out",
        "trials/17_1_0_log.out",
        "trials/7_1_0_result.pkl",
        "seed_0-fold_1.log",
        "mine-7.txt",
    ):
        (run.jobs / name).parent.mkdir(parents=True, exist_ok=True)
        (run.jobs / name).touch()
    trial = Trial(0, 1)
    assert [path.relative_to(run.jobs).as_posix() for path in log_files(run, trial, {"job": "7_1"})] == names
    assert [path.name for path in log_files(run, trial, {"job": None})] == ["seed_0-fold_1.log"]
    assert [path.name for path in log_files(run, trial, {"job": "7_1", "log": str(run.jobs / "mine-%t.txt")})] == ["mine-7.txt"]
