"""Print the plan of a run: what will run on what, at which cost; and the lines before trials start."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from ser_hpc.core.errors import counted, listed
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER
from ser_hpc.corpora.words import WordColumn
from ser_hpc.data import augmentation
from ser_hpc.data.sampler import ShardOrder
from ser_hpc.launchers.estimate import estimate_cost
from ser_hpc.launchers.job_state import JobState
from ser_hpc.launchers.launcher import Launcher
from ser_hpc.protocols import fold_tables
from ser_hpc.results.about import changed_settings
from ser_hpc.run import chosen_precision
from ser_hpc.run.experiment import DEMO, Experiment
from ser_hpc.run.run_dir import Trial


def print_plan(experiment: Experiment, launcher: Launcher, command: str, notes: Sequence[str], out: Console) -> bool:
    """Print all that `--dry-run` shows; return whether the site would take the jobs. `notes`: of `check_trials`."""
    settings, run = experiment.settings, experiment.run
    exists = "  (exists: only what is unfinished would run)" if run.plan.exists() else ""
    out.print(Text.assemble((str(run.path), "bold"), exists), soft_wrap=True)
    metadata, classes = experiment.index.metadata, experiment.label_set.classes
    used = experiment.targets >= 0
    speakers = WordColumn.join(metadata.corpus, metadata.speaker).take(used).occurring()
    known = sum(speaker.partition("/")[2] != UNKNOWN_SPEAKER for speaker in speakers)
    out.print(
        f"{counted(int(used.sum()), 'clip')}, {metadata.seconds[used].sum() / 3600:.2f} h, {counted(known, 'speaker')}, "
        f"{len(classes)} classes ({experiment.label_set.name})"
    )
    out.print(f"protocol {experiment.folds.protocol}, {counted(len(experiment.folds.folds), 'fold')}:")
    for table in fold_tables.make_fold_tables(experiment.folds, classes, experiment.targets):
        out.print("", table, sep="\n")
    for number, note in enumerate((*experiment.folds.notes, *experiment.notes, *notes)):
        out.print("\n" * (number == 0) + f"note: {note}")
    out.print(chosen_precision.precision_note(run, settings.train.precision))
    out.print(f"settings that differ from the defaults: {', '.join(changed_settings(settings)) or 'none'}")
    for number, description in enumerate(augmentation.Augmentation(settings.data.augment).descriptions(), start=1):
        out.print(f"augmentation of training clips, {number}: {description}")
    if settings.data.order == "shards":
        out.print(reading_note(experiment))
    _costs(experiment, launcher, out)
    todo = [trial for trial in experiment.trials if not run.trial(trial).is_done]
    seeds = f"seed{'s' * (len(settings.seeds) > 1)} {listed(settings.seeds, 12)}"
    out.print(f"\n{len(todo)} of {counted(len(experiment.trials), 'trial')} to run, {seeds}; each:")
    out.print(f"  python -m ser_hpc.train --run-dir {shlex.quote(str(run.path))} --fold K --seed S", soft_wrap=True)
    is_taken = launcher.show(experiment, todo, out)
    out.print(f"\nNothing was started. To start: {command}", soft_wrap=True)
    return is_taken


def print_start(
    experiment: Experiment, todo: Sequence[Trial], held: Mapping[Trial, JobState], notes: Sequence[str], out: Console
) -> None:
    """Print the lines before trials start. `held`: trials that are queued or running already; `notes`: of `check_trials`."""
    run, trials = experiment.run, experiment.trials
    out.print(f"Run directory: {run.path}", soft_wrap=True)
    for note in (*experiment.folds.notes, *experiment.notes, *notes):
        out.print(f"note: {note}")
    out.print(chosen_precision.precision_note(run, experiment.settings.train.precision))
    if DEMO in experiment.settings.data.shards:
        out.print("This is the demo: synthetic speech. Its numbers say that everything works, and nothing about real speech.")
    done = sum(run.trial(trial).is_done for trial in trials)
    if done:
        out.print(f"{done} of {counted(len(trials), 'trial')} {'is' if done == 1 else 'are'} done already.")
    if held:
        jobs = listed(sorted({job.job for job in held.values()}), 12)
        are, left = ("is", "is") if len(held) == 1 else ("are", "are")
        out.print(f"{counted(len(held), 'trial')} {are} queued or running already, and {left} left alone: {jobs}.")
    if todo:
        out.print(f"{counted(len(todo), 'trial')} to run.")


def reading_note(experiment: Experiment) -> str:
    """Tell what `data.order=shards` means for the largest training part, in its first epoch: windows, and memory."""
    index = experiment.index
    largest = max((fold.train.positions for fold in experiment.folds.folds), key=lambda part: int(index.size[part].sum()))
    windows = ShardOrder.of_index(index, experiment.settings.data.window_bytes).windows(largest, seed=0)
    sizes = np.bincount(windows, weights=index.size[largest])
    if len(sizes) == 1:
        return (
            f"shards are read in sequence: a training part ({_bytes(sizes[0])} at most) fits into one window, so that its "
            "order is the random one"
        )
    return (
        f"shards are read in sequence: an epoch of {_bytes(sizes.sum())} in {np.count_nonzero(sizes)} windows of "
        f"{_bytes(sizes.max())} at most, each in the memory of a trial's ranks together"
    )


def _costs(experiment: Experiment, launcher: Launcher, out: Console) -> None:
    on_gpu = launcher.uses_gpus(experiment.settings.cluster)
    cost = estimate_cost(experiment, on_gpu=on_gpu)
    free = shutil.disk_usage(_existing(experiment.run.path)).free
    model = cost.model
    parts = ", ".join(f"{name} {_count(count)}" for name, count in model.parts.items())
    packed = f", {_count(model.four_bit)} kept in four bits" if model.four_bit else ""
    out.print(
        f"\nmodel: {'' if model.exact else 'about '}{_count(model.parameters)} parameters ({parts}), {_count(model.trained)} "
        f"of them trained{packed}; {model.flops / 1e9:.2g} GFLOP a second of audio"
    )
    out.print(
        f"estimated, roughly: disk {_bytes(cost.disk_peak)} while all train, "
        f"{_bytes(cost.disk_end)} at the end ({_bytes(free)} free); {_duration(cost.hours)} of one "
        f"{'GPU' if on_gpu else 'core'} for all trials"
    )
    if free < cost.disk_peak:
        small = "the disk may be too small for all trials at once"
        out.print(Text.assemble((small, "red"), ": lower cluster.max_parallel_trials, or choose another run.root"))


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:,}"


def _bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else counted(max(1, round(hours * 60)), "minute")
