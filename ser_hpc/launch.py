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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ser_hpc.core import cli
from ser_hpc.core.errors import UserError
from ser_hpc.run import start_marks

if TYPE_CHECKING:
    from rich.console import Console

    from ser_hpc.config.settings import Settings
    from ser_hpc.launchers.launcher import Batch, Launcher
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
    if options.prepare:
        return _prepare(settings, dry_run=options.dry_run)
    out = cli.make_console()
    from ser_hpc.launchers.choose import choose_launcher
    from ser_hpc.monitor.local_progress import show_progress

    own_test, ended = not options.queue_anyway, options.ended
    launcher, reason = choose_launcher(settings.cluster, show_progress, own_test=own_test, ended=ended)
    settings = settings.model_copy(update={"cluster": launcher.resolve(settings.cluster, out)})
    experiment = plan_run(settings, out)
    if options.dry_run or options.summary:
        from ser_hpc.launchers import plan_screen, trial_checks

        fits = plan_screen.print_plan(experiment, launcher, _command(argv), trial_checks.check_trials(experiment), out)
        if options.summary:
            from ser_hpc.engine.model_summary import print_summary  # torch

            print_summary(experiment, settings.cluster.nodes * (settings.cluster.gpus_per_node or 1), out)
        return 0 if fits else 2
    out.print(reason)
    return _start(experiment, experiment.trials, launcher, options.code, out, wait=options.wait, ended=ended)


def resubmit(run: RunDir, trials: Sequence[Trial], exclude: Sequence[str] = (), policy: CodePolicy = "refuse") -> int:
    """Start these trials of a planned run again, with its own settings, not on the nodes `exclude`."""
    from ser_hpc.launchers.choose import choose_launcher
    from ser_hpc.monitor.local_progress import show_progress
    from ser_hpc.run.experiment import reopen_experiment

    experiment = reopen_experiment(run)
    settings = experiment.settings
    cluster = settings.cluster.model_copy(update={"exclude": (*settings.cluster.exclude, *exclude)})
    out = cli.make_console()
    launcher, reason = choose_launcher(cluster, show_progress)
    out.print(reason)
    settings = settings.model_copy(update={"cluster": launcher.resolve(cluster, out)})
    return _start(replace(experiment, settings=settings), trials, launcher, policy, out)


def plan_run(settings: Settings, out: Console) -> Experiment:
    """Plan the run, and make what only the demo needs."""
    from ser_hpc.launchers import trial_checks
    from ser_hpc.run.experiment import DEMO, demo_folder, prepare_experiment

    trial_checks.check_run_root(settings)
    if DEMO in settings.data.shards:
        from ser_hpc.run.demo_shards import make_demo_shards

        make_demo_shards(demo_folder(settings), out)
    return prepare_experiment(settings)


def _prepare(settings: Settings, *, dry_run: bool) -> int:
    """Write the run and its code for a task of slurm/train.sbatch, and print its path; its array, whose element K runs the K-th
    trial, is submitted by being recorded. `dry_run`: only print path and trials."""
    from ser_hpc.core.atomic_io import file_lock
    from ser_hpc.launchers import trial_checks
    from ser_hpc.launchers.launcher import Batch
    from ser_hpc.launchers.slurm.launcher import RunningArray
    from ser_hpc.run import snapshot
    from ser_hpc.run.create_run import write_run
    from ser_hpc.run.experiment import planned_trials, prepare_experiment

    out = cli.make_console(stderr=True)
    if dry_run:
        trial_checks.check_run_root(settings)
        experiment = prepare_experiment(settings)
        trials = [[trial.seed, trial.fold] for trial in planned_trials(experiment)]
        print(json.dumps({"run": str(experiment.run.path.resolve()), "trials": trials}))
        return 0
    experiment = plan_run(settings, out)
    trial_checks.check_trials(experiment)
    run = experiment.run
    run.path.mkdir(parents=True, exist_ok=True)
    array = RunningArray() if "SLURM_ARRAY_JOB_ID" in os.environ else None
    with file_lock(run.lock) as lock:  # its tasks may all arrive at once
        if array is None or not array.has(run):
            _refuse_run_of_before(experiment, "refuse")
            environment = snapshot.snapshot_environment(snapshot.choose_code(run, "refuse"))
            write_run(experiment)
            if array is not None:
                array.submit(Batch(experiment, experiment.trials, {}, environment, out, lock))
    print(run.path)
    return 0


def _start(
    experiment: Experiment,
    wanted: Sequence[Trial],
    launcher: Launcher,
    policy: CodePolicy,
    out: Console,
    *,
    wait: bool = False,
    ended: Sequence[str] = (),
) -> int:
    """Start what is neither done nor queued; one launcher of a run at a time decides that, and writes nothing before.

    `wait`: for submitted jobs, feeding in those for which there was no room; `ended`: clusters whose jobs are known to be over.
    """
    from ser_hpc.launchers import plan_screen, trial_checks
    from ser_hpc.launchers.choose import known_launchers
    from ser_hpc.launchers.launcher import Batch
    from ser_hpc.run import snapshot
    from ser_hpc.run.create_run import write_run

    run = experiment.run
    notes = [] if all(run.trial(trial).is_done for trial in wanted) else trial_checks.check_trials(experiment)
    run.path.mkdir(parents=True, exist_ok=True)
    left: Sequence[Trial] = ()
    with _alone(run, out) as lock:
        held = [each.held(run, experiment.settings.cluster) for each in known_launchers(run, launcher, ended=ended)]
        busy = {trial: job for theirs in held for trial, job in theirs.trials.items()}
        unfinished = [trial for trial in wanted if not run.trial(trial).is_done]
        todo = [trial for trial in unfinished if trial not in busy]
        notes += [note for theirs in held for note in theirs.notes]
        plan_screen.print_start(experiment, todo, busy, notes, out)
        batch = Batch(experiment, todo, held[0].trials, {}, out, lock)
        if todo:
            _refuse_run_of_before(experiment, policy)
            codes = {code: trials for theirs in held for code, trials in theirs.codes.items()}
            code = snapshot.choose_code(run, policy, codes)
            batch = replace(batch, environment=snapshot.snapshot_environment(code))
            _print_notes(launcher.check(batch), out)
            write_run(experiment)
            left = () if launcher.in_foreground else launcher.submit(batch)
        else:
            write_run(experiment)  # whatever was lost or changed of it since: it is planned anew, and keeps what is trained
            launcher.add_missing_report(batch)
    if todo and launcher.in_foreground:
        launcher.submit(replace(batch, lock=None))
    elif unfinished:
        if not wait:
            return 0
        _wait(launcher, replace(batch, todo=left, lock=None))
    return _report(run, out)


def _wait(launcher: Launcher, batch: Batch) -> None:
    """Follow the run's jobs to their end, and submit the trials that are left `todo` as others end."""
    from ser_hpc.monitor.poll import poll_until_done

    run, out, waiting = batch.run, batch.out, list(batch.todo)

    def submit_more() -> int:
        if waiting:
            with _alone(run, out) as lock:
                held = launcher.active(run)
                todo = [trial for trial in waiting if trial not in held and not run.trial(trial).is_done]
                more = replace(batch, todo=todo, held=held, lock=lock)
                if todo:
                    _print_notes(launcher.check(more), out)
                waiting[:] = launcher.submit(more) if todo else ()
        return len(waiting)

    poll_until_done(run, out, submit_more)


def _print_notes(notes: Sequence[str], out: Console) -> None:
    for note in notes:
        out.print(f"note: {note}", soft_wrap=True)


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


def _report(run: RunDir, out: Console) -> int:
    from ser_hpc.report import show_report

    result = show_report(run, out)
    return 1 if result.missing else 0


def _settings(options: argparse.Namespace) -> Settings:
    """Load defaults < file < command line."""
    from ser_hpc.config.load import load_settings

    return load_settings(*given_settings(options))


def given_settings(options: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """Return the file and the `key=value` of a command line; the demo's file where neither file nor shards are named."""
    from ser_hpc.config.load import find_config

    file = find_config(options.config, "") if options.config else None
    if file is None and not any(override.startswith("data.shards=") for override in options.override):
        file = find_config("demo", "")
    shortcuts = [
        f"{key}={value}"
        for flag, (key, _, _) in SHORTCUTS.items()
        if (value := getattr(options, flag.replace("-", "_"))) is not None
    ]
    return file, [*shortcuts, *options.override]


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what is trained, and where."""
    parser.add_argument("--config", metavar="FILE", help="settings file, or the name of one under configs/")
    for flag, (key, metavar, meaning) in SHORTCUTS.items():
        parser.add_argument(f"--{flag}", metavar=metavar, help=f"{meaning}  ({key})")
    parser.add_argument("override", nargs="*", metavar="key=value", help="any setting, for instance train.epochs=60")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ser_hpc.launch", description=__doc__, formatter_class=cli.Help)
    add_settings(parser)
    parser.add_argument("--dry-run", action="store_true", help="show the plan and start nothing")
    parser.add_argument("--summary", action="store_true", help="--dry-run, and the model layer by layer with its memory")
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
    return parser


def _command(argv: Sequence[str] | None) -> str:
    """Return the command that starts what this one shows."""
    given = [word for word in (sys.argv[1:] if argv is None else argv) if word not in ("--dry-run", "--summary")]
    return shlex.join(["python", "-m", "ser_hpc.launch", *given])


if __name__ == "__main__":
    with start_marks.mistakes_are_final():  # to slurm/train.sbatch
        cli.run_main(main)
