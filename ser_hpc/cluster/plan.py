"""From settings to a run that can start: shards, labels, folds and trials, all checked before anything is written.

The launcher plans and writes `plan.json`; every job plans again, from the run's own settings, and must come to the same folds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ser_hpc
from ser_hpc.config.load import dump, find, load
from ser_hpc.config.settings import AcrnnModel, EncoderModel, Settings
from ser_hpc.corpora import labels
from ser_hpc.corpora.folds import FoldPlan, Part, plan
from ser_hpc.corpora.labels import DROPPED, LabelSet
from ser_hpc.data import augment
from ser_hpc.errors import UserError
from ser_hpc.files import write_json, write_text
from ser_hpc.results.run_dir import RunDir, Trial
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.storage import Place, place

DEMO = "demo"
WHISPER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Experiment:
    """Settings with all that they stand for. `targets`: class index of every clip of the index, -1 where it has none."""

    settings: Settings
    index: ShardIndex
    label_set: LabelSet
    targets: np.ndarray
    folds: FoldPlan

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Seed by seed, so that the first full cross-validation ends first."""
        return tuple(Trial(seed, fold.index) for seed in self.settings.seeds for fold in self.folds.folds)

    @property
    def run(self) -> RunDir:
        """runs/<name>-<8 hex>: the hex is a hash of what changes the result, so nothing stale is ever taken for it."""
        what = {
            "settings": self.settings.identity(),
            **self.label_set.identity(),
            "shards": self.index.fingerprint,
        }
        if sounds := augment.sounds_digest(self.settings.data.augment):
            what["sounds"] = sounds
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return RunDir(self.settings.run.root / f"{self.settings.run.name}-{digest[:8]}")


def prepare(settings: Settings) -> Experiment:
    """Load and check everything that the settings name; writes nothing. Raises UserError."""
    index = ShardIndex.load(*shard_folders(settings))
    name = settings.data.labels
    label_set = labels.as_annotated(index.metadata) if name == "as_annotated" else labels.load(find(name, "labels"))
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
    )
    _check_lengths(settings, index)
    targets = label_set.targets(index.metadata)
    _check_groups(settings, index.metadata.seconds[targets != DROPPED])
    augment.check(settings.data.augment)
    return Experiment(settings, index, label_set, targets, folds)


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

    The caller holds the run's lock, or is alone.
    """
    run = experiment.run
    run.path.mkdir(parents=True, exist_ok=True)
    seeds = set(experiment.settings.seeds)
    if run.plan.exists():
        seeds |= set(run.read_plan()["seeds"])
    # Jobs run elsewhere: the shards' place must not depend on the folder that the command was started in.
    data = experiment.settings.data.model_copy(update={"shards": tuple(str(root.resolve()) for root in experiment.index.roots)})
    settings = experiment.settings.model_copy(update={"seeds": tuple(sorted(seeds)), "data": data})
    write_text(run.settings, dump(settings))
    write_json(run.plan, _describe(experiment, sorted(seeds)))
    return run


def reopen(run: RunDir) -> Experiment:
    """What a job does: plan again from the run's settings. Raises UserError if that no longer gives the launcher's folds."""
    written = run.read_plan()
    experiment = prepare(load(run.settings, []))
    if experiment.folds.digest != written["folds_digest"] or experiment.index.fingerprint != written["fingerprint"]:
        raise UserError(
            f"{run.path} was planned from other shards or by another version of this package: its folds differ from those "
            "planned now. Launch again; a new run directory will be made."
        )
    return experiment


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


def _describe(experiment: Experiment, seeds: list[int]) -> dict[str, Any]:
    """plan.json: everything in words and counts that a report, a status page or a person needs."""
    metadata, folds = experiment.index.metadata, experiment.folds
    dropped = Counter(experiment.label_set.annotations(metadata)[experiment.targets == DROPPED].tolist())
    return {
        "format": 1,
        "name": experiment.settings.run.name,
        "version": ser_hpc.__version__,
        "demo": DEMO in experiment.settings.data.shards,
        "classes": list(experiment.label_set.classes),
        "label_set": experiment.label_set.name,
        "corpora": sorted(set(metadata.corpus.tolist())),
        "num_clips": int((experiment.targets != DROPPED).sum()),
        "dropped": dict(sorted(dropped.items())),
        "protocol": folds.protocol,
        "notes": list(folds.notes),
        "seeds": seeds,
        "folds": [
            {"fold": fold.index} | {name: _side(experiment, getattr(fold, name)) for name in ("train", "dev", "test")}
            for fold in folds.folds
        ],
        "trials": [asdict(Trial(seed, fold.index)) for seed in seeds for fold in folds.folds],
        "folds_digest": folds.digest,
        "fingerprint": experiment.index.fingerprint,
    }


def _side(experiment: Experiment, part: Part) -> dict[str, Any]:
    counts = np.bincount(experiment.targets[part.positions], minlength=len(experiment.label_set.classes))
    return {
        "words": part.words,
        "speakers": list(part.speakers),
        "sessions": list(part.sessions),
        "num": len(part.positions),
        "seconds": round(float(experiment.index.metadata.seconds[part.positions].sum()), 1),
        "classes": dict(zip(experiment.label_set.classes, counts.tolist(), strict=True)),
    }
