"""Call sbatch once: a submission is never lost and never made twice, whatever happens to the launcher or to Slurm's answer.

1. The submission is noted, under a name that no other job has, before Slurm is asked.
2. sbatch holds the run's lock along with the launcher: if that is killed, the next one waits until sbatch has ended too.
3. The answer is noted. Where there is none, or it says that something timed out, the queue is asked for a job of that name.

What is noted as asked, and no more, the next launcher looks for (jobs.settle_submissions).
"""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from ser_hpc.core.atomic_io import write_text
from ser_hpc.core.errors import UserError
from ser_hpc.launchers.slurm import jobs
from ser_hpc.launchers.slurm.queue import SlurmError, squeue
from ser_hpc.launchers.slurm.submissions import TRIALS, Submission, record_submission
from ser_hpc.run.run_dir import RunDir

_SBATCH_S = 300.0
_LOOK_S, _LOOK_EVERY_S = 30.0, 3.0
# Slurm's words after which it may have taken the job all the same.
_UNCERTAIN = re.compile(
    r"timed out|timeout|unable to contact|connect|communication|zero bytes|send/recv|unexpected message", re.I
)
_TOO_MANY = re.compile(r"MaxSubmit|job submit limit|MaxArraySize|Invalid job array specification", re.I)


class RefusedError(UserError):
    """Slurm has queued nothing; the message is its reason. `too_many`: fewer jobs might do."""

    def __init__(self, message: str) -> None:
        super().__init__(f"Slurm refused the jobs: {message}")
        self.too_many = _TOO_MANY.search(message) is not None


def submit_once(run: RunDir, submission: Submission, script: str, lock: int) -> Submission:
    """Hand a batch script to sbatch; return the submission with its job's number, on record.

    `lock`: descriptor of the run's lock, which the caller holds. Raises RefusedError, or UserError where Slurm does not say
    whether it has queued the jobs.
    """
    assert submission.mark is not None
    path = run.jobs / submission.mark / f"{submission.kind}.sh"
    write_text(path, script)
    for element, trials in submission.elements.items():  # and for its logs: Slurm makes no folders
        write_text(path.parent / str(element) / TRIALS, " ".join(f"{trial.seed}:{trial.fold}" for trial in trials))
    record_submission(run, submission)
    job, message = _sbatch(path, lock)
    uncertain = job is None and (not message or _UNCERTAIN.search(message) is not None)
    if job is None:
        job = _look_for(submission, _LOOK_S if uncertain else 0.0)
    if job is None and uncertain:
        raise UserError(
            f"whether Slurm took the jobs is not known ({message or 'no answer'}): nothing more was submitted. Give the same "
            f"command again when Slurm answers: it looks for them first, by their name ({submission.name})"
        )
    result = replace(submission, job=job, outcome="queued" if job else "void")
    record_submission(run, result)
    if job is None:
        raise RefusedError(message)
    return result


def _sbatch(script: Path, lock: int) -> tuple[str | None, str]:
    """Run sbatch; return the job's number, or None, and its message."""
    command = ["sbatch", "--parsable", str(script)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SBATCH_S, pass_fds=[lock], check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"sbatch: no answer within {_SBATCH_S:.0f} s: timed out"
    except OSError as error:
        return None, f"sbatch: {error.strerror}"
    message = " ".join(f"{done.stderr} {done.stdout}".split())
    answer = re.search(r"^(\d+)(;\S*)?$", done.stdout, re.M)  # `123`, or `123;cluster`
    if done.returncode == 0 and answer:
        return answer[1], message
    return None, message if done.returncode >= 0 else ""  # killed: it may have come to it


def _look_for(submission: Submission, seconds: float) -> str | None:
    """Look for the submission's job by name for so many seconds. None: there is none, or Slurm does not answer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if (job := jobs.find_job(submission, squeue({submission.user}))) is not None:
                return job
        except SlurmError:
            pass
        if time.monotonic() >= deadline:
            return None
        time.sleep(_LOOK_EVERY_S)
