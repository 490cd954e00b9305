"""The plan as a person sees it: what will run on what, and what it will cost; and the lines before trials start."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ser_hpc.cluster import code, preflight, slurm
from ser_hpc.cluster.estimate import estimate
from ser_hpc.cluster.plan import DEMO, Experiment
from ser_hpc.cluster.site import machine
from ser_hpc.cluster.slurm_queue import JobState
from ser_hpc.corpora.folds import Part
from ser_hpc.data import augment
from ser_hpc.errors import UserError, listed
from ser_hpc.results import precision
from ser_hpc.results.run_dir import Trial


def plan(experiment: Experiment, where: str, command: str, out: Console) -> None:
    """Everything that `--dry-run` shows."""
    settings, run = experiment.settings, experiment.run
    out.print(f"[bold]{run.path}[/bold]" + ("  (exists: only what is unfinished would run)" if run.plan.exists() else ""))
    metadata = experiment.index.metadata
    used = experiment.targets >= 0
    out.print(
        f"{int(used.sum())} clips, {metadata.seconds[used].sum() / 3600:.2f} h, {len(set(metadata.speaker[used]))} speakers, "
        f"{len(experiment.label_set.classes)} classes ({experiment.label_set.name}); {int((~used).sum())} clips have no class",
        soft_wrap=True,
    )
    out.print(f"protocol {experiment.folds.protocol}:")
    table = Table(show_edge=False, pad_edge=False)
    for column in ("fold", "part", "who", "clips", *experiment.label_set.classes):
        table.add_column(column, justify="left" if column in ("part", "who") else "right")
    for fold in experiment.folds.folds:
        for name in ("train", "dev", "test"):
            _part_row(table, experiment, str(fold.index) if name == "train" else "", name, getattr(fold, name))
        table.add_section()
    out.print(table)
    for note in experiment.folds.notes:
        out.print(f"note: {note}", soft_wrap=True)
    out.print(precision.told(run, settings.train.precision), soft_wrap=True)
    for number, words in enumerate(augment.Augment(settings.data.augment).words(), start=1):
        out.print(f"augmentation of training clips, {number}: {words}", soft_wrap=True, markup=False)
    _costs(experiment, where, out)
    todo = [trial for trial in experiment.trials if not run.trial(trial).is_done]
    out.print(f"\n{len(todo)} of {len(experiment.trials)} trials to run, seeds {', '.join(map(str, settings.seeds))}; each:")
    out.print(f"  python -m ser_hpc.train --run-dir {run.path} --fold K --seed S", soft_wrap=True)
    if where == "slurm":
        _jobs(experiment, -(-len(todo) // settings.cluster.trials_per_gpu), out)
    else:
        out.print(f"  here: {machine(settings.cluster).words()}")
        out.print(f"then\n  python -m ser_hpc.report {run.path}", soft_wrap=True)
    out.print(f"\nNothing was started. To start: {command.replace(' --dry-run', '')}", soft_wrap=True)


def _jobs(experiment: Experiment, num_jobs: int, out: Console) -> None:
    """The batch scripts, to the letter, and what the site would say to them."""
    run, cluster = experiment.run, experiment.settings.cluster
    if not num_jobs:
        return
    environment = code.environment(code.Code(run.code.resolve() / code.present()))
    scripts = slurm.scripts(run, num_jobs, cluster, environment)
    for name, text in scripts:
        out.print(f"\n----- the batch script of the {name}", highlight=False)
        out.print(text, markup=False, soft_wrap=True)
    out.print("-----")
    try:
        notes = preflight.check(cluster, num_jobs, run.path, estimate(experiment, on_gpu=True).disk_peak, scripts)
        out.print("The site would take these jobs." + "".join(f"\nnote: {note}" for note in notes), soft_wrap=True)
    except UserError as error:
        out.print(f"[red]Launched like this, it would be refused:[/red] {error}", soft_wrap=True)


def start(experiment: Experiment, todo: Sequence[Trial], held: Mapping[Trial, JobState], out: Console) -> None:
    """The lines before anything starts. `held`: trials that are queued or running already."""
    run, trials = experiment.run, experiment.trials
    out.print(f"Run directory: {run.path}", soft_wrap=True)
    for note in experiment.folds.notes:
        out.print(f"note: {note}", soft_wrap=True)
    out.print(precision.told(run, experiment.settings.train.precision), soft_wrap=True)
    if DEMO in experiment.settings.data.shards:
        out.print("This is the demo: synthetic speech. Its numbers say that everything works, and nothing about real speech.")
    done = sum(run.trial(trial).is_done for trial in trials)
    if done:
        out.print(f"{done} of {len(trials)} trials are done already.")
    if held:
        jobs = listed(sorted({job.job for job in held.values()}), 12)
        out.print(f"{len(held)} trials are queued or running already, and are left alone: {jobs}.", soft_wrap=True)
    if todo:
        out.print(f"{len(todo)} trials to run.")


def _part_row(table: Table, experiment: Experiment, fold: str, name: str, part: Part) -> None:
    targets = experiment.targets[part.positions]
    counts = [str(int((targets == i).sum())) for i in range(len(experiment.label_set.classes))]
    table.add_row(fold, name, part.words, str(len(part.positions)), *counts)


def _costs(experiment: Experiment, where: str, out: Console) -> None:
    here = machine(experiment.settings.cluster) if where == "local" else None
    on_gpu = where == "slurm" or bool(here and here.gpus)
    cost = estimate(experiment, on_gpu=on_gpu)
    free = shutil.disk_usage(_existing(experiment.run.path)).free
    out.print(
        f"\nestimated, roughly: {cost.parameters / 1e6:.1f} M parameters; disk {_bytes(cost.disk_peak)} while all train, "
        f"{_bytes(cost.disk_end)} at the end ({_bytes(free)} free); {_duration(cost.hours)} of one "
        f"{'GPU' if on_gpu else 'core'} for all trials",
        soft_wrap=True,
    )
    if free < cost.disk_peak:
        out.print(
            "[red]the disk may be too small for all trials at once[/red]: lower cluster.parallel, or choose another run.root"
        )


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(hours * 60))} minutes"
