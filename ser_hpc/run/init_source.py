"""Find what a trial starts from: the trained model that `model.init_from` names, and of a run the trial that is fit for it.

A source trial is fit for a fold if it has neither learnt from nor been chosen on the fold's test speakers, nor learnt from its
dev speakers. Speakers are compared as CORPUS/NAME, in any spelling (`corpora.names`), after `folds.speaker_aliases`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ser_hpc.config.load import load_run_settings
from ser_hpc.config.settings import EncoderModel, Settings
from ser_hpc.core.atomic_io import read_json
from ser_hpc.core.errors import UserError, listed
from ser_hpc.core.home import expand_home
from ser_hpc.corpora.names import find_ambiguous
from ser_hpc.corpora.public_checkpoints import read_config
from ser_hpc.run import identity
from ser_hpc.run.plan import read_plan
from ser_hpc.run.run_dir import RunDir, Trial

if TYPE_CHECKING:  # predicting needs no folds
    from ser_hpc.protocols.folds import FoldPlan

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Heard:
    """The speakers, as CORPUS/NAME, that a model learnt from, and those that chose its epoch."""

    train: frozenset[str]
    dev: frozenset[str]

    def conflicts(self, dev: Iterable[str], test: Iterable[str], same: Mapping[str, str | None]) -> list[str]:
        """List the dev and test speakers of a fold that the model must not have heard, and has."""
        train, chosen = ({same.get(name) or name for name in names} for names in (self.train, self.dev))
        return sorted({*_shared(test, train | chosen), *_shared(dev, train)})


@dataclass(frozen=True, slots=True)
class Source:
    """A trained model to start from. `trials`: of a run those that may be chosen, the best first; `heard`: of each of them its
    speakers; of a folder, which is one model, under None; empty: nobody has recorded them."""

    path: Path
    run: RunDir | None
    trials: tuple[Trial, ...]
    heard: dict[Trial | None, Heard]

    def choose(self, dev: Sequence[str], test: Sequence[str], same: Mapping[str, str | None]) -> Trial | None:
        """Return the trial to start from; None: the folder's one model. Raises UserError where each has heard somebody."""
        found = {trial: heard.conflicts(dev, test, same) for trial, heard in self.heard.items()}
        fit = [trial for trial, names in found.items() if not names]
        if fit or not found:
            return fit[0] if fit else None
        least = min(found.values(), key=len)
        each = "each of its trials has" if self.run else "it has"
        raise UserError(
            f"model.init_from {self.path}: {each} learnt from (or was chosen by) speakers that this run tests or chooses by: "
            f"{listed(least, 6)}. Its score on them would be no test. Start from a model of other speakers, or plan the same "
            "folds as its run's (folds.protocol, folds.count)"
        )


def open_source(name: str) -> Source:
    """Open what `model.init_from` names; a name that is no folder is one on the hub. Raises UserError."""
    path = expand_home(name)
    run, wanted = RunDir(path), None
    if (trial := re.fullmatch(r".*seed_(\d+)/fold_(\d+)", path.resolve().as_posix())) and not run.plan.exists():
        run, wanted = RunDir(path.resolve().parents[1]), Trial(int(trial[1]), int(trial[2]))
    if run.plan.exists():
        return _of_run(path, run, wanted)
    in_folder = path.parent != Path() and path.parent.is_dir()  # a slip in a path, which looks as a name on the hub does
    if not path.exists() and (in_folder or not _HUB_NAME.fullmatch(name)):
        raise UserError(f"model.init_from: there is no run, and no folder, {name}")
    if path.exists() and not (path / "config.json").is_file():
        raise UserError(f"model.init_from {name} is neither a run nor a model folder: it has no plan.json, nor a config.json")
    heard = read_config(path).get("ser_hpc", {}).get("heard")
    known = isinstance(heard, dict) and all(isinstance(heard.get(part), list) for part in ("train", "dev"))
    found: dict[Trial | None, Heard] = {None: Heard(frozenset(heard["train"]), frozenset(heard["dev"]))} if known else {}
    return Source(path, None, (), found)


def heard_by(run: RunDir, plan: Mapping[str, Any], trials: Iterable[Trial]) -> dict[Trial, Heard]:
    """Return the speakers of trials, by their run's plan, and those of what they started from. Raises UserError where that is
    gone."""
    settings, folds = load_run_settings(run.settings), {fold["fold"]: fold for fold in plan["folds"]}
    name = getattr(settings.model, "init_from", None)
    source, found = None if name is None else open_source(name), {}
    for trial in trials:
        fold = folds[trial.fold]
        train, dev, test = (qualified(fold[part]["speakers"], plan["corpora"]) for part in ("train", "dev", "test"))
        before = Heard(frozenset(), frozenset())
        if source is not None:
            before = source.heard.get(source.choose(dev, test, settings.folds.speaker_aliases), before)
        found[trial] = Heard(before.train | frozenset(train), before.dev | frozenset(dev))
    return found


def qualified(speakers: Iterable[str], corpora: Sequence[str]) -> list[str]:
    """Return speakers of a plan as CORPUS/NAME: those of a single corpus stand there without it. Where it is not known which
    (a plan whose other corpora have no class), they may be of any of them."""
    own = {f"{corpus}/" for corpus in corpora} if len(corpora) > 1 else set()
    return [
        full
        for name in speakers
        for full in ([name] if any(map(name.startswith, own)) else [f"{corpus}/{name}" for corpus in corpora])
    ]


def check_speakers(settings: Settings, folds: FoldPlan, corpora: Sequence[str]) -> None:
    """Raise UserError where a fold has speakers that what it starts from has heard."""
    if (name := getattr(settings.model, "init_from", None)) is None:
        return
    source = open_source(name)
    for fold in folds.folds:
        dev, test = (qualified(part.speakers, corpora) for part in (fold.dev, fold.test))
        source.choose(dev, test, settings.folds.speaker_aliases)


def source_digest(settings: Any) -> str | None:
    """Hash the weights that a run may start from, SHA-256 in hex, wherever they lie; a name on the hub stands for itself."""
    name = getattr(getattr(settings, "model", None), "init_from", None)
    if name is None:
        return None
    source = open_source(name)
    if source.run is not None:
        recorded = identity.read_identity(source.run)
        weights = [source.run.trial(trial).weights for trial in sorted(source.trials)]
        return f"{recorded.identity.digest if recorded else ''}-{identity.files_digest(weights)}"
    files = identity.weight_files(source.path)
    return identity.files_digest(files) if files else f"hub:{name}"


def with_encoder_of_source(settings: Settings) -> Settings:
    """Return the settings with the source's `weights` or `config` where they name none of their own."""
    model = settings.model
    if not isinstance(model, EncoderModel) or model.init_from is None or model.model_fields_set & {"weights", "config"}:
        return settings
    source = open_source(model.init_from)
    changes: dict[str, Any] = {"weights": model.init_from}
    if source.run is not None:
        theirs = load_run_settings(source.run.settings).model
        if not isinstance(theirs, EncoderModel):
            raise UserError(f"model.init_from {model.init_from} is of the kind {theirs.kind}, no encoder of transformers'")
        changes = {name: getattr(theirs, name) for name in ("weights", "config", "num_layers", "normalize")}
    elif isinstance(record := read_config(source.path).get("ser_hpc"), dict):
        changes = {"weights": None, "config": record["model"].get("config"), "normalize": record["model"].get("normalize")}
    changes = {name: value for name, value in changes.items() if name not in model.model_fields_set}
    return settings.model_copy(update={"model": model.model_copy(update=changes)})


def _of_run(path: Path, run: RunDir, wanted: Trial | None) -> Source:
    """Open a run: the trials of its first seed, or the one that is wanted, all of which must be done."""
    plan = read_plan(run)
    trials = [Trial(**each) for each in plan["trials"]]
    chosen = [each for each in trials if each == wanted or (wanted is None and each.seed == min(plan["seeds"]))]
    if not chosen:
        raise UserError(f"model.init_from {path}: {run.path} has no {wanted}; it has {listed(trials, 20)}")
    if waiting := [trial for trial in chosen if not run.trial(trial).is_done]:
        raise UserError(
            f"model.init_from {path}: {listed(waiting, 6)} of it is not finished; wait, or name a finished one, as "
            f"{run.path}/seed_0/fold_0"
        )
    scores = {trial: read_json(run.trial(trial).done).get("best_dev_uar") or 0.0 for trial in chosen}
    ordered = sorted(chosen, key=lambda trial: (-scores[trial], trial))
    return Source(path, run, tuple(ordered), dict(heard_by(run, plan, ordered).items()))


def _shared(names: Iterable[str], heard: Iterable[str]) -> list[str]:
    """List the names that are among those heard, or may be one of them in another spelling."""
    given, known = {_split(name): name for name in names}, {_split(name) for name in heard}
    by_corpus: dict[str, set[str]] = {}
    for corpus, name in {*given, *known}:
        by_corpus.setdefault(corpus, set()).add(name)
    shared = set(given) & known
    for corpus, every in by_corpus.items():
        for group in find_ambiguous(every):
            ours = [(corpus, name) for name in group if (corpus, name) in given]
            if any((corpus, name) in known for name in group):
                shared.update(ours)
    return [given[key] for key in shared]


def _split(name: str) -> tuple[str, str]:
    """Split CORPUS/NAME; a corpus is the same in any writing (`Emo-DB`, `emodb`)."""
    corpus, _, speaker = name.partition("/")
    return re.sub(r"[^a-z0-9]", "", corpus.lower()), speaker
