"""Check before anything is started or queued that a plan's trials can start: run directory, batch size, model.

Every launcher does; what Slurm is asked besides is in slurm/site_checks.py.

The model's configuration and the presence of its weights are checked by a process of its own, which has transformers and no
torch: a login node needs no GPU for it, and a few seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ser_hpc.config.adapters import LowRankSettings, QloraSettings
from ser_hpc.config.heads import MeanPoolSettings, ProbeSettings
from ser_hpc.config.settings import EncoderModel, Settings
from ser_hpc.core.errors import UserError, counted
from ser_hpc.corpora.names import is_unknown
from ser_hpc.corpora.public_checkpoints import contamination
from ser_hpc.corpora.words import WordColumn
from ser_hpc.results.confounding import confounding_warning
from ser_hpc.run.experiment import Experiment, old_defaults_note
from ser_hpc.run.init_source import open_source

_HEADS_LR = 2e-4
_MODEL_S = 180.0  # on a login node with a slow file system, transformers takes its time


def check_trials(experiment: Experiment, models: dict[str, tuple[str | None, list[str]]] | None = None) -> list[str]:
    """Return notes worth reading. Raises UserError with everything that would make each trial fail.

    `models`: what was found of encoders so far, where many runs are checked whose heads differ alone.
    """
    settings = experiment.settings
    problems = [*_root(settings.run.root), *_steps(experiment)]
    notes = [*old_defaults_note(experiment), *_slow_head(settings), *_missing_packages(settings)]
    if isinstance(settings.model, EncoderModel):
        error, model_notes = _model(settings.model, {} if models is None else models)
        problems += [error] if error else []
        notes += model_notes
        for weights in {settings.model.weights, _foreign_source(settings.model.init_from)}:
            if learnt := contamination(weights, _tested_corpora(experiment)):
                notes.append(learnt)
    notes += _confounding(experiment)
    if problems:
        raise UserError("\n".join(problems))
    return notes


def _confounding(experiment: Experiment) -> list[str]:
    """Tell where nearly all clips are of their speaker's most frequent class: before anything is trained, not behind it."""
    metadata = experiment.index.metadata
    names, speakers = WordColumn.join(metadata.corpus, metadata.speaker).number()
    known = np.array([not is_unknown(name.partition("/")[2]) for name in names])[speakers] & (experiment.targets >= 0)
    counts = np.zeros((len(names), len(experiment.label_set.classes)), dtype=np.int64)
    np.add.at(counts, (speakers[known], experiment.targets[known]), 1)
    share, of_all = (float(most) / max(1, int(counts.sum())) for most in (counts.max(1).sum(), counts.sum(0).max()))
    return [confounded] if (confounded := confounding_warning(share, of_all, "clips")) else []


def _tested_corpora(experiment: Experiment) -> set[str]:
    corpus = experiment.index.metadata.corpus
    return {name for fold in experiment.folds.folds for name in corpus.take(fold.test.positions).occurring()}


def _foreign_source(name: str | None) -> str | None:
    """Return what trials start from, if nobody has recorded whom it has heard."""
    return None if name is None or open_source(name).heard else name


def check_run_root(settings: Settings) -> None:
    """Raise UserError where no run directory can be made."""
    if problems := _root(settings.run.root):
        raise UserError(problems[0])


def _root(root: Path) -> list[str]:
    if os.pathsep in str(root.absolute()):
        return [f"run.root={root}: jobs cannot import from a path with {os.pathsep!r} in it; choose another run.root"]
    existing = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not existing.is_dir():
        return [f"run.root={root}: {existing} is a file, so no run can be kept below it; choose another run.root"]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"run.root={root}: nothing can be written into {existing}; choose another run.root"]
    return []


def _steps(experiment: Experiment) -> list[str]:
    """Refuse a step that takes more clips than there are: it would be smaller, with another meaning of the learning rate.

    A run that an earlier version has begun like that goes on.
    """
    if experiment.run.plan.exists():
        return []
    requested = experiment.settings.train.global_batch
    smallest = min(experiment.folds.folds, key=lambda fold: len(fold.train.positions))
    clips = len(smallest.train.positions)
    if requested <= clips:
        return []
    return [f"train.global_batch={requested}: fold {smallest.index} trains on {counted(clips, 'clip')}; take {clips} at most"]


def _slow_head(settings: Settings) -> list[str]:
    """Tell that a head alone learns next to nothing at a learning rate made for encoders."""
    frozen = isinstance(settings.model, EncoderModel) and settings.model.freeze == "encoder" and not settings.is_probe
    name, rate = ("head_lr", settings.train.head_lr) if settings.train.head_lr else ("lr", settings.train.lr)
    if not frozen or rate >= _HEADS_LR:
        return []
    return [
        f"the encoder is frozen, and a head alone hardly moves at a learning rate of {rate:g}: try train.{name}=1e-3, or fit a "
        "probe (model.head=probe)"
    ]


def _missing_packages(settings: Settings) -> list[str]:
    """Tell what trials import and this Python lacks: a note, for they may run in another (a container)."""
    adapter = getattr(settings.model, "adapter", None)
    wanted = []
    if isinstance(adapter, LowRankSettings):
        wanted.append(("peft", f"model.adapter={adapter.kind}", "pip install 'ser_hpc[adapters]'"))
    if isinstance(adapter, QloraSettings):
        wanted.append(("bitsandbytes", "model.adapter=qlora", "pip install 'ser_hpc[qlora]'"))
    if settings.train.strategy != "ddp":
        wanted.append(("deepspeed", f"train.strategy={settings.train.strategy}", "install it, or use ddp"))
    return [
        f"{what} needs the package {name}, which is not installed here: {advice}"
        for name, what, advice in wanted
        if find_spec(name) is None
    ]


def _model(model: EncoderModel, known: dict[str, tuple[str | None, list[str]]]) -> tuple[str | None, list[str]]:
    """Return what is wrong with the model, if anything, and notes; of an encoder that is `known` what was said before."""
    head = ProbeSettings(layers=model.head.layers) if isinstance(model.head, ProbeSettings) else MeanPoolSettings()
    given = model.model_copy(update={"head": head}).model_dump_json()  # all of a head that is looked at
    if given not in known:
        known[given] = _describe_model(given)
    return known[given]


def _describe_model(given: str) -> tuple[str | None, list[str]]:
    environment = os.environ | {"TRANSFORMERS_VERBOSITY": "critical", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-m", "ser_hpc.models.encoders.configuration"]
    try:
        done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, timeout=_MODEL_S)
        answer = json.loads(done.stdout)
        return answer["error"], answer["notes"]
    except subprocess.TimeoutExpired:
        return None, [f"the model: not checked, transformers took over {_MODEL_S:.0f} s to load"]
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return None, [f"the model: not checked ({last[:300]})"]
