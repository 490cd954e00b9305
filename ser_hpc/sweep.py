"""Try many configurations, and report the one that is best on dev: `python -m ser_hpc.sweep SWEEP [key=value ...]`

  python -m ser_hpc.sweep sweep.yaml --config configs/any_corpus_probe.yaml --folds 5 data.shards=/scratch/shards/emodb
      SWEEP says which settings are searched: method (grid, random, optuna), how many, values and ranges
  ... --dry-run
      what would be tried first, and how; starts nothing
  ... --show
      the table of what was tried so far

All else is as for launch: on a machine with Slurm an array of jobs works on it (--parallel: how many), elsewhere this machine
does. Each configuration is a usual run. The mean dev UAR of its trials alone chooses; test is scored of the chosen one.
The same command again goes on; given on several machines that see the disk, they share the work. A configuration that failed is
left at that, unless --again is given.

exit codes: 0 the chosen one is reported (or the jobs are submitted); 1 not all has been tried, or nothing could be chosen;
2 a mistake in command, sweep or settings; 130 interrupted
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ser_hpc.core import cli
from ser_hpc.core.errors import UserError
from ser_hpc.run import start_marks

if TYPE_CHECKING:
    from rich.console import Console

    from ser_hpc.config.settings import Settings
    from ser_hpc.config.sweep import SweepSettings
    from ser_hpc.run.experiment import Experiment
    from ser_hpc.run.snapshot import CodeSnapshot
    from ser_hpc.run.sweep_dir import SweepDir


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything, then work on the sweep, here or in jobs. Raises UserError."""
    options = _parser().parse_intermixed_args(argv)
    out = cli.make_console()
    if options.work:
        return _work(options.work, out)
    if options.sweep is None:
        raise UserError("no sweep is given: name a YAML file that says what is searched, as python -m ser_hpc.sweep sweep.yaml")
    prepared = _prepare(options, out)
    if options.show:
        return _show(prepared.sweep, prepared.asked, out)
    return _start(prepared, out, dry_run=options.dry_run, again=options.again)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A sweep that was checked; nothing is written yet. `experiment`: its first configuration."""

    sweep: SweepDir
    asked: SweepSettings
    experiment: Experiment


def _prepare(options: argparse.Namespace, out: Console) -> _Prepared:
    from ser_hpc import launch
    from ser_hpc.config.load import load_settings
    from ser_hpc.config.sweep import as_overrides, first_point, read_sweep
    from ser_hpc.core.atomic_io import json_digest
    from ser_hpc.run.sweep_dir import SweepDir

    file, overrides = launch.given_settings(options)
    asked = read_sweep(options.sweep, file, overrides)
    experiment = launch.plan_run(load_settings(file, [*overrides, *as_overrides(first_point(asked))]), out)
    settings = experiment.settings
    # More configurations later are no other sweep.
    what = asked.model_dump(mode="json", exclude={"configurations"})
    what |= {"first": experiment.identity.digest, "seeds": list(settings.seeds)}
    name = re.sub(r"[^a-z0-9_-]+", "_", options.sweep.stem.lower())[:40]
    return _Prepared(SweepDir(settings.run.root / "sweeps" / f"{name}-{json_digest(what)[:8]}"), asked, experiment)


def _start(prepared: _Prepared, out: Console, *, dry_run: bool, again: bool) -> int:
    from ser_hpc.launchers import detect, trial_checks
    from ser_hpc.launchers.slurm import sweep_jobs
    from ser_hpc.results.sweep_table import make_table

    sweep, asked, settings = prepared.sweep, prepared.asked, prepared.experiment.settings
    notes = trial_checks.check_trials(prepared.experiment)
    kind, reason = detect.choose_launcher(_kind(settings))
    table = make_table(sweep, asked.limit)
    failed = [configuration for configuration, end in table.rows if end and end.state == "failed"]
    if again and failed and not dry_run:
        for configuration in failed:
            sweep.forget_end(configuration)
        table = make_table(sweep, asked.limit)
    left = asked.limit - sum(end is not None for _, end in table.rows)
    out.print(f"Sweep: {sweep.path}, {asked.limit} configurations by {asked.method}, {left} of them left.", soft_wrap=True)
    for note in notes:
        out.print(f"note: {note}", soft_wrap=True)
    if failed and not again:
        out.print(f"note: {len(failed)} failed before; to try them again, add --again.")
    out.print(reason)
    if not dry_run:
        code = _write(prepared)
    elif kind == "local":
        out.print(_first_points(asked), soft_wrap=True)
        return 0
    else:
        code = _code(sweep)
    if not left:
        return _finish(sweep, asked, out)
    if kind == "local":
        _become_worker(sweep, code)
    with sweep.lock() as lock:
        sweep_jobs.submit_workers(sweep, left, settings.cluster, code, out, lock, dry_run=dry_run)
    return 0


def _kind(settings: Settings) -> Literal["auto", "slurm", "local"]:
    if settings.cluster.launcher is not None:
        raise UserError(
            "cluster.launcher starts the trials of one run. For a sweep, give this command with --cluster local in jobs of "
            "that scheduler: several of them at once share the work"
        )
    return settings.cluster.kind


def _first_points(asked: SweepSettings) -> str:
    from ser_hpc.launchers.sweep_search import describe_values

    if asked.method == "optuna":
        return "Nothing was started. Optuna chooses what is tried as it goes."
    points = [asked.point(number) for number in range(min(asked.limit, 5))]
    lines = [f"  {number}  {describe_values(point)}" for number, point in enumerate(points) if point is not None]
    return "\n".join(["Nothing was started. Tried would be first:", *lines])


def _code(sweep: SweepDir) -> CodeSnapshot:
    """Return the sweep's copy of the code that is here."""
    from ser_hpc.run import snapshot

    return snapshot.CodeSnapshot(sweep.as_run.code.resolve() / snapshot.present_digest())


def _write(prepared: _Prepared) -> CodeSnapshot:
    """Write the sweep's folder; return its copy of the code."""
    from ser_hpc.config.load import dump_settings
    from ser_hpc.core.atomic_io import write_json, write_text
    from ser_hpc.run import snapshot
    from ser_hpc.run.create_run import portable_settings, write_extensions

    sweep, experiment = prepared.sweep, prepared.experiment
    with sweep.lock():
        settings = portable_settings(experiment)
        root, labels = settings.run.root.resolve(), settings.data.labels
        run = settings.run.model_copy(update={"root": root})
        data = settings.data.model_copy(update={"labels": str(Path(labels).resolve()) if Path(labels).is_file() else labels})
        settings = settings.model_copy(update={"run": run, "data": data})
        write_extensions(sweep.path, settings)
        write_text(sweep.settings, dump_settings(settings))
        write_json(sweep.sweep, prepared.asked.model_dump(mode="json"))
        return snapshot.take_snapshot(sweep.as_run)


def _become_worker(sweep: SweepDir, code: CodeSnapshot) -> None:
    """Go on as the process that trains, which runs the sweep's copy of the code: editing the checkout changes nothing."""
    from ser_hpc.run import snapshot

    sys.stdout.flush()
    sys.stderr.flush()
    environment = {**os.environ, **snapshot.snapshot_environment(code)}
    os.execve(sys.executable, [sys.executable, "-m", "ser_hpc.sweep", "--work", str(sweep.path.resolve())], environment)


def _work(path: Path, out: Console) -> int:
    """Train configurations until none is left to ask for; what every job runs."""
    start_marks.mark_reached()
    from ser_hpc.config.sweep import SweepSettings
    from ser_hpc.launchers.sweep_worker import SweepWorker
    from ser_hpc.run.sweep_dir import SweepDir

    sweep = SweepDir(path)
    asked = SweepSettings.model_validate(sweep.read())
    try:
        SweepWorker(sweep, asked, _code(sweep), out).work()
    except KeyboardInterrupt:
        out.print(f"Interrupted; what was trained is saved. The same command goes on from there: {sweep.path}", soft_wrap=True)
        raise
    code = _finish(sweep, asked, out)
    start_marks.write_final_line(0)
    return code


def _show(sweep: SweepDir, asked: SweepSettings, out: Console) -> int:
    from ser_hpc.results.sweep_table import make_table, render_table

    table = make_table(sweep, asked.limit)
    if not table.rows:
        raise UserError(f"nothing was tried yet: there is nothing in {sweep.path}")
    out.print(render_table(table))
    out.print(table.sentence(), soft_wrap=True)
    return 0 if table.is_complete else 1


def _finish(sweep: SweepDir, asked: SweepSettings, out: Console) -> int:
    """Print and write the table and, once nothing is left to be tried, report the chosen configuration."""
    from ser_hpc.report import show_report
    from ser_hpc.results.sweep_table import make_table, render_table, write_table

    table = make_table(sweep, asked.limit)
    write_table(sweep, table)
    out.print(render_table(table))
    out.print(f"{table.sentence()}\nall of them: {sweep.table_md}", soft_wrap=True)
    chosen = table.chosen
    if not table.is_complete:
        out.print("Others are still at work on it: the last one reports what is chosen.")
        return 1
    if chosen is None or chosen.run is None:
        out.print("No configuration is complete, so none is chosen.")
        return 1
    out.print(f"\nChosen: {chosen.run}, by its mean dev UAR of {chosen.score:.3f}. On test:\n", soft_wrap=True)
    result = show_report(sweep.run(chosen.run), out)
    if result.without_listening and result.without_listening.ledger:
        out.print(f"On dev {len(table.rows)} were looked at. {result.without_listening.ledger.sentence()}", soft_wrap=True)
    return 1 if result.missing else 0


def _parser() -> argparse.ArgumentParser:
    from ser_hpc import launch

    parser = argparse.ArgumentParser(prog="python -m ser_hpc.sweep", description=__doc__, formatter_class=cli.Help)
    parser.add_argument("sweep", type=Path, nargs="?", metavar="SWEEP", help="YAML file that says what is searched")
    launch.add_settings(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="check everything, show what would be tried, and start nothing")
    what.add_argument("--show", action="store_true", help="show the table of what was tried so far")
    what.add_argument("--again", action="store_true", help="try configurations again that failed")
    what.add_argument("--work", type=Path, metavar="FOLDER", help="work on a sweep that was started: what its jobs run")
    return parser


if __name__ == "__main__":
    with start_marks.mistakes_are_final():
        cli.run_main(main)
