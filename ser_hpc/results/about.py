"""Describe what was trained, with what and how long, for the report: from the run's settings, its attempts and its code.

What an earlier version did not write down is left out.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ser_hpc.config import schema
from ser_hpc.config.heads import ProbeSettings
from ser_hpc.config.load import load_run_settings
from ser_hpc.config.settings import EncoderModel, Settings
from ser_hpc.core.atomic_io import read_json, read_sealed
from ser_hpc.core.errors import UserError, counted
from ser_hpc.run.attempt_end import TrainedAttempt, trained_attempts
from ser_hpc.run.run_dir import RunDir, Trial, TrialDir
from ser_hpc.run.snapshot import is_modified

_UNREADABLE = (OSError, ValueError, KeyError, TypeError)


def describe_run(
    run: RunDir, plan: Mapping[str, Any], done: Sequence[TrialDir], attempts: Sequence[TrainedAttempt] | None = None
) -> dict[str, str]:
    """Describe the run, topic by topic: {"data": ..., "model": ..., "code": ...}. `done`: the finished trials; `attempts`: of
    all trials, if the caller has read them."""
    classes = counted(len(plan["classes"]), "class", "classes")
    about = {"data": f"{', '.join(plan['corpora'])}; label set {plan['label_set']}, {classes}"}
    markers = [read_json(folder.done) for folder in done]
    with suppress(UserError, OSError):
        settings = load_run_settings(run.settings)
        about["model"] = _model(settings)
        about["settings that differ from the defaults"] = ", ".join(changed_settings(settings)) or "none"
        if settings.is_probe:
            about["L2 penalties"] = _penalties(settings, {f.trial: marker for f, marker in zip(done, markers, strict=True)})
    finished = {folder.trial for folder in done}
    records = [record for trial, record in (trained_attempts(run) if attempts is None else attempts) if trial in finished]
    strategies = sorted({str(marker["strategy"]) for marker in markers if "strategy" in marker})
    about["code"] = _each(_origin(run, digest) for digest in {str(record.get("code") or "") for record in records})
    about["versions"] = _each(", ".join(f"{name} {number}" for name, number in _versions(run, one)) for one in records)
    about["hardware"] = _each(_hardware(record, strategies) for record in records)
    about["restarts"] = _restarts(records, finished)
    about["time"] = _time([float(marker["seconds"]) for marker in markers if "seconds" in marker])
    return {topic: text for topic, text in about.items() if text}


def read_ensemble(run: RunDir) -> dict[str, Any]:
    """Read what an ensemble was made of. Raises UserError where that was changed."""
    try:
        return read_sealed(run.ensemble)
    except (OSError, ValueError) as error:
        raise UserError(f"{run.ensemble} is damaged ({error}); make the ensemble again") from error


def describe_ensemble(run: RunDir, plan: Mapping[str, Any]) -> dict[str, str]:
    """Describe a run that was made of others' predictions: its members, and what each weighs."""
    made, classes = read_ensemble(run), counted(len(plan["classes"]), "class", "classes")
    weights = list(zip(*made["weights"].values(), strict=True))
    members = [
        f"{member['name']} ({counted(len(member['seeds']), 'seed')}, weight {_range(each)})"
        for member, each in zip(made["members"], weights, strict=True)
    ]
    how = "weights fitted to each fold's dev part" if made["weighted"] else "equal weights"
    return {
        "data": f"{', '.join(plan['corpora'])}; label set {plan['label_set']}, {classes}",
        "ensemble": f"the mean of the probabilities that {counted(len(members), 'run')} saved, {how}: {', '.join(members)}",
    }


def _range(weights: Sequence[float]) -> str:
    low, high = min(weights), max(weights)
    return f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"


def _model(settings: Settings) -> str:
    model = settings.model
    if not isinstance(model, EncoderModel):
        return f"{model.kind}, from random weights"
    tuned = "" if model.freeze == "encoder" else ", fine-tuned"
    what = f"{model.weights}{tuned}" if model.weights else f"{(model.config or {}).get('model_type')}, from random weights"
    if model.init_from is not None:
        what = f"started from the trained model {model.init_from} ({what})"
    frozen = {"encoder": "; the encoder frozen", "feature_encoder": "; its feature encoder frozen"}.get(model.freeze, "")
    return what + frozen + (f"; its lowest {counted(model.freeze_layers, 'layer')} frozen" if model.freeze_layers else "")


def changed_settings(settings: Settings) -> Iterator[str]:
    """List the settings that change the result and are not at their defaults, as `train.epochs=60`."""

    def flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            path = f"{above}{name}"
            if isinstance(value, dict) and path != "model.config":
                yield from flat(value, f"{path}.")
            else:
                yield path, value

    for path, value in flat(schema.identity(settings) or {}):
        yield f"{path}={json.dumps(value) if isinstance(value, dict | list | bool) or value is None else value}"


def _penalties(settings: Settings, markers: Mapping[Trial, Mapping[str, Any]]) -> str:
    """Say which penalty each trial of a probe chose: what is called an epoch there is its number."""
    assert isinstance(settings.model, EncoderModel) and isinstance(settings.model.head, ProbeSettings)
    tried = sorted(set(settings.model.head.l2), reverse=True)  # as engine/probe.py takes them
    chosen: dict[float, list[int]] = {}
    for trial, marker in markers.items():
        if trial.seed == min(each.seed for each in markers):  # the same for all seeds
            chosen.setdefault(tried[int(marker["best_epoch"])], []).append(trial.fold)
    each = [f"{penalty:g} in fold{'s' * (len(of) > 1)} {', '.join(map(str, of))}" for penalty, of in chosen.items()]
    edge = "; one beyond the ends of model.head.l2 may be better" if {tried[0], tried[-1]} & chosen.keys() else ""
    numbered = ", ".join(f"{penalty:g}" for penalty in tried)
    return f"what is called an epoch is the number of one of {numbered}; chosen on dev: {', '.join(each)}{edge}"


def _origin(run: RunDir, digest: str | None) -> str:
    """Return the commit or version of a code that is kept in the run."""
    if not digest:
        return ""
    with suppress(*_UNREADABLE):
        origin = read_json(run.code / str(digest) / "origin.json")
        commit = f"commit {origin['commit'][:12]}" if origin.get("commit") else "of no commit"
        changed = ", with changes (difference.patch)" if is_modified(origin) else ""
        return f"version {origin['version']}, {commit}{changed}; kept in code/{digest}"
    return f"code/{digest}"


def _versions(run: RunDir, attempt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    with suppress(*_UNREADABLE):
        yield "python", read_json(run.code / str(attempt["code"]) / "origin.json")["versions"]["python"]
    if isinstance(versions := attempt.get("versions"), dict):
        yield from versions.items()


def _hardware(attempt: Mapping[str, Any], strategies: Sequence[str]) -> str:
    device, ranks = attempt.get("device"), attempt.get("ranks")
    parts = [str(device)] if device else []
    parts += [f"{counted(int(ranks), 'rank')} a trial"] if ranks else []
    return ", ".join([*parts, *strategies])


def _restarts(records: Sequence[Mapping[str, Any]], finished: Collection[Trial]) -> str:
    """Count the starts of finished trials after their first: each went on from a checkpoint, or began anew."""
    if len(records) < len(finished):  # by a version that wrote none
        return ""
    more = len(records) - len(finished)
    return f"{counted(more, 'restart')} survived, in {counted(len(finished), 'finished trial')}" if more else "none was needed"


def _time(seconds: Sequence[float]) -> str:
    if not seconds:
        return ""
    low, high = min(seconds) / 60, max(seconds) / 60
    each = f"{high:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"
    return f"{sum(seconds) / 3600:.2f} h for {counted(len(seconds), 'trial')}, {each} minutes each"


def _each(values: Iterator[str]) -> str:
    """Join what the attempts recorded, each value once: where they differ, the report's notes name the trials."""
    return " or ".join(sorted({value for value in values if value}))
