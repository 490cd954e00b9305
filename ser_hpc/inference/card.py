"""Write the model card of an exported folder, its README.md: what the model is, how good and how sure, and what it is not for.

Scores are those of the run's cross-validation, with their interval: what is exported is of one fold, or the mean of all folds,
and no clip of the corpus is left that no part of an ensemble was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import ser_hpc
from ser_hpc.config.settings import EncoderModel
from ser_hpc.core.atomic_io import write_text
from ser_hpc.core.errors import counted
from ser_hpc.core.home import expand_home
from ser_hpc.inference.spec import Member, ModelSpec
from ser_hpc.inference.trials import RunModels
from ser_hpc.results.cross_validation import CrossValidation, cross_validate
from ser_hpc.results.intervals import Interval
from ser_hpc.results.markdown import format_score, table
from ser_hpc.results.run_panel import find_panel
from ser_hpc.results.without_listening import WithoutListening
from ser_hpc.tasks.targets import Target

Library = Literal["transformers", "ser_hpc", "onnx", "peft"]
_ONNX_USAGE = """\
```python
import json
from pathlib import Path

import onnxruntime
import soundfile

FOLDER = "."  # this one
session = onnxruntime.InferenceSession(f"{FOLDER}/model.onnx")
about = json.loads(Path(f"{FOLDER}/model.json").read_text())
samples, rate = soundfile.read("recording.wav", dtype="float32")  # in [-1, 1]; it must be mono, and of 16 kHz
assert rate == about["input"]["rate_hz"] and samples.ndim == 1
(probabilities,) = session.run(["TASK"], {"samples": samples[None]})
print(dict(zip(about["classes"], probabilities[0].tolist())))
```

`samples` may hold several clips of one length, (clips, samples). model.json says what goes in and comes out; probabilities are
calibrated."""

_USE = """\
It tells which of its classes a clip of speech sounds most like, as annotators of the corpora above would. That is how someone
speaks, not what they feel: expression and feeling differ between people, languages and situations, and acted speech is not
everyday speech. Before you use it on other voices, rooms, languages or microphones, measure it there.

Do not use it to judge people: not in hiring, dismissal or performance reviews, not in school or examinations, not in policing,
border control, insurance or credit, not as a lie detector, not for diagnosis. In the European Union, the AI Act (Regulation
(EU) 2024/1689) prohibits AI systems that infer emotions of people at the workplace and in education, but for medical or safety
reasons (Article 5(1)(f)); lists emotion recognition otherwise among high-risk systems (Annex III, 1(c)); and has people who are
exposed to it informed (Article 50(3)). This is no legal advice."""

_LIMITS = """\
- It has no class for what it was not trained on: silence, music, crowds or another emotion get one of its classes too.
- It was trained and scored on whole utterances. Windows of long recordings cut words and hold pauses: the scores above are not
  those of windows.
- Recall differs between classes (above), and may differ between women and men, ages and accents: the corpora may be too small
  to tell. Check the groups that you care about.
- The confidence is calibrated on clips of the same corpora. Elsewhere it is usually too sure."""


def write_card(folder: Path, run: RunModels, spec: ModelSpec, library: Library) -> None:
    """Write README.md. `library`: what loads the folder; "transformers" where it is of a class of theirs, "peft" of an adapter
    alone."""
    cv = cross_validate(run.run)
    card = ModelCard(f"---\n{_data(run, cv, library).to_yaml()}\n---\n\n{_text(run, spec, cv, library)}")
    write_text(folder / "README.md", str(card))


def _data(run: RunModels, cv: CrossValidation, library: Library) -> ModelCardData:
    """Make what the hub reads: tags, base model, scores."""
    scores, name = cv.scores, str(run.plan["name"])
    results = [
        EvalResult(
            task_type="audio-classification",
            dataset_type=corpus.lower().replace(" ", "-"),
            dataset_name=f"{corpus} ({cv.plan['protocol']})",
            metric_type=metric,
            metric_name=title,
            metric_value=round(value, 4),
        )
        for corpus in [" + ".join(cv.plan["corpora"])]
        for metric, title, value in (
            [
                ("recall", "unweighted average recall, pooled over folds", scores.uar.pooled),
                ("accuracy", "accuracy, pooled over folds", scores.wa.pooled),
            ]
            if scores
            else []
        )
    ]
    base, is_public = _base(run)
    return ModelCardData(
        model_name=name,
        library_name=library,
        pipeline_tag="audio-classification",
        tags=["audio-classification", "speech-emotion-recognition"],
        license="other",
        license_name="see-the-section-licences",
        base_model=base if is_public or library == "peft" else None,
        eval_results=results or None,
    )


def _text(run: RunModels, spec: ModelSpec, cv: CrossValidation, library: Library) -> str:
    sections = {
        "How is it used?": _usage(library, spec, _base(run)[0]),
        "How good is it?": "\n\n".join([_scores(spec, cv), *_without_listening(run, cv)]),
        "How sure is it?": _calibration(spec),
        "What was it trained on?": _training(run, cv),
        "What is it for, and what not?": _USE,
        "Where are its limits?": _LIMITS,
        "Licences": _licences(run, cv),
    }
    title = f"# {run.plan['name']}: speech emotion recognition, {counted(len(spec.classes), 'class', 'classes')}"
    parts = [title, *_warnings(cv), _summary(run, spec)]
    return "\n\n".join([*parts, *(f"## {name}\n\n{text}" for name, text in sections.items())]) + "\n"


def _warnings(cv: CrossValidation) -> list[str]:
    demo = (
        ["**Warning: trained on the built-in demo, synthetic speech: it recognises nothing real.**"] if cv.plan["demo"] else []
    )
    return [*demo, *(f"**Warning: {warning}**" for warning in cv.warnings)]


def _summary(run: RunModels, spec: ModelSpec) -> str:
    of = spec.members[0]
    what = (
        f"The model of seed {of.seed}, fold {of.fold} (dev UAR {of.dev_uar:.3f})"
        if len(spec.members) == 1
        else f"The mean of the calibrated probabilities of {len(spec.members)} models, one a fold (seed {of.seed})"
    )
    others = "".join(f" It also predicts {name}: {_described(target)}." for name, target in list(spec.targets.items())[1:])
    return f"{what}, from the run `{run.run.path.name}`. Its classes: {', '.join(spec.classes)}.{others}"


def _described(target: Target) -> str:
    names = getattr(target, "classes", None) or getattr(target, "names", None)
    scale = f", from {target.low:g} to {target.high:g}" if hasattr(target, "low") and hasattr(target, "high") else ""
    return f"{', '.join(names) if names else target.kind}{scale}"


def _base(run: RunModels) -> tuple[str | None, bool]:
    """Return the name of the weights that were trained on, without the place of a folder, and whether the hub knows it."""
    weights: str | None = getattr(run.settings.model, "weights", None)
    if weights is not None and expand_home(weights).is_dir():
        return Path(weights).name, False
    return weights, weights is not None


def _usage(library: Library, spec: ModelSpec, base: str | None) -> str:
    if library == "onnx":
        return _ONNX_USAGE.replace("TASK", spec.main)
    if library == "peft":
        return (
            f"```bash\npython -m ser_hpc.predict FOLDER recording.wav --base {base}\n```\n\n"
            "```python\nfrom peft import PeftModel\nfrom transformers import AutoModel\n\n"
            "PeftModel.from_pretrained(AutoModel.from_pretrained(BASE), FOLDER)  # of Whisper: its get_encoder()\n```\n\n"
            "The adapter alone gives frames; the heads are in `heads.safetensors`. The folder holds no code and no pickle."
        )
    register = (
        "" if library == "transformers" else "import ser_hpc.inference.register  # makes the model known to transformers\n"
    )
    return (
        "```bash\npython -m ser_hpc.predict FOLDER recording.wav\n```\n\n"
        '```python\nimport ser_hpc\n\nser_hpc.load(FOLDER).predict("recording.wav")\n```\n\n'
        f"With transformers:\n\n```python\n{register}from transformers import pipeline\n\n"
        'pipeline("audio-classification", model=FOLDER)(samples)  # float32 in [-1, 1], 16 kHz, mono\n```\n\n'
        "The folder holds no code and no pickle."
    )


def _scores(spec: ModelSpec, cv: CrossValidation) -> str:
    plan = cv.plan
    protocol = f"`{plan['protocol']}`: no speaker is in more than one of the parts that train, choose the epoch and test"
    if not cv.scores:
        return f"Trials of the run are missing ({len(cv.missing)}), so it has no cross-validated score. Protocol: {protocol}."
    bounds = cv.interval.bounds
    interval = (
        f", 95 % interval {bounds[0]:.3f} to {bounds[1]:.3f} over {counted(cv.interval.num_units, cv.interval.unit)}"
        if bounds
        else f" (no interval: {cv.interval.reason})"
    )
    uar = cv.scores.uar
    lines = [
        f"Unweighted average recall **{uar.pooled:.3f}** pooled over folds{interval}; {uar.mean:.3f} ± {uar.std:.3f} over "
        f"{counted(cv.scores.num_trials, 'trial')}; chance is {1 / len(spec.classes):.3f}. Accuracy {cv.scores.wa.pooled:.3f}.",
        f"Protocol {protocol}.",
        _own_score(spec, cv),
        table(
            ["class", "recall", "95 % interval", "F1", "clips"],
            [
                [of.name, format_score(of.recall), _range(of.recall_interval), format_score(of.f1), str(of.num_clips)]
                for of in cv.by_class
            ],
            left=(0,),
        ),
    ]
    return "\n\n".join(lines)


def _without_listening(run: RunModels, cv: CrossValidation) -> list[str]:
    """Say what is reached without listening, where a report of the run, or of another on the same folds, has looked."""
    panel, reason = find_panel(run.run, cv.plan, lambda _: None, compute=False)
    if panel is None:
        return []
    found = WithoutListening(panel, reason, confounding=None, ledger=None, chance=1 / len(cv.classes))
    return [found.meaning(cv.scores.uar.pooled if cv.scores else None)]


def _range(interval: Interval) -> str:
    return f"{interval.bounds[0]:.2f} to {interval.bounds[1]:.2f}" if interval.bounds else "-"


def _own_score(spec: ModelSpec, cv: CrossValidation) -> str:
    if len(spec.members) > 1:
        return (
            "These are the scores of its models one by one, each on speakers that it had not heard. The mean of them all has "
            "no score: each clip of the corpus trained most of them."
        )
    member = spec.members[0]
    own = next((t for t in cv.trials if (t.trial.seed, t.trial.fold) == (member.seed, member.fold)), None)
    if own is None:
        return ""
    return (
        f"The exported model's own test part ({counted(own.num_test, 'clip')}): UAR {own.uar:.3f}. One fold's speakers are "
        "few; the cross-validation above says more."
    )


def _calibration(spec: ModelSpec) -> str:
    main = spec.main
    rows = [_calibration_row(member, main) for member in spec.members if main in member.calibration]
    return (
        "Logits are divided by a temperature that was fitted to the dev part (Guo et al. 2017); the class does not change by "
        "it. Expected calibration error on those dev clips, before and after (of the clips it was fitted to):\n\n"
        + table(["seed", "fold", "temperature", "ECE before", "ECE after", "dev clips"], rows)
    )


def _calibration_row(member: Member, task: str) -> list[str]:
    of = member.calibration[task]
    numbers = (f"{of.temperature:.3g}", f"{of.ece_before:.3f}", f"{of.ece_after:.3f}", str(of.num_clips))
    return [str(member.seed), str(member.fold), *numbers]


def _training(run: RunModels, cv: CrossValidation) -> str:
    plan = cv.plan
    counts = {name: sum(fold["test"]["classes"].get(name, 0) for fold in plan["folds"]) for name in plan["classes"]}
    dropped = f" Left out, for having no class in the label set: {_counts(plan['dropped'])}." if plan["dropped"] else ""
    lines = [
        f"Corpora: {', '.join(plan['corpora'])}. Label set `{plan['label_set']}`. Clips by class: {_counts(counts)}.{dropped}",
        f"Model: {_model(run)}.",
        *(
            f"{topic.capitalize()}: {text}."
            for topic, text in cv.about.items()
            if topic in ("code", "versions", "hardware", "time")
        ),
        f"Exported by ser_hpc {ser_hpc.__version__}. The settings (`settings.yaml`), folds and predictions lie in the run.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _model(run: RunModels) -> str:
    """Describe the model; a folder of weights by its own name, not by where it lies."""
    model = run.settings.model
    if not isinstance(model, EncoderModel):
        return f"`{model.kind}`, from random weights"
    weights = (
        f"`{Path(model.weights).name if Path(model.weights).is_dir() else model.weights}`"
        if model.weights
        else "random weights"
    )
    frozen = {"encoder": ", frozen", "feature_encoder": ", its feature encoder frozen"}.get(model.freeze, "")
    layers = f", its lowest {counted(model.freeze_layers, 'layer')} frozen" if model.freeze_layers else ""
    adapter = f", adapter `{model.adapter.kind}`" if model.adapter else ""
    cut = f", ended after {counted(model.num_layers, 'layer')}" if model.num_layers else ""
    seen = " on a learned sum of its layers" if model.layers == "weighted" else ""
    if model.init_from is not None:
        weights = f"the trained model `{Path(model.init_from).name}`"
    return f"encoder from {weights}{cut}{frozen}{layers}{adapter}; head `{model.head.kind}`{seen}"


def _licences(run: RunModels, cv: CrossValidation) -> str:
    model = run.settings.model
    started = [each for each in (getattr(model, "weights", None), getattr(model, "init_from", None)) if each]
    of_weights = f", and of the weights it started from ({', '.join(Path(each).name for each in started)})" if started else ""
    return (
        f"A model is bound by the terms of what it was made of: of its corpora ({', '.join(cv.plan['corpora'])}){of_weights}. "
        "Many speech corpora allow research only. This package does not know them: whoever passes the model on reads them "
        "first, and writes here what they say."
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
