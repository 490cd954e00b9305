"""Open the models of a run's finished trials: the weights of the epoch that dev chose, under the run's own settings.

Nothing else of the run is needed, not even its shards: classes and targets come from its plan, temperatures from its saved dev
predictions. Weights that training left as they were come from where they came from then (`model.weights`), if they still are
what the run was made with. What stands outside the package is imported from the run's own copy of it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ser_hpc.config.extensions import import_from
from ser_hpc.config.load import EXTENSIONS, load_run_settings
from ser_hpc.config.settings import EncoderModel, Settings
from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora import labels
from ser_hpc.corpora.public_checkpoints import read_config
from ser_hpc.data.sampler import weights_seed
from ser_hpc.inference.calibration import calibrate
from ser_hpc.inference.ensemble import Ensemble, Heads
from ser_hpc.inference.folder import MODEL_TYPE, read_model
from ser_hpc.inference.initial import initial_of_checkpoint, initial_of_model
from ser_hpc.inference.spec import Member, ModelSpec
from ser_hpc.models.adapters import merge_lora
from ser_hpc.models.classifier import Classifier, build_classifier, build_for_tasks
from ser_hpc.models.frontend import Frontend
from ser_hpc.models.initial import InitialWeights
from ser_hpc.results.plan_checks import read_done, read_trial_predictions
from ser_hpc.run import identity, init_source
from ser_hpc.run.plan import read_plan
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.tasks.targets import ClassTarget, Target, make_target

_ENCODERS_OWN = re.compile(r"encoder\.(?!.*\.lora_).*\.weight$")


@dataclass(frozen=True, slots=True)
class RunModels:
    """A run, open for its models: settings, plan, and the targets of its tasks, the main one first."""

    run: RunDir
    settings: Settings
    plan: dict[str, Any]
    targets: dict[str, Target]

    @classmethod
    def open(cls, run: RunDir) -> RunModels:
        """Read and check what the run says of itself. Raises UserError."""
        if run.ensemble.exists():
            raise UserError(f"{run.path} was made of other runs' predictions, and has no model: give one of those runs")
        plan, settings = read_plan(run), load_run_settings(run.settings)
        main, *others = settings.tasks
        described = plan.get("tasks", {})
        if lacking := [name for name in others if name not in described]:
            raise UserError(f"{run.plan} does not describe the task {lacking[0]}: launch the run again, which plans it anew")
        with import_from(run.path / EXTENSIONS):
            rest = {name: make_target({k: v for k, v in described[name].items() if k != "clips"}) for name in others}
        return cls(run, settings, plan, {main: ClassTarget(tuple(plan["classes"])), **rest})

    def finished(self) -> list[Trial]:
        """List the trials that are done, in the plan's order. Raises UserError if none is."""
        found = [trial for trial in (Trial(**t) for t in self.plan["trials"]) if self.run.trial(trial).is_done]
        if not found:
            raise UserError(f"{self.run.path}: no trial is finished yet; see python -m ser_hpc.status {self.run.path}")
        return found

    def choose(self, fold: int | None, seed: int | None) -> list[Trial]:
        """Choose finished trials: one, by fold (and seed); or every fold of one seed, the first with all of them.

        Raises UserError where there are none such, or a fold is missing.
        """
        finished = self.finished()
        folds = {each["fold"] for each in self.plan["folds"]}
        complete = [s for s in self.plan["seeds"] if folds == {trial.fold for trial in finished if trial.seed == s}]
        first = seed if seed is not None else next(iter(complete), finished[0].seed)
        if fold is not None:
            wanted = Trial(self.plan["seeds"][0] if seed is None else seed, fold)
            if wanted not in finished:
                raise UserError(f"{self.run.path} has no finished {wanted}; it has {listed(finished, 20)}")
            return [wanted]
        found = [trial for trial in finished if trial.seed == first]
        if seed is not None and not found:
            raise UserError(f"{self.run.path} has no finished trial of seed {seed}; it has {listed(finished, 20)}")
        if missing := sorted(folds - {trial.fold for trial in found}):
            raise UserError(
                f"{self.run.path}: of seed {first}, fold {listed(missing)} is not finished, so there is no ensemble of all "
                f"folds yet. Take a finished one, as --fold {found[0].fold} --seed {first}, or wait"
            )
        return found

    def best(self, seed: int | None = None) -> Trial:
        """Return the finished trial (of a seed) with the highest dev UAR, of equal ones the first. Raises UserError."""
        finished = [trial for trial in self.finished() if seed in (None, trial.seed)]
        if not finished:
            raise UserError(f"{self.run.path} has no finished trial of seed {seed}; it has {listed(self.finished(), 20)}")
        return max(finished, key=lambda trial: self._member(trial).dev_uar)

    def _member(self, trial: Trial) -> Member:
        """Describe a trial, with temperatures fitted to its saved dev predictions."""
        folder = self.run.trial(trial)
        done = read_done(folder, self.plan)
        dev = read_trial_predictions(folder, self.plan, done)["dev"]
        return Member(trial.seed, trial.fold, done.get("best_dev_uar") or 0.0, calibrate(dev, self.targets))

    def spec(self, trials: Sequence[Trial]) -> ModelSpec:
        """Describe the model of these trials, with temperatures fitted to their dev parts."""
        return ModelSpec(
            model=self.settings.model,
            targets=self.targets,
            heads={name: task.head for name, task in self.settings.tasks.items()},
            max_seconds=self.settings.data.max_seconds,
            members=tuple(self._member(trial) for trial in trials),
            crop=self.settings.data.crop,
        )

    def load(self, trials: Sequence[Trial], calibrated: bool = True) -> tuple[ModelSpec, Ensemble]:
        """Load these trials as one model, on the CPU. Raises UserError where weights are missing or are not the run's."""
        spec = self.spec(trials)
        members = spec.members
        with import_from(self.run.path / EXTENSIONS):
            encoders, heads = self._parts(spec, trials)
        temperatures = [member.temperatures if calibrated else {} for member in members]
        return spec, Ensemble(encoders, heads, self.targets, temperatures)

    def _parts(self, spec: ModelSpec, trials: Sequence[Trial]) -> tuple[list[tuple[Frontend, nn.Module]], list[Heads]]:
        """Build each trial's classifier with its weights; those on the same frozen encoder have it in common."""
        model = spec.model
        common = isinstance(model, EncoderModel) and model.freeze == "encoder" and model.init_from is None
        shared: dict[int | None, tuple[int, Classifier]] = {}
        encoders: list[tuple[Frontend, nn.Module]] = []
        heads: list[Heads] = []
        for trial in trials:
            saved = self._weights(trial)
            drawn = trial.seed if isinstance(model, EncoderModel) and model.weights is None else None
            if common and drawn in shared:
                number, first = shared[drawn]
                classifier = Classifier(
                    first.frontend,
                    first.encoder,
                    copy.deepcopy(first.head),
                    _copied_heads(first),
                    layer_sum=copy.deepcopy(first.layer_sum),
                )
            else:
                self._check_base(saved)
                number, classifier = len(encoders), self._build(spec, trial, saved)
                encoders.append((classifier.frontend, classifier.encoder))
                shared[drawn] = number, classifier
            self._fill(classifier, saved, trial)
            merge_lora(classifier.encoder)
            heads.append(Heads.of(classifier, number, spec.main))
        return encoders, heads

    def classifier(self, spec: ModelSpec, trial: Trial) -> Classifier:
        """Build a trial's classifier as it was trained, its adapter beside the encoder's matrices. Raises UserError."""
        saved = self._weights(trial)
        self._check_base(saved)
        classifier = self._build(spec, trial, saved)
        self._fill(classifier, saved, trial)
        return classifier

    def _build(self, spec: ModelSpec, trial: Trial, saved: Mapping[str, Tensor]) -> Classifier:
        if self.settings.is_probe:
            return build_classifier(spec.model, len(spec.classes), seed=0)
        whole = any(map(_ENCODERS_OWN.match, saved))
        initial = None if whole else initial_weights(self.run, self.settings, trial)
        return build_for_tasks(spec.model, spec.tasks, weights_seed(trial.seed), initial=initial)

    def _weights(self, trial: Trial) -> dict[str, Tensor]:
        path = self.run.trial(trial).weights
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: the weights of {trial} cannot be read ({error}); launch the run again") from error

    def _fill(self, classifier: Classifier, saved: Mapping[str, Tensor], trial: Trial) -> None:
        """Put saved weights into a classifier that holds the others. Raises UserError where they are of another one."""
        try:
            missing, unexpected = classifier.load_state_dict(dict(saved), strict=False)
        except RuntimeError as error:
            raise UserError(f"the weights of {trial} are of another model than {self.run.settings} says: {error}") from error
        trained = {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}
        if lost := [*unexpected, *(name for name in missing if name in trained or not name.startswith("encoder."))]:
            raise UserError(
                f"the weights of {trial} are of another model than {self.run.settings} says: {listed(sorted(lost), 4)}"
            )

    def _check_base(self, saved: Mapping[str, Tensor]) -> None:
        """Raise UserError where untrained weights would come from a folder that is not any more what the run was made with."""
        recorded = identity.read_identity(self.run)
        if recorded is None or any(map(_ENCODERS_OWN.match, saved)):
            return
        digests = {"weights": identity.weights_digest, "init_from": init_source.source_digest}
        for name, digest in digests.items():
            if recorded.identity.content.get(name) != digest(self.settings):
                given = getattr(self.settings.model, name, None)
                raise UserError(
                    f"model.{name} {given} is not what {self.run.path} was trained with, and the run holds only what it "
                    "trained on top of it: bring the old weights back there"
                )


def initial_weights(run: RunDir, settings: Settings, trial: Trial) -> InitialWeights | None:
    """Read the weights that a trial of a run starts from; None: those of `model.weights`. Raises UserError."""
    model = settings.model
    if not isinstance(model, EncoderModel) or model.init_from is None:
        return None
    source, plan = init_source.open_source(model.init_from), run.read_plan()
    fold = next(fold for fold in plan["folds"] if fold["fold"] == trial.fold)
    dev, test = (init_source.qualified(fold[part]["speakers"], plan["corpora"]) for part in ("dev", "test"))
    chosen, label_set = source.choose(dev, test, settings.folds.speaker_aliases), labels.load_label_set(run.labels)
    if source.run is not None and chosen is not None:
        spec, module = RunModels.open(source.run).load([chosen], calibrated=False)
        return initial_of_model(f"{model.init_from} ({chosen})", spec, module, label_set)
    if MODEL_TYPE in read_config(source.path):
        return initial_of_model(model.init_from, *read_model(source.path, calibrated=False), label_set)
    return initial_of_checkpoint(model.init_from, next(iter(settings.tasks)), label_set)


def _copied_heads(classifier: Classifier) -> dict[str, nn.Module]:
    return {name.removesuffix("_"): copy.deepcopy(head) for name, head in classifier.task_heads.items()}
