"""`python -m ser_hpc.launch`: one command from packed shards to a cross-validated report.

  python -m ser_hpc.launch --folds 5 --partition gpu
      the built-in demo: synthetic speech, a small Wav2Vec2 from scratch, five folds
  python -m ser_hpc.launch --config configs/emodb_acrnn.yaml --folds 5 --seeds 3 --partition gpu \\
      data.shards=/scratch/shards/emodb train.epochs=60
      a corpus of yours, packed before by tools/build_shards.py; any setting may follow as key=value
  ... --dry-run
      the plan: folds with their groups and class counts, trials, commands, disk and time; starts nothing

The same command again goes on with what is unfinished, leaves alone what is done, queued or running, and so submits nothing
twice. More --seeds later add trials to the run. On a machine with Slurm the trials are jobs of one array and the report follows
them; elsewhere they run here. Jobs run a copy of this code, kept in the run. --settings lists every setting with its meaning.

exit codes: 0 done (or submitted); 1 trials are missing, named; 2 a mistake in command, settings or data, or a dry run
whose jobs would be refused; 130 interrupted
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ser_hpc.core import cli
from ser_hpc.core.errors import UserError, counted
from ser_hpc.run import start_marks

if TYPE_CHECKING:
    from rich.console import Console

    from ser_hpc.config.settings import Settings
    from ser_hpc.run.experiment import Experiment
    from ser_hpc.run.run_dir import RunDir, Trial
    from ser_hpc.run.snapshot import CodePolicy

SHORTCUTS = {
    "folds": ("folds.count", "K", "number of folds"),
    "seeds": ("seeds", "N", "number of seeds (or a list: [3, 4]); each is a full cross-validation"),
    "partition": ("cluster.partition", "P", "Slurm partition"),
    "cluster": ("cluster.profile", "SITE", "profile of the cluster under configs/cluster, or a file; local: this machine"),
    "time": ("cluster.time_min", "T", "time limit of a trial, as 240 (minutes) or 4:00:00"),
    "nodes": ("cluster.nodes", "N", "nodes per trial"),
    "gpus-per-node": ("cluster.gpus_per_node", "G", "GPUs (ranks) per node and trial"),
    "parallel": ("cluster.max_parallel_trials", "N", "trials at the same time at most"),
    "trials-per-gpu": ("cluster.trials_per_gpu", "N", "trials that share a job and its GPUs, where a model is small"),
    "strategy": ("train.strategy", "S", "ddp, zero1, zero2 or zero3"),
}


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_intermixed_args(argv)
    if options.settings:
        from ser_hpc.config.settings_help import settings_help

        print("\n".join(settings_help(shutil.get_terminal_size().columns)))
        return 0
    settings = _settings(options)
    out = cli.make_console(stderr=options.prepare)
    from ser_hpc.launchers import trial_checks
    from ser_hpc.run.experiment import DEMO, demo_folder, planned_trials, prepare_experiment

    launcher, reason = "local", ""
    if not options.prepare:
        from ser_hpc.launchers import detect

        launcher, reason = detect.choose_launcher(settings.cluster.kind)
    if launcher == "slurm":
        from ser_hpc.launchers.slurm import inherited_variables

        settings = settings.model_copy(update={"cluster": inherited_variables.drop_inherited(settings.cluster, out)})
    trial_checks.check_run_root(settings)
    if DEMO in settings.data.shards and not (options.prepare and options.dry_run):
        from ser_hpc.run.demo_shards import make_demo_shards

        make_demo_shards(demo_folder(settings), out)
    experiment = prepare_experiment(settings)
    if options.prepare and options.dry_run:
        trials = [[trial.seed, trial.fold] for trial in planned_trials(experiment)]
        print(json.dumps({"run": str(experiment.run.path.resolve()), "trials": trials}))
        return 0
    if options.dry_run:
        from ser_hpc.launchers import plan_screen

        fits = plan_screen.print_plan(experiment, launcher, _command(argv), trial_checks.check_trials(experiment), out)
        return 0 if fits else 2
    if options.prepare:
        trial_checks.check_trials(experiment)
        print(_prepare(experiment).path)
        return 0
    out.print(reason)
    switches = {"wait": options.wait, "ended": options.ended, "own_test": not options.queue_anyway}
    return _start(experiment, experiment.trials, launcher, options.code, out, **switches)


def resubmit(run: RunDir, trials: Sequence[Trial], exclude: Sequence[str] = (), policy: CodePolicy = "refuse") -> int:
    """Start these trials of a planned run again, with its own settings, not on the nodes `exclude`."""
    from ser_hpc.launchers import detect
    from ser_hpc.launchers.slurm import inherited_variables
    from ser_hpc.run.experiment import reopen_experiment

    experiment = reopen_experiment(run)
    settings = experiment.settings
    cluster = settings.cluster.model_copy(update={"exclude": (*settings.cluster.exclude, *exclude)})
    out = cli.make_console()
    launcher, reason = detect.choose_launcher(cluster.kind)
    out.print(reason)
    cluster = inherited_variables.drop_inherited(cluster, out) if launcher == "slurm" else cluster
    experiment = replace(experiment, settings=settings.model_copy(update={"cluster": cluster}))
    return _start(experiment, trials, launcher, policy, out)


def _prepare(experiment: Experiment) -> RunDir:
    """Write the run and its code for a task of slurm/train.sbatch; record its array, whose element K runs the K-th trial."""
    from ser_hpc.core.atomic_io import file_lock
    from ser_hpc.run import snapshot
    from ser_hpc.run.create_run import write_run

    run = experiment.run
    run.path.mkdir(parents=True, exist_ok=True)
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    with file_lock(run.lock):  # its tasks may all arrive at once
        if array is not None:
            from ser_hpc.launchers.slurm import jobs
            from ser_hpc.launchers.slurm.submissions import read_submissions, record_submission

            if array in {submission.job for submission in read_submissions(run)}:
                return run
        _refuse_run_of_before(experiment, "refuse")
        digest = snapshot.choose_code(run, "refuse").digest
        write_run(experiment)
        if array is not None:
            record_submission(run, jobs.of_this_array(run, os.environ, digest))
    return run


def _start(
    experiment: Experiment,
    wanted: Sequence[Trial],
    launcher: str,
    policy: CodePolicy,
    out: Console,
    *,
    wait: bool = False,
    ended: Sequence[str] = (),
    own_test: bool = True,
) -> int:
    """Start what is neither done nor queued; one launcher of a run at a time decides that, and writes nothing before.

    `wait`: for submitted jobs, feeding in those for which there was no room; `ended`: clusters whose jobs are known to be over;
    `own_test`: whether Slurm's own test of the jobs must be passed.
    """
    from ser_hpc.launchers import plan_screen, trial_checks
    from ser_hpc.launchers.slurm import enqueue, jobs
    from ser_hpc.run import snapshot
    from ser_hpc.run.create_run import write_run

    run = experiment.run
    notes = [] if all(run.trial(trial).is_done for trial in wanted) else trial_checks.check_trials(experiment)
    run.path.mkdir(parents=True, exist_ok=True)
    with _alone(run, out) as lock:
        for cluster in ended:
            jobs.end_elsewhere(run, cluster)
        notes += jobs.settle_submissions(run)
        held = jobs.active_jobs(run, on_slurm=launcher == "slurm")
        unfinished = [trial for trial in wanted if not run.trial(trial).is_done]
        todo = [trial for trial in unfinished if trial not in held]
        notes += enqueue.not_applied(run, held, experiment.settings.cluster)
        plan_screen.print_start(experiment, todo, held, notes, out)
        left: Sequence[Trial] = ()
        if todo:
            _refuse_run_of_before(experiment, policy)
            environment = snapshot.snapshot_environment(snapshot.choose_code(run, policy, jobs.queued_codes(run, held)))
            if launcher == "slurm":
                left = enqueue.enqueue_trials(experiment, todo, held, environment, lock, out, own_test=own_test)
            else:
                write_run(experiment)
        else:
            write_run(experiment)  # whatever was lost or changed of it since: it is planned anew, and keeps what is trained
            if held and launcher == "slurm":
                environment = snapshot.snapshot_environment(snapshot.choose_code(run, "saved"))
                enqueue.add_missing_report(experiment, held, environment, lock, out)
    if launcher == "local" and todo:
        _run_here(experiment, todo, environment, out)
    elif unfinished:
        if not wait:
            return 0
        _wait(experiment, left, environment, out)
    return _report(run, out)


def _wait(experiment: Experiment, left: Sequence[Trial], environment: Mapping[str, str], out: Console) -> None:
    """Follow the run's jobs to their end, and submit the trials that are `left` as others end."""
    from ser_hpc.launchers.slurm import enqueue, jobs
    from ser_hpc.monitor.poll import poll_until_done

    run, waiting = experiment.run, list(left)

    def submit_more() -> int:
        if waiting:
            with _alone(run, out) as lock:
                held = jobs.active_jobs(run)
                todo = [trial for trial in waiting if trial not in held and not run.trial(trial).is_done]
                waiting[:] = enqueue.enqueue_trials(experiment, todo, held, environment, lock, out) if todo else []
        return len(waiting)

    poll_until_done(run, out, submit_more)


@contextmanager
def _alone(run: RunDir, out: Console) -> Iterator[int]:
    """Hold the run's lock, and yield its descriptor; print a line if it has to be waited for."""
    from ser_hpc.core.atomic_io import file_lock

    with ExitStack() as held:
        try:
            lock = held.enter_context(file_lock(run.lock, wait=False))
        except BlockingIOError:
            out.print(
                f"Another launcher, or the sbatch of a killed one, is at work on {run.path}: waiting for it.",
                soft_wrap=True,
            )
            lock = held.enter_context(file_lock(run.lock))
        yield lock


def _refuse_run_of_before(experiment: Experiment, policy: CodePolicy) -> None:
    """Raise UserError if a version that wrote no identity planned the run: only that version's own code can go on with it."""
    if experiment.is_legacy and policy != "saved":
        raise UserError(
            f"{experiment.run.path} was planned by an earlier version of this package. It can be reported on at any time; to "
            "go on with it, add --code saved: its jobs then run its own code. Or give another run.name, for a run of its own."
        )


def _run_here(experiment: Experiment, todo: Sequence[Trial], environment: Mapping[str, str], out: Console) -> None:
    from rich.text import Text

    from ser_hpc.launchers import detect
    from ser_hpc.launchers.local import log_path, run_trials
    from ser_hpc.monitor.local_progress import show_progress

    run, cluster = experiment.run, experiment.settings.cluster
    machine = detect.describe_machine(cluster)
    out.print(machine.description() + ".")
    try:
        with show_progress(run, todo, out) as watch:
            most = cluster.max_starts_without_progress
            codes = run_trials(run, todo, machine, watch, environment, max_starts=most)
    except KeyboardInterrupt:
        out.print(f"Interrupted; what was trained is saved in {run.path}. The same command goes on from there.")
        raise
    for trial, exit_code in codes.items():
        if exit_code:
            message = Text.assemble((f"{trial} ended with exit code {exit_code}", "red"), f"; its log: {log_path(run, trial)}")
            out.print(message, soft_wrap=True)
    if left := len(todo) - len(codes):
        out.print(f"{counted(left, 'trial')} not started: each would end in the same error. Mend it, then launch again.")


def _report(run: RunDir, out: Console) -> int:
    from ser_hpc.report import show_report

    result = show_report(run, out)
    return 1 if result.missing else 0


def _settings(options: argparse.Namespace) -> Settings:
    """Load defaults < file < command line; the demo's file where neither file nor shards are named."""
    from ser_hpc.config.load import find_config, load_settings

    file = find_config(options.config, "") if options.config else None
    if file is None and not any(override.startswith("data.shards=") for override in options.override):
        file = find_config("demo", "")
    shortcuts = [
        f"{key}={value}"
        for flag, (key, _, _) in SHORTCUTS.items()
        if (value := getattr(options, flag.replace("-", "_"))) is not None
    ]
    return load_settings(file, [*shortcuts, *options.override])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ser_hpc.launch", description=__doc__, formatter_class=cli.Help)
    parser.add_argument("--config", metavar="FILE", help="settings file, or the name of one under configs/")
    for flag, (key, metavar, meaning) in SHORTCUTS.items():
        parser.add_argument(f"--{flag}", metavar=metavar, help=f"{meaning}  ({key})")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and start nothing")
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="write the run directory, print its path and start nothing (with --dry-run: write nothing, print path and trials)",
    )
    parser.add_argument("--queue-anyway", action="store_true", help="submit without Slurm's own test (sbatch --test-only)")
    parser.add_argument("--wait", action="store_true", help="follow submitted jobs to their end, then report")
    parser.add_argument(
        "--ended",
        action="append",
        default=[],
        metavar="CLUSTER",
        help="the run's jobs on this other cluster, which cannot be asked from here, have ended",
    )
    parser.add_argument(
        "--code",
        choices=("refuse", "saved", "mixed"),
        default="refuse",
        help="if trials of the run were run by other code than is here: refuse, go on with the run's own, or mix on purpose",
    )
    parser.add_argument("--settings", action="store_true", help="list every setting with its default and meaning")
    parser.add_argument("override", nargs="*", metavar="key=value", help="any setting, for instance train.epochs=60")
    return parser


def _command(argv: Sequence[str] | None) -> str:
    return shlex.join(["python", "-m", "ser_hpc.launch", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    with start_marks.mistakes_are_final():  # to slurm/train.sbatch
        cli.run_main(main)
