"""From settings to a run that can start: shards, labels, folds and trials, all checked before anything is written.

The launcher plans and writes the run directory; every job plans again, from the run's own settings and label set, and must come
to the same experiment and the same folds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ser_hpc.cluster.describe import plan_json
from ser_hpc.config import schema as schemas
from ser_hpc.config import weights
from ser_hpc.config.load import dump, find, load_run
from ser_hpc.config.schema import SCHEMA
from ser_hpc.config.settings import AcrnnModel, EncoderModel, Settings
from ser_hpc.corpora import labels
from ser_hpc.corpora.folds import FoldPlan, plan
from ser_hpc.corpora.labels import DROPPED, LabelSet
from ser_hpc.data import augment
from ser_hpc.errors import UserError, listed
from ser_hpc.files import write_text
from ser_hpc.results import identity
from ser_hpc.results.checks import fold_digest, read_plan
from ser_hpc.results.identity import Identity
from ser_hpc.results.run_dir import RunDir, Trial
from ser_hpc.results.sealed import write_sealed
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.report import packing_notes
from ser_hpc.shards.storage import Place, place

DEMO = "demo"
WHISPER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Experiment:
    """Settings with all that they stand for. `targets`: class index of every clip of the index, -1 where it has none.

    `run` is runs/<name>-<8 hex of `identity`>: a hash of what changes the result, so nothing stale is ever taken for it; or
    such a directory that an earlier version of this package made of the same, under its own hash.
    """

    settings: Settings
    index: ShardIndex
    label_set: LabelSet
    targets: np.ndarray
    folds: FoldPlan
    identity: Identity
    run: RunDir
    notes: tuple[str, ...] = ()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Seed by seed, so that the first full cross-validation ends first."""
        return tuple(Trial(seed, fold.index) for seed in self.settings.seeds for fold in self.folds.folds)

    @property
    def is_of_before(self) -> bool:
        """Planned by a version that wrote no identity: reported on, but only its own code goes on with it."""
        return _is_of_before(self.run)


def _is_of_before(run: RunDir) -> bool:
    with suppress(UserError):
        return run.plan.exists() and not run.identity.exists() and run.read_plan().get("format") == 1
    return False


def prepare(settings: Settings, label_set: LabelSet | None = None) -> Experiment:
    """Load and check everything that the settings name; writes nothing. Raises UserError.

    `label_set`: a run's own, instead of the one that `data.labels` names now.
    """
    index = ShardIndex.load(*shard_folders(settings))
    label_set = label_set or _label_set(settings, index)
    if len(label_set.classes) < 2:
        raise UserError(
            f"the clips have {len(label_set.classes)} class ({', '.join(label_set.classes)}); two are needed at least"
        )
    asked = settings.folds
    folds = plan(
        index.metadata,
        label_set,
        asked.protocol,
        asked.count,
        train_corpora=asked.train_corpora,
        test_corpora=asked.test_corpora,
        max_per_class=asked.max_per_class,
        same_speakers=asked.same_speakers,
        distinct=index.distinct,
    )
    _check_lengths(settings, index)
    targets = label_set.targets(index.metadata)
    _check_groups(settings, index.metadata.seconds[targets != DROPPED])
    augment.check(settings.data.augment)
    who, run = _run(settings, label_set, index.fingerprint)
    notes = tuple(note for root in index.roots for note in packing_notes(root))
    return Experiment(settings, index, label_set, targets, folds, who, run, notes)


def _label_set(settings: Settings, index: ShardIndex) -> LabelSet:
    name = settings.data.labels
    return labels.as_annotated(index.metadata) if name == "as_annotated" else labels.load(find(name, "labels"))


def _run(settings: Settings, label_set: LabelSet, fingerprint: str) -> tuple[Identity, RunDir]:
    """The run directory of these settings that is there, under this schema or an earlier one; else the one to be made."""
    files = _files(settings, fingerprint)
    found = (identity.of(settings, label_set, files, schema) for schema in range(SCHEMA, 0, -1))
    runs = [(who, RunDir(settings.run.root / f"{settings.run.name}-{who.digest[:8]}")) for who in found if who]
    return next(((who, run) for who, run in runs if run.plan.exists()), runs[0])


def _files(settings: Settings, fingerprint: str) -> dict[str, str]:
    """Digests of what is read besides the settings, for the identity."""
    digests = (fingerprint, augment.sounds_digest(settings.data.augment), weights.digest(settings))
    return {name: digest for name, digest in zip(identity.FILES, digests, strict=True) if digest}


def under_old_defaults(experiment: Experiment) -> list[str]:
    """A note on a run that this very command made by an earlier version, if a default has changed since."""
    if experiment.run.plan.exists():
        return []
    for schema in range(SCHEMA - 1, 0, -1):
        settings, changed = schemas.as_before(experiment.settings, schema)
        assert isinstance(settings, Settings)
        _, run = _run(settings, experiment.label_set, experiment.index.fingerprint)
        if changed and run.plan.exists():
            return [
                f"{run.path} was made by an earlier version, whose default was {listed(changed)}: to go on with it, add that."
            ]
    return []


def shard_folders(settings: Settings) -> list[Place]:
    """Where the shards are; the demo's are beside its runs. Raises UserError if the settings do not say."""
    if not settings.data.shards:
        raise UserError(
            "data.shards is not given: add data.shards=FOLDER, a folder that tools/build_shards.py packed "
            f"(or data.shards={DEMO} for the built-in synthetic speech)"
        )
    return [demo_folder(settings) if name == DEMO else place(name) for name in settings.data.shards]


def demo_folder(settings: Settings) -> Path:
    return settings.run.root / "demo_corpus" / "shards"


def write(experiment: Experiment) -> RunDir:
    """Write the run directory, the plan last; trials of an earlier plan of the same run (other seeds) stay in it.

    The caller holds the run's lock, or is alone. Raises UserError where the directory is another experiment's.
    """
    run, wanted = experiment.run, experiment.settings.seeds
    run.path.mkdir(parents=True, exist_ok=True)
    if experiment.is_of_before:
        if others := set(wanted) - set(run.read_plan()["seeds"]):
            raise UserError(f"{run.path} was planned by an earlier version: it takes no more seeds ({listed(sorted(others))})")
        return run
    seeds = _seeds(experiment)
    # Jobs run elsewhere: no place of shards or weights may depend on the folder that the command was started in.
    data = experiment.settings.data.model_copy(update={"shards": tuple(str(root.resolve()) for root in experiment.index.roots)})
    model = experiment.settings.model
    if (folder := weights.folder(experiment.settings)) is not None:
        model = model.model_copy(update={"weights": str(folder.resolve())})
    settings = experiment.settings.model_copy(update={"seeds": tuple(seeds), "data": data, "model": model})
    write_text(run.settings, dump(settings))
    write_text(run.labels, labels.dump(experiment.label_set))
    e = experiment
    demo = DEMO in e.settings.data.shards or _was_demo(run)
    described = {"run": e.identity.digest} | plan_json(
        e.settings, e.index, e.label_set, e.targets, e.folds, seeds, e.notes, demo=demo
    )
    identity.write(run, e.identity, [fold_digest(fold) for fold in described["folds"]], seeds)
    write_sealed(run.plan, described)
    return run


def planned_trials(experiment: Experiment) -> tuple[Trial, ...]:
    """The trials of its run once it is planned, in their order: those of earlier launches too."""
    return tuple(Trial(seed, fold.index) for seed in _seeds(experiment) for fold in experiment.folds.folds)


def _seeds(experiment: Experiment) -> list[int]:
    return sorted({*experiment.settings.seeds, *_seeds_before(experiment)})


def _seeds_before(experiment: Experiment) -> Iterable[int]:
    """Every seed that was planned before, as far as that can still be read."""
    run = experiment.run
    recorded = None
    with suppress(UserError):
        recorded = identity.read(run)
    if recorded and recorded.identity.digest != experiment.identity.digest:
        raise UserError(f"{run.path} is another experiment's directory; move it away, or give another run.name")
    return {*(recorded.seeds if recorded else ()), *(trial.seed for trial in run.begun() if run.trial(trial).is_done)}


def _refuse_other_files(run: RunDir, made: Identity, experiment: Experiment) -> None:
    """Raises UserError where weights or sounds have changed since the run was made."""
    files = _files(experiment.settings, experiment.index.fingerprint)
    if changed := [name for name in identity.FILES if files.get(name) != made.what.get(name)]:
        raise UserError(
            f"{run.path} was made with other {listed(changed)} than are there now, so this trial would not be one of it. Put "
            "the old ones back, or launch again: a new run directory will be made"
        )


def _was_demo(run: RunDir) -> bool:
    """A plan made again from the run's own settings knows the shards' folder alone."""
    with suppress(UserError):
        return run.plan.exists() and run.read_plan().get("demo") is True
    return False


def reopen(run: RunDir) -> Experiment:
    """What a job does: plan again from the run's settings and labels. Raises UserError if that is not the launcher's plan."""
    recorded = identity.read(run)
    if recorded is None and not _is_of_before(run):
        raise UserError(f"{run.identity} is missing: launch the run again with the command that made it, which plans it anew")
    if recorded is None:
        experiment = prepare(load_run(run.settings))
        written = run.read_plan()
    else:
        written = read_plan(run)  # holds settings and labels against the identity too
        experiment = prepare(load_run(run.settings), labels.load(run.labels))
    if experiment.folds.digest != written["folds_digest"] or experiment.index.fingerprint != written["fingerprint"]:
        raise UserError(
            f"{run.path} was planned from other shards or by another version of this package: its folds differ from those "
            "planned now. Launch again; a new run directory will be made."
        )
    if recorded:
        _refuse_other_files(run, recorded.identity, experiment)
    return replace(experiment, run=run, identity=recorded.identity if recorded else experiment.identity)


def _check_lengths(settings: Settings, index: ShardIndex) -> None:
    model, limit = settings.model, settings.data.max_seconds
    longest = float(index.metadata.seconds.max())
    if limit is not None or not isinstance(model, EncoderModel) or longest <= WHISPER_SECONDS:
        return
    if "whisper" in json.dumps([model.weights, model.config]).lower():
        raise UserError(
            f"the longest clip lasts {longest:.1f} s and Whisper's window is {WHISPER_SECONDS:.0f} s: set "
            f"data.max_seconds={WHISPER_SECONDS:.0f} to cut longer clips to their first {WHISPER_SECONDS:.0f} s"
        )


def _check_groups(settings: Settings, seconds: np.ndarray) -> None:
    """Clips that are normalised by each other go through the model together, whatever budget is given."""
    model, train = settings.model, settings.train
    if not isinstance(model, AcrnnModel) or model.norm != "batch" or train.budget_seconds is None:
        return
    clips, longest = min(model.norm_group, train.global_batch), min(float(seconds.max()), settings.data.max_seconds or math.inf)
    if clips * longest > train.budget_seconds:
        raise UserError(
            f"model.norm=batch normalises {clips} clips by each other (model.norm_group), padded to the longest of them: up to "
            f"{clips} x {longest:.1f} s, which train.budget_seconds={train.budget_seconds:g} would divide. Leave "
            "train.budget_seconds out or raise it, cut clips with data.max_seconds, or take smaller groups"
        )
