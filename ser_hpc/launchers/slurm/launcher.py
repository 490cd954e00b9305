"""Submit trials to Slurm, as a launcher; and the array of slurm/train.sbatch, which its tasks submit after the fact."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.launchers.estimate import estimate_cost
from ser_hpc.launchers.job_state import JobState
from ser_hpc.launchers.launcher import Batch, Held, Launcher
from ser_hpc.launchers.slurm import enqueue, inherited_variables, jobs, site_checks, submit
from ser_hpc.launchers.slurm.submissions import read_submissions, record_submission
from ser_hpc.run import snapshot
from ser_hpc.run.experiment import Experiment
from ser_hpc.run.run_dir import RunDir, Trial


class SlurmLauncher(Launcher):
    """Queue trials as arrays, and their report after them.

    `is_here`: Slurm answers on this machine, so it is asked also where nothing of a run is known to have been submitted;
    `own_test`: whether Slurm's own test of the jobs must be passed; `ended`: clusters whose jobs are known to be over.
    """

    def __init__(self, *, is_here: bool = True, own_test: bool = True, ended: Sequence[str] = ()) -> None:
        self._is_here, self._own_test, self._ended = is_here, own_test, ended
        self._offer: enqueue.Offer | None = None

    def resolve(self, cluster: ClusterSettings, out: Console) -> ClusterSettings:
        return inherited_variables.drop_inherited(cluster, out)

    def show(self, experiment: Experiment, todo: Sequence[Trial], out: Console) -> bool:
        """Print the exact batch scripts and the site's verdict on them."""
        run, settings = experiment.run, experiment.settings
        num_jobs, shared = len(enqueue.group_trials(settings, todo)), settings.trials_per_job > 1
        if not num_jobs:
            return True
        if shared:
            how = "one after another" if settings.trains_in_turn else "at the same time"
            out.print(f"{counted(len(todo), 'trial')} share {counted(num_jobs, 'job')}, {how}.")
        cluster, chosen = site_checks.choose_gpus(settings.cluster)
        environment = snapshot.snapshot_environment(snapshot.CodeSnapshot(run.code.resolve() / snapshot.present_digest()))
        scripts = submit.batch_scripts(run, num_jobs, cluster, environment, shared=shared)
        for name, text in scripts:
            out.print(f"\n----- the batch script of the {name}")
            out.print(text, soft_wrap=True)
        out.print("-----")
        try:
            notes = site_checks.check_trial_jobs(cluster, run.path, estimate_cost(experiment, on_gpu=True).disk_peak, scripts)
            out.print("The site would take these jobs." + "".join(f"\nnote: {note}" for note in (*chosen, *notes)))
        except UserError as error:
            out.print(Text.assemble(("Launched like this, it would be refused: ", "red"), str(error)))
            return False
        return True

    def held(self, run: RunDir, cluster: ClusterSettings) -> Held:
        """Settle first what became of submissions whose answer was never noted."""
        for name in self._ended:
            jobs.end_elsewhere(run, name)
        found = jobs.settle_submissions(run)
        trials = self.active(run)
        return Held(trials, [*found, *enqueue.not_applied(run, trials, cluster)], jobs.queued_codes(run, trials))

    def active(self, run: RunDir) -> Mapping[Trial, JobState]:
        return jobs.active_jobs(run, on_slurm=self._is_here)

    def states(self, run: RunDir) -> tuple[Mapping[Trial, JobState], Sequence[str]]:
        return jobs.job_states(run)

    def check(self, batch: Batch) -> Sequence[str]:
        self._offer, notes = enqueue.check_offer(batch, own_test=self._own_test)
        return notes

    def submit(self, batch: Batch) -> Sequence[Trial]:
        assert self._offer is not None, "checked before"
        return enqueue.enqueue_trials(batch, self._offer)

    def add_missing_report(self, batch: Batch) -> None:
        if batch.held:
            environment = snapshot.snapshot_environment(snapshot.choose_code(batch.run, "saved"))
            enqueue.add_missing_report(replace(batch, environment=environment))

    def cancel(self, run: RunDir) -> Sequence[str]:
        """Cancel this run's jobs and no others; name those of it that it did not submit."""
        states, _ = jobs.job_states(run)
        lines, cancelled = [], jobs.cancel_jobs(run)
        if cancelled:
            lines.append(f"Slurm was asked to cancel {listed(cancelled, 20)}. The launch command goes on from what is saved.")
        if others := sorted({job.job for job in states.values() if job.is_active and job.array not in cancelled}):
            lines.append(f"Not submitted by this run's launcher, so left alone: to cancel them, scancel {' '.join(others)}")
        return lines


class RunningArray(SlurmLauncher):
    """The array of slurm/train.sbatch that this process is a task of: sbatch has queued it, so it is only recorded."""

    def has(self, run: RunDir) -> bool:
        """Tell whether another of its tasks has recorded it."""
        return os.environ["SLURM_ARRAY_JOB_ID"] in {submission.job for submission in read_submissions(run)}

    def check(self, batch: Batch) -> Sequence[str]:
        """Look for nothing: it runs."""
        return ()

    def submit(self, batch: Batch) -> Sequence[Trial]:
        record_submission(batch.run, jobs.of_this_array(batch.run, os.environ, batch.environment["SER_HPC_CODE"]))
        return ()
