"""Which rank of how many: from srun, torchrun or our launcher; a wrong start is an error at once, not a hang."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from ser_hpc.core.errors import UserError
from ser_hpc.engine.fault.preemption import STOP_SIGNALS, StopFlag, stop_time
from ser_hpc.run.rank import Rank, is_torchrun, rank_from_env, start_id, submission_id, unconfirmed_ranks

STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
}
OF_TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
OF_TORCHRUN |= {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"}


def test_ranks_of_srun_torchrun_and_alone() -> None:
    assert rank_from_env(STEP | {"SLURM_NTASKS": "4"}) == Rank(3, 4, 1, 2)
    assert rank_from_env(OF_TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"}) == Rank(5, 8, 1, 4)
    assert rank_from_env(OF_TORCHRUN | {"SER_HPC_START": "7f"}) == Rank(5, 8, 1, 4)
    assert rank_from_env({}) == Rank(0, 1, 0, 1)


def test_leftovers_are_believed_by_nobody() -> None:
    """Of another job, a shell or a container: srun's own word counts, and who is alone stays alone, and is told so."""
    assert rank_from_env(STEP | OF_TORCHRUN) == rank_from_env(STEP)
    alone = rank_from_env(OF_TORCHRUN)
    assert alone == Rank(0, 1, 0, 1)
    assert (
        "WORLD_SIZE=8" in str(unconfirmed_ranks(OF_TORCHRUN, alone)) and unconfirmed_ranks({"WORLD_SIZE": "1"}, alone) is None
    )
    assert unconfirmed_ranks(STEP | OF_TORCHRUN, rank_from_env(STEP)) is None
    assert rank_from_env({"SLURM_NTASKS": "4"}) == alone  # srun's option as a variable: no job is here


def test_a_launcher_within_a_slurm_step_is_believed() -> None:
    """torchrun, one a node, and ours, for trials side by side, start ranks of their own; ours even from under torchrun."""
    step = STEP | OF_TORCHRUN | {"MASTER_ADDR": "n1"}
    assert rank_from_env(step | {"TORCHELASTIC_RUN_ID": "none"}) == Rank(5, 8, 1, 4)
    assert is_torchrun(step | {"TORCHELASTIC_RUN_ID": "none"}) and not is_torchrun(step)
    assert not is_torchrun(step | {"TORCHELASTIC_RUN_ID": "none", "SER_HPC_START": "7f"})


def test_marks_without_the_rest_are_leftovers_and_what_is_no_number_is_told() -> None:
    """Of a job long gone, or of a shell: nobody's ranks. Never a traceback."""
    for some in ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}, {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2"}):
        assert rank_from_env(some) == Rank(0, 1, 0, 1)
    for name, env in (("RANK", OF_TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"}), ("SLURM_PROCID", STEP)):
        with pytest.raises(UserError, match=f"{name}='abc' is no number"):
            rank_from_env(env | {name: "abc"})


def test_the_ranks_of_a_node_under_enroot() -> None:
    """Its hook (and pyxis with it) sets RANK, WORLD_SIZE and LOCAL_RANK, but not how many ranks a node has: four of eight."""
    srun = STEP | {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}
    hook = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
    assert rank_from_env(srun | hook) == Rank(5, 8, 1, 4)


def test_a_task_without_srun_is_refused() -> None:
    """`python -m ser_hpc.train` in a batch script of four tasks would train alone, or wait for three that never come."""
    with pytest.raises(UserError, match=r"4 tasks.*without srun"):
        rank_from_env({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"})


def test_a_restart_has_a_name_of_its_own_and_belongs_to_the_same_submission() -> None:
    """Ranks of one start find each other and no others; restarts are counted together."""
    job = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_STEP_ID": "0"}
    assert start_id(job) != start_id(job | {"SLURM_RESTART_COUNT": "1"})
    assert submission_id(job) == submission_id(job | {"SLURM_RESTART_COUNT": "1"}) == "7_2"


def test_the_jobs_end_is_a_reason_to_stop() -> None:
    """Even if no signal comes, and earlier where saves take long."""
    assert stop_time({"SER_HPC_STOP_TIME": "1000"}) == 1000 and stop_time({"SER_HPC_STOP_TIME": ""}) is None
    assert StopFlag(stop_time=1000.0).reason() is not None
    assert StopFlag(stop_time=4e9).reason(save_s=60) is None
    assert StopFlag(stop_time=4e9).reason(save_s=2e9) is not None
    assert StopFlag(None).reason(save_s=1e9) is None


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_is_noted_and_spares_what_was_started_meanwhile(number: signal.Signals) -> None:
    """A cluster signals every process of a job: a compiler of ours among them, whose end would be a failure."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with StopFlag() as stop:
        assert stop.reason() is None
        child = subprocess.Popen(["sleep", "60"])
        child.send_signal(number)
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 10
        while stop.reason() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop.reason() == number.name
        assert child.poll() is None
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
