"""Turn settings into a run that can start: shards, labels, folds and trials, all checked before anything is written.

The launcher plans and writes the run directory; every job loads the run's own settings, label set and folds, and must come to
the same experiment and the same folds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ser_hpc.config import extensions
from ser_hpc.config import schema as schemas
from ser_hpc.config.load import find_config, load_run_settings
from ser_hpc.config.schema import SCHEMA
from ser_hpc.config.settings import EncoderModel, Settings
from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora import labels
from ser_hpc.corpora.labels import DROPPED, LabelSet
from ser_hpc.corpora.names import is_unknown
from ser_hpc.data import augmentation, mixup
from ser_hpc.protocols.folds import FoldPlan, plan_folds
from ser_hpc.run import identity, init_source
from ser_hpc.run.fold_file import read_folds
from ser_hpc.run.identity import Identity
from ser_hpc.run.plan import read_plan
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.pack_report import packing_notes
from ser_hpc.shards.pair_file import find_near_duplicates
from ser_hpc.shards.storage import Location, parse_location
from ser_hpc.tasks.task import Task, build_tasks, check_selection

DEMO = "demo"
WHISPER_SECONDS = 30.0  # its window


@dataclass(frozen=True, slots=True)
class Experiment:
    """Settings with all that they name. `targets`: class index of every clip of the index, -1 where it has none; `tasks`: what
    is learnt, the classes first.

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
    tasks: tuple[Task, ...]
    notes: tuple[str, ...] = ()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Return the trials seed by seed, so that the first full cross-validation ends first."""
        return tuple(Trial(seed, fold.index) for seed in self.settings.seeds for fold in self.folds.folds)

    @property
    def is_legacy(self) -> bool:
        """Tell whether a version that wrote no identity planned it: it is reported on, but only its own code resumes it."""
        return _is_legacy(self.run)


def _is_legacy(run: RunDir) -> bool:
    with suppress(UserError):
        return run.plan.exists() and not run.identity.exists() and run.read_plan().get("format") == 1
    return False


def prepare_experiment(settings: Settings, label_set: LabelSet | None = None, planned: RunDir | None = None) -> Experiment:
    """Load and check everything that the settings name; writes nothing. Raises UserError.

    `label_set`: a run's own, instead of the one that `data.labels` names now; `planned`: the run, whose folds are taken as they
    were planned and checked for leaks at launch, if they are there.
    """
    settings = init_source.with_encoder_of_source(settings)
    index = ShardIndex.load(*shard_folders(settings))
    label_set = label_set or _label_set(settings, index)
    if len(label_set.classes) < 2:
        raise UserError(
            f"the clips have {len(label_set.classes)} class ({', '.join(label_set.classes)}); two are needed at least"
        )
    notes = tuple(note for root in index.roots for note in packing_notes(root))
    folds = read_folds(planned, read_plan(planned), index.metadata, notes) if planned else None
    folds = folds or _plan(settings, index, label_set)
    check_clip_lengths(settings, index)
    init_source.check_speakers(settings, folds, index.metadata.corpus.occurring())
    targets = label_set.targets(index.metadata)
    check_norm_groups(settings, index.metadata.seconds[targets != DROPPED])
    check_speakers(settings, index, targets)
    augmentation.check_augmentation(settings.data.augment)
    mixup.check_mixup(settings.data.mixup)
    tasks = build_tasks(settings.tasks, _Columns(index, label_set, targets), settings.train.class_weights)
    check_selection(tasks, settings.train.select_by)
    run_identity, run = _run(settings, label_set, index.fingerprint)
    return Experiment(settings, index, label_set, targets, folds, run_identity, run, tasks, notes)


def _plan(settings: Settings, index: ShardIndex, label_set: LabelSet) -> FoldPlan:
    requested = settings.folds
    return plan_folds(
        index.metadata,
        label_set,
        requested.protocol,
        requested.count,
        train_corpora=requested.train_corpora,
        test_corpora=requested.test_corpora,
        max_per_class=requested.max_per_class,
        speaker_aliases=requested.speaker_aliases,
        distinct=index.distinct,
        near=find_near_duplicates(index),
        harmless_pairs=requested.harmless_pairs,
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    """The annotations of the clips, for tasks (`ser_hpc.tasks.task.Columns`)."""

    index: ShardIndex
    label_set: LabelSet
    targets: np.ndarray

    def texts(self, name: str) -> np.ndarray:
        texts: np.ndarray = self.index.metadata.column(name)[:]
        return texts

    def numbers(self, name: str) -> np.ndarray:
        return self.index.numbers(name)


def check_clip_lengths(settings: Settings, index: ShardIndex) -> None:
    """Raise UserError where a clip is longer than Whisper's window and `data.max_seconds` does not cut it, or its center is to
    be kept and does not fit."""
    model, limit = settings.model, settings.data.max_seconds
    longest = float(index.metadata.seconds.max())
    if not isinstance(model, EncoderModel) or longest <= WHISPER_SECONDS:
        return
    fits = limit is not None and (settings.data.crop == "start" or limit <= WHISPER_SECONDS)
    if not fits and "whisper" in json.dumps([model.weights, model.config]).lower():
        kept = "the middle" if settings.data.crop == "center" else "their first"
        raise UserError(
            f"the longest clip lasts {longest:.1f} s and Whisper's window is {WHISPER_SECONDS:.0f} s: set "
            f"data.max_seconds={WHISPER_SECONDS:.0f} to cut longer clips to {kept} {WHISPER_SECONDS:.0f} s"
        )


def check_norm_groups(settings: Settings, seconds: np.ndarray) -> None:
    """Raise UserError where clips that normalise each other, and so share a micro-batch, exceed `train.budget_seconds`.

    `seconds`: lengths of the clips that have a class, (num_clips,).
    """
    budget = settings.train.budget_seconds
    if settings.norm_group is None or settings.uses_feature_cache or budget is None:
        return
    norm, group = settings.norm_group
    clips = min(group, settings.train.global_batch)
    longest = min(float(seconds.max()), settings.data.max_seconds or math.inf)
    if clips * longest > budget:
        raise UserError(
            f"{norm}=batch normalises {clips} clips by each other ({norm}_group), padded to the longest of them: up to "
            f"{clips} x {longest:.1f} s, which train.budget_seconds={budget:g} would divide. Leave "
            "train.budget_seconds out or raise it, cut clips with data.max_seconds, or take smaller groups"
        )


def check_speakers(settings: Settings, index: ShardIndex, targets: np.ndarray) -> None:
    """Raise UserError where clips are to be normalised by speaker and it is not known who speaks. `targets` (clips,)."""
    how = settings.speaker_normalization
    speakers = index.metadata.speaker.take(targets != DROPPED)
    unknown = np.array([is_unknown(name) for name in speakers.names.tolist()], dtype=bool)[speakers.codes]
    if how and unknown.any():
        raise UserError(
            f"model.head.normalization={how} normalises by speaker, and of {int(unknown.sum())} of {len(unknown)} clips the "
            "speaker is unknown: use clip or none"
        )


def _label_set(settings: Settings, index: ShardIndex) -> LabelSet:
    name = settings.data.labels
    return (
        labels.label_set_as_annotated(index.metadata)
        if name == "as_annotated"
        else labels.load_label_set(find_config(name, "labels"))
    )


def _run(settings: Settings, label_set: LabelSet, fingerprint: str) -> tuple[Identity, RunDir]:
    """Find the run directory of these settings, under this schema or an earlier one; else name the one to be made."""
    files = _files(settings, fingerprint)
    identities = (identity.identity_of(settings, label_set, files, schema) for schema in range(SCHEMA, 0, -1))
    runs = [(one, RunDir(settings.run.root / f"{settings.run.name}-{one.digest[:8]}")) for one in identities if one]
    return next(((one, run) for one, run in runs if run.plan.exists()), runs[0])


def _files(settings: Settings, fingerprint: str) -> dict[str, str]:
    """Hash what is read besides the settings, for the identity."""
    digests = (
        fingerprint,
        augmentation.sounds_digest(settings.data.augment),
        identity.weights_digest(settings),
        init_source.source_digest(settings),
        extensions.sources_digest(extensions.sources_of(settings.outsiders_in_results())),
    )
    return {name: digest for name, digest in zip(identity.FILES, digests, strict=True) if digest}


def old_defaults_note(experiment: Experiment) -> list[str]:
    """Return notes on a run that the same command made under an earlier version, if a default has changed since."""
    if experiment.run.plan.exists():
        return []
    for schema in range(SCHEMA - 1, 0, -1):
        settings, changed = schemas.under_schema(experiment.settings, schema)
        assert isinstance(settings, Settings)
        _, run = _run(settings, experiment.label_set, experiment.index.fingerprint)
        if changed and run.plan.exists():
            return [
                f"{run.path} was made by an earlier version, whose default was {listed(changed)}: to go on with it, add that."
            ]
    return []


def shard_folders(settings: Settings) -> list[Location]:
    """Return the shards' folders; the demo's is beside its runs. Raises UserError if the settings name none."""
    if not settings.data.shards:
        raise UserError(
            "data.shards is not given: add data.shards=FOLDER, a folder that tools/build_shards.py packed "
            f"(or data.shards={DEMO} for the built-in synthetic speech)"
        )
    return [demo_folder(settings) if name == DEMO else parse_location(name) for name in settings.data.shards]


def demo_folder(settings: Settings) -> Path:
    """Return the folder of the demo's shards, beside its runs."""
    return settings.run.root / "demo_corpus" / "shards"


def planned_trials(experiment: Experiment) -> tuple[Trial, ...]:
    """Return the trials of its run once it is planned, in order, those of earlier launches included."""
    return tuple(Trial(seed, fold.index) for seed in planned_seeds(experiment) for fold in experiment.folds.folds)


def planned_seeds(experiment: Experiment) -> list[int]:
    """Return all seeds of its run once it is planned, sorted, those of earlier launches included."""
    return sorted({*experiment.settings.seeds, *_seeds_before(experiment)})


def _seeds_before(experiment: Experiment) -> Iterable[int]:
    """Return every seed that was planned before, as far as that can still be read."""
    run = experiment.run
    recorded = None
    with suppress(UserError):
        recorded = identity.read_identity(run)
    if recorded and recorded.identity.digest != experiment.identity.digest:
        raise UserError(f"{run.path} is another experiment's directory; move it away, or give another run.name")
    return {*(recorded.seeds if recorded else ()), *(trial.seed for trial in run.trials_on_disk() if run.trial(trial).is_done)}


def _refuse_other_files(run: RunDir, made: Identity, experiment: Experiment) -> None:
    """Raise UserError where weights, sounds or code from outside the package have changed since the run was made."""
    files = _files(experiment.settings, experiment.index.fingerprint)
    if changed := [name for name in identity.FILES if files.get(name) != made.content.get(name)]:
        raise UserError(
            f"{run.path} was made with other {listed(changed)} than are there now, so this trial would not be one of it. Put "
            "the old ones back, or launch again: a new run directory will be made"
        )


def reopen_experiment(run: RunDir) -> Experiment:
    """Load what the run's settings name, as a job does, with the folds that were planned at launch, or planned again.

    Raises UserError where these, or the shards, are not the launcher's by their digests.
    """
    recorded = identity.read_identity(run)
    if recorded is None and not _is_legacy(run):
        raise UserError(f"{run.identity} is missing: launch the run again with the command that made it, which plans it anew")
    if recorded is None:
        experiment = prepare_experiment(load_run_settings(run.settings))
        written = run.read_plan()
    else:
        written = read_plan(run)  # holds settings and labels against the identity too
        experiment = prepare_experiment(load_run_settings(run.settings), labels.load_label_set(run.labels), run)
    if experiment.folds.digest != written["folds_digest"] or experiment.index.fingerprint != written["fingerprint"]:
        raise UserError(
            f"{run.path} was planned from other shards or by another version of this package: its folds differ from those "
            "planned now. Launch again; a new run directory will be made."
        )
    if recorded:
        _refuse_other_files(run, recorded.identity, experiment)
    return replace(experiment, run=run, identity=recorded.identity if recorded else experiment.identity)
