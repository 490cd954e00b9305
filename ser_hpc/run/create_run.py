"""Write a run directory: settings, labels, identity, and last the plan; more seeds may be added to one that is there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ser_hpc.config import extensions
from ser_hpc.config.load import EXTENSIONS, dump_settings
from ser_hpc.config.settings import Settings
from ser_hpc.core.atomic_io import write_aside, write_text
from ser_hpc.core.errors import UserError, listed
from ser_hpc.core.home import expand_home
from ser_hpc.corpora import labels
from ser_hpc.protocols.near_duplicates import parse_harmless
from ser_hpc.run import identity
from ser_hpc.run.experiment import DEMO, Experiment, planned_seeds
from ser_hpc.run.fold_file import write_folds
from ser_hpc.run.plan import fold_digest, make_plan, write_plan
from ser_hpc.run.run_dir import RunDir


def write_run(experiment: Experiment) -> RunDir:
    """Write the run directory, the plan last; trials of an earlier plan of the same run (other seeds) stay in it.

    The caller holds the run's lock, or is alone. Raises UserError where the directory is another experiment's.
    """
    run, requested = experiment.run, experiment.settings.seeds
    run.path.mkdir(parents=True, exist_ok=True)
    if experiment.is_legacy:
        if others := set(requested) - set(run.read_plan()["seeds"]):
            raise UserError(f"{run.path} was planned by an earlier version: it takes no more seeds ({listed(sorted(others))})")
        return run
    seeds = planned_seeds(experiment)
    settings = portable_settings(experiment).model_copy(update={"seeds": tuple(seeds)})
    write_extensions(run.path, settings)
    write_text(run.settings, dump_settings(settings, experiment.identity.schema))  # its own code may go on with it
    write_text(run.labels, labels.dump_label_set(experiment.label_set))
    e = experiment
    demo = DEMO in e.settings.data.shards or _was_demo(run)
    described = {"run": e.identity.digest} | make_plan(
        e.settings, e.index, e.label_set, e.targets, e.folds, seeds, e.notes, e.tasks, demo=demo
    )
    identity.write_identity(run, e.identity, [fold_digest(fold) for fold in described["folds"]], seeds)
    write_folds(run, e.folds, len(e.index.metadata))
    write_plan(run, described, e.identity.schema)
    return run


def portable_settings(experiment: Experiment) -> Settings:
    """Return the settings as jobs read them: they run elsewhere, so no place of shards, weights or pairs may depend on the
    folder that the command was started in."""
    given = experiment.settings
    data = given.data.model_copy(update={"shards": tuple(str(root.resolve()) for root in experiment.index.roots)})
    model = given.model
    if (folder := identity.local_folder(given)) is not None:
        model = model.model_copy(update={"weights": str(folder.resolve())})
    if (source := getattr(model, "init_from", None)) is not None and expand_home(source).is_dir():
        model = model.model_copy(update={"init_from": str(expand_home(source).resolve())})
    harmless = tuple("=".join(pair) for pair in sorted(parse_harmless(given.folds.harmless_pairs)))
    folds = given.folds.model_copy(update={"harmless_pairs": harmless})
    return given.model_copy(update={"data": data, "folds": folds, "model": model})


def write_extensions(folder: Path, settings: Settings) -> None:
    """Copy what the settings choose from outside the package, for jobs to import."""
    for path, content in extensions.sources_of(settings.outsiders()).items():
        with write_aside(folder / EXTENSIONS / path) as copy:  # the bytes: Python's files may be of any encoding
            copy.write_bytes(content)


def _was_demo(run: RunDir) -> bool:
    """Tell whether the run is of the demo: a plan made again from its own settings knows the shards' folder alone."""
    with suppress(UserError):
        return run.plan.exists() and run.read_plan().get("demo") is True
    return False
