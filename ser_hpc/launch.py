"""`python -m ser_hpc.launch`: one command from packed shards to a cross-validated report.

  python -m ser_hpc.launch --folds 5 --partition gpu
      the built-in demo: synthetic speech, a small Wav2Vec2 from scratch, five folds
  python -m ser_hpc.launch --config configs/emodb_acrnn.yaml --folds 5 --seeds 3 --partition gpu \\
      data.shards=/scratch/shards/emodb train.epochs=60
      a corpus of yours, packed before by tools/build_shards.py; any setting may follow as key=value
  ... --dry-run
      the plan: folds with their groups and class counts, trials, commands, disk and time; starts nothing

The same command again goes on with what is unfinished and leaves alone what is done. More --seeds later add trials to the run.
On a machine with Slurm the trials are jobs of one array and the report follows them; elsewhere they run here.
--settings lists every setting with its meaning.

exit codes: 0 done (or submitted); 1 trials are missing, named; 2 a mistake in command, settings or data; 130 interrupted
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ser_hpc import console

if TYPE_CHECKING:
    from rich.console import Console

    from ser_hpc.cluster.plan import Experiment
    from ser_hpc.config.settings import Settings
    from ser_hpc.results.run_dir import RunDir

SHORTCUTS = {
    "folds": ("folds.count", "K", "number of folds"),
    "seeds": ("seeds", "N", "number of seeds (or a list: [3, 4]); each is a full cross-validation"),
    "partition": ("cluster.partition", "P", "Slurm partition"),
    "cluster": ("cluster.kind", "KIND", "auto, slurm or local"),
    "time": ("cluster.time_min", "MIN", "time limit of a trial in minutes"),
    "nodes": ("cluster.nodes", "N", "nodes per trial"),
    "gpus-per-node": ("cluster.gpus_per_node", "G", "GPUs (ranks) per node and trial"),
    "parallel": ("cluster.parallel", "N", "trials at the same time at most"),
    "strategy": ("train.strategy", "S", "ddp, zero1, zero2 or zero3"),
}


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_intermixed_args(argv)
    if options.settings:
        from ser_hpc.config.describe import lines

        print("\n".join(lines()))
        return 0
    settings = _settings(options)
    from rich.console import Console

    out = Console(stderr=options.prepare, highlight=False)
    from ser_hpc.cluster import plan, show, site

    where, why = site.choose(settings.cluster.kind) if not options.prepare else ("local", "")
    if settings.data.shards == plan.DEMO:
        from ser_hpc.cluster.demo import make_demo_shards

        make_demo_shards(plan.shard_folder(settings), out)
    experiment = plan.prepare(settings)
    if options.dry_run:
        show.plan(experiment, where, _command(argv), out)
        return 0
    run = plan.write(experiment)
    if options.prepare:
        print(run.path)
        return 0
    out.print(why)
    return _local(experiment, out) if where == "local" else _slurm(experiment, out)


def _local(experiment: Experiment, out: Console) -> int:
    from ser_hpc.cluster import show, site
    from ser_hpc.cluster.local import log_path, run_trials
    from ser_hpc.cluster.watch import watching

    run, machine = experiment.run, site.machine(experiment.settings.cluster)
    todo = [trial for trial in experiment.trials if not run.trial(trial).is_done]
    show.start(experiment, todo, machine.words(), out)
    try:
        with watching(run, todo, out) as watch:
            codes = run_trials(run, todo, machine, watch) if todo else {}
    except KeyboardInterrupt:
        out.print(f"Interrupted; what was trained is saved in {run.path}. The same command goes on from there.")
        raise
    for trial, code in codes.items():
        if code:
            out.print(f"[red]{trial} ended with exit code {code}[/red]; its log: {log_path(run, trial)}", soft_wrap=True)
    return _report(run, out)


def _slurm(experiment: Experiment, out: Console) -> int:
    from ser_hpc.cluster import show
    from ser_hpc.cluster.slurm import submit

    run = experiment.run
    todo = [trial for trial in experiment.trials if not run.trial(trial).is_done]
    show.start(experiment, todo, "one job each", out)
    if not todo:
        return _report(run, out)
    jobs, report_job = submit(run, todo, experiment.settings.cluster)
    out.print(f"Submitted {len(jobs)} trials as jobs {jobs[0]} to {jobs[-1]}, and the report as job {report_job}.")
    out.print(f"Follow them with: squeue --me; logs are in {run.jobs}.", soft_wrap=True)
    out.print(f"Report at any time: python -m ser_hpc.report {shlex.quote(str(run.path))}", soft_wrap=True)
    return 0


def _report(run: RunDir, out: Console) -> int:
    from ser_hpc.report import show, write_report

    result = write_report(run)
    show(run, result, out)
    return 1 if result.missing else 0


def _settings(options: argparse.Namespace) -> Settings:
    """Defaults < file < command line; neither file nor shards named: the demo's file."""
    from ser_hpc.config.load import find, load

    file = find(options.config, "") if options.config else None
    if file is None and not any(override.startswith("data.shards=") for override in options.override):
        file = find("demo", "")
    shortcuts = [
        f"{key}={value}"
        for flag, (key, _, _) in SHORTCUTS.items()
        if (value := getattr(options, flag.replace("-", "_"))) is not None
    ]
    return load(file, [*shortcuts, *options.override])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ser_hpc.launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE", help="settings file, or the name of one under configs/")
    for flag, (key, metavar, meaning) in SHORTCUTS.items():
        parser.add_argument(f"--{flag}", metavar=metavar, help=f"{meaning}  ({key})")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and start nothing")
    parser.add_argument("--prepare", action="store_true", help="write the run directory, print its path and start nothing")
    parser.add_argument("--settings", action="store_true", help="list every setting with its default and meaning")
    parser.add_argument("override", nargs="*", metavar="key=value", help="any setting, for instance train.epochs=60")
    return parser


def _command(argv: Sequence[str] | None) -> str:
    return shlex.join(["python", "-m", "ser_hpc.launch", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    console.run(main)
