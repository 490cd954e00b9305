"""Of all that several ranks print when one of them fails, the cause is found, not what followed from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ser_hpc.monitor.logs import find_cause, last_lines, log_files
from ser_hpc.run.run_dir import RunDir, Trial

BEGIN = "submitit INFO (2026-11-21 12:35:07,424) - Starting with JobEnvironment(job_id=7_0, hostname=n1, local_rank=0(2))\n"
CLAIM = "seed 0 fold 0: attempt 3 begins on n1\n"
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
        ("ser_hpc.core.errors.UserError: the loss is not finite at step 3\n", "the loss is not finite", False),
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


# What is said before Python runs, in the words of bash, srun, containers' runtimes and the linker; then Slurm's account of it.
LAUNCH = [
    ("srun: fatal: SLURM_MEM_PER_CPU, SLURM_MEM_PER_GPU, and SLURM_MEM_PER_NODE are mutually exclusive.", False),
    ("srun: error: --gpus-per-task and --gpus-per-node are mutually exclusive", False),
    ("srun: error: Unable to create step for job 7: More processors requested than permitted", False),
    ("srun: error: Task launch for StepId=7.0 failed on node n1: Invalid job credential", False),
    ("srun: error: Application launch failed: User not found on host", True),
    ("sbatch: error: Batch job submission failed: Invalid partition name specified", False),
    ("slurmstepd: error: execve(): python: No such file or directory", True),
    ("slurmstepd: error: couldn't chdir to `/scratch/me': No such file or directory: going to /tmp instead", True),
    ("slurmstepd: error: Could not open stdout file /home/me/runs/jobs/7_0_log.out: Permission denied", True),
    ("/var/spool/slurmd/job00007/slurm_script: line 9: /opt/env/bin/activate: No such file or directory", True),
    ("/var/spool/slurmd/job00007/slurm_script: line 9: syntax error near unexpected token `fi'", False),
    ("/var/spool/slurmd/job00007/slurm_script: line 9: CUDA_HOME: unbound variable", False),
    ("/var/spool/slurmd/job00007/slurm_script: line 9: ./python: Permission denied", True),
    ("/var/spool/slurmd/job00007/slurm_script: line 9: ./python: cannot execute: required file not found", True),
    ("/bin/sh: 1: module: not found", True),
    ("/var/spool/slurmd/job00007/slurm_script: 4: source: not found", True),
    ("/var/spool/slurmd/job00007/slurm_script: 4: Syntax error: end of file unexpected", False),
    ("bash: module: command not found", True),
    ("mkdir: cannot create directory '/scratch/me': Permission denied", True),
    ("/usr/bin/env: 'python': No such file or directory", True),
    ("python: can't open file '/home/me/train.py': [Errno 2] No such file or directory", True),
    ("/usr/bin/python3: No module named ser_hpc", True),
    ('Lmod has detected the following error:  The following module(s) are unknown: "cuda/99"', True),
    ("ERROR: Unable to locate a modulefile for 'cuda/99'", True),
    ("EnvironmentNameNotFound: Could not find conda environment: ser", True),
    ("FATAL:   could not open image /home/me/ser.sif: failed to retrieve path for /home/me/ser.sif", True),
    ("nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown", True),
    ("slurmstepd: error: pyxis: failed to import docker image", True),
    ("slurmstepd: error: spank: required plugin spank_pyxis.so: task_init() failed with rc=-1", True),
    ("python: error while loading shared libraries: libpython3.11.so.1.0: cannot open shared object file", True),
    ("python: /lib64/libc.so.6: version `GLIBC_2.34' not found (required by python)", True),
]
AFTERMATH = """\
srun: error: n1: task 0: Exited with exit code 1
srun: Terminating StepId=7.0
/var/spool/slurmd/job00007/slurm_script: line 12:  4321 Killed                  srun python
slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-21T12:36:00 ***
"""


@pytest.mark.parametrize(("line", "blames_node"), LAUNCH)
def test_what_kept_python_from_starting_is_found(tmp_path: Path, line: str, blames_node: bool) -> None:
    """Before what Slurm says of the tasks, and before what ranks say that did start; once Python ran, it had no part."""
    log = tmp_path / "log"
    for text in (f"{AFTERMATH}{line}\n", f"{line}\n{AFTERMATH}", BEGIN + GLOO + f"{line}\n", f"{line}\n{TIME_LIMIT}"):
        log.write_text(text)
        cause = find_cause([log])
        assert cause and cause.line == line and cause.blames_node == blames_node
    log.write_text(f"{line}\n" + BEGIN + TIME_LIMIT)
    cause = find_cause([log])
    assert cause and "TIME LIMIT" in cause.line
    log.write_text(BEGIN + CUDA + f"ser_hpc: exit code 1: job 7_0 is started again\n{line}\n{AFTERMATH}")
    cause = find_cause([log])
    assert cause and cause.line == line, "of the newest start, though Python did not begin in it"


@pytest.mark.parametrize(
    ("line", "blames_node"),
    [
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False),
        ("RuntimeError: cuFFT error: CUFFT_ALLOC_FAILED", False),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED", False),
        ("RuntimeError: CUDA driver version is insufficient for CUDA runtime version", True),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", True),
        ("Failed to initialize NVML: Driver/library version mismatch", True),
        ("OSError: [Errno 116] Stale file handle: '/scratch/me/x'", True),
        ("cat: /scratch/me/x: Input/output error", True),
        ("OSError: [Errno 12] Cannot allocate memory", False),
    ],
)
def test_what_the_node_lacks_is_nearer_than_what_raised_for_it(tmp_path: Path, line: str, blames_node: bool) -> None:
    log = tmp_path / "log"
    log.write_text(BEGIN + GLOO + CHAINED + f"{line}\n{AFTERMATH}")
    cause = find_cause([log])
    assert cause and cause.line == line and cause.blames_node == blames_node


def test_of_a_container_that_could_not_be_made_its_tools_own_word_counts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "pyxis: importing docker image: nvcr.io/nvidia/pytorch:99\n"
        "slurmstepd: error: pyxis: child 3134 failed with error code: 1\n"
        "slurmstepd: error: pyxis: failed to import docker image\n"
        "slurmstepd: error: pyxis: printing enroot log file:\n"
        "slurmstepd: error: pyxis:     [INFO] Querying registry for permission grant\n"
        "slurmstepd: error: pyxis:     [ERROR] URL https://nvcr.io/v2/ returned error code: 401 Unauthorized\n"
        "slurmstepd: error: pyxis: couldn't start container\n" + AFTERMATH
    )
    cause = find_cause([log])
    assert cause and cause.line.endswith("401 Unauthorized")


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
    for begin in (BEGIN, BEGIN + CLAIM, CLAIM):
        again = "ser_hpc: exit code 1: job 7_0 is started again\n"
        for between in ("", again, again + "a module was loaded\n"):
            log.write_text(begin + TIME_LIMIT + between + begin + HOST_MEMORY + between + begin + f"error: {refusal}\n")
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
    others = ["trials/7_11_0_log.out", "trials/17_1_0_log.out", "trials/7_1_0_result.pkl", "trials/8_0_log.out"]
    mine = [f"mine-{rank:02}.txt" for rank in range(12)]
    for name in (*names, *others, *mine, "seed_0-fold_1.log", "100%t.txt"):
        (run.jobs / name).parent.mkdir(parents=True, exist_ok=True)
        (run.jobs / name).touch()

    def found(**attempt: object) -> list[str]:
        return [path.relative_to(run.jobs).as_posix() for path in log_files(run, Trial(0, 1), attempt)]

    assert found(job="7_1") == found(job="7_1", ranks=12) == names
    (run.jobs / names[3]).unlink()
    assert found(job="7_1", ranks=12) == [*names[:3], *names[4:]], "a node that cannot write hides no other"
    assert found(job="8") == ["trials/8_0_log.out"]
    assert found(job=None) == ["seed_0-fold_1.log"]
    for log in ("mine-%02t.txt", "mine-%2t.txt"):
        assert found(job="7_1", ranks=12, log=str(run.jobs / log)) == mine
    assert found(job="7_1", ranks=12, log=str(run.jobs / "mine-03.txt")) == ["mine-03.txt"]


def test_of_a_submission_with_a_folder_of_its_own_each_element_has_its_logs_in_one(tmp_path: Path) -> None:
    """A submission's ids may come again after a reset of Slurm's counter; its folder does not."""
    run, trial = RunDir(tmp_path), Trial(0, 1)
    names = [
        "trials/7_1_0_log.out",
        "a1b2/1/9_1_0_log.out",
        "a1b2/1/9_1_1_log.out",
        "a1b2/0/9_0_0_log.out",
        "c3d4/0/11_0_log.out",
    ]
    for name in names:
        (run.jobs / name).parent.mkdir(parents=True, exist_ok=True)
        (run.jobs / name).touch()
    folders = {"9": "a1b2", "11": "c3d4"}
    found = {
        job: [path.relative_to(run.jobs).as_posix() for path in log_files(run, trial, {"job": job}, folders)]
        for job in ("7_1", "9_1", "9_0", "11", "9_2")
    }
    assert found == {"7_1": names[:1], "9_1": names[1:3], "9_0": names[3:4], "11": names[4:], "9_2": []}


def test_looking_for_logs_lists_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of jobs share one, and each trial's logs are looked for."""
    run = RunDir(tmp_path)
    (run.jobs / "trials").mkdir(parents=True)
    (run.jobs / "trials" / "7_1_0_log.out").touch()
    for name in ("scandir", "listdir"):
        monkeypatch.delattr(os, name)
    assert log_files(run, Trial(0, 1), {"job": "7_1"}) and not log_files(run, Trial(0, 1), {"job": "7_2", "ranks": 2})
