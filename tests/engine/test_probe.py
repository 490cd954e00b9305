"""A linear probe: the optimum it claims, chosen on dev alone, the same bits after a kill, and the model that is kept of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.test_data_side import damage_two
from engine.test_feature_cache import base, dated, frozen, pretrained  # noqa: F401  (fixtures)
from safetensors.torch import load_file
from small import packed_tones, run_here
from torch.nn import functional as F

from ser_hpc.config import schema
from ser_hpc.config.load import find_config, load_settings
from ser_hpc.core.errors import ConfigError, UserError
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.fault.preemption import StopFlag, Stopped
from ser_hpc.engine.fault.watchdog import Watchdog
from ser_hpc.engine.frozen_encoder import FrozenEncoder
from ser_hpc.engine.probe import fit_logistic_regression, train_trial
from ser_hpc.engine.probe_normalization import feature_scale, normalize_by_speaker
from ser_hpc.engine.trial_data import TrialData
from ser_hpc.models.classifier import build_classifier
from ser_hpc.models.encoders.configuration import check_configuration
from ser_hpc.results.cross_validation import cross_validate, is_transductive
from ser_hpc.run import predictions
from ser_hpc.run.attempt import claim_attempt
from ser_hpc.run.experiment import check_speakers, reopen_experiment
from ser_hpc.run.rank import Rank
from ser_hpc.run.run_dir import RunDir, Trial, TrialDir
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import CorruptClipError, ShardReader

FIRST = Trial(0, 0)
PROBE = ("model.head={kind: probe, statistics: mean_std, l2: [1, 0.1, 0.01]}", "folds.protocol=speaker_groups", "folds.count=3")


def probe(root: Path, weights: Path, *more: str, shards: Path | None = None) -> RunDir:
    return frozen(root, weights, *PROBE, *more, shards=shards)


def fit(run: RunDir, trial: Trial = FIRST, stop: StopFlag | None = None) -> TrialDir:
    """In this process."""
    place, experiment = run.trial(trial), reopen_experiment(run)
    attempt = claim_attempt(place, Rank(0, 1, 0, 1))
    data = TrialData(experiment.index, experiment.tasks, experiment.folds.folds[trial.fold])
    world = World(0, 1, 0, 1, torch.device("cpu"))
    with Watchdog(300, lambda: None, exit_code=1) as watchdog:
        train_trial(place, attempt, experiment.settings, data, world, stop or StopFlag(), watchdog, FrozenEncoder())
    return place


def found_by(place: TrialDir) -> list[predictions.Prediction]:
    return list(predictions.read_predictions(place.current.predictions))


def test_it_is_the_optimum_of_what_it_minimises() -> None:
    """The gradient of the weighted mean cross-entropy and penalty vanishes; a clip of weight 2 counts as two."""
    rng = np.random.default_rng(0)
    features, targets = rng.standard_normal((60, 9)), rng.integers(0, 3, 60)
    weights = rng.integers(1, 3, 60).astype(float)
    weight, bias = (
        torch.tensor(part, requires_grad=True) for part in fit_logistic_regression(features, targets, weights, 0.05, 3)
    )
    losses = F.cross_entropy(torch.from_numpy(features) @ weight.T + bias, torch.from_numpy(targets), reduction="none")
    ((losses * torch.from_numpy(weights)).sum() / weights.sum() + 0.05 / 2 * weight.square().sum()).backward()
    assert weight.grad is not None and weight.grad.abs().max() < 1e-3
    rows = np.repeat(np.arange(60), weights.astype(int))
    again, _ = fit_logistic_regression(features[rows], targets[rows], np.ones(len(rows)), 0.05, 3)
    assert np.abs(again - weight.detach().numpy()).max() < 2e-3


@pytest.mark.parametrize("present", [(0, 2), (1, 2), (0, 1, 3)])
def test_a_class_without_clips_is_never_predicted(present: tuple[int, ...]) -> None:
    """And of two classes both get logits, which give the probabilities of a logistic regression."""
    rng = np.random.default_rng(1)
    targets = np.array(present)[rng.integers(0, len(present), 80)]
    features = rng.standard_normal((80, 5)) + targets[:, None]
    weight, bias = fit_logistic_regression(features, targets, np.ones(80), 0.01, 4)
    predicted = (features @ weight.T + bias).argmax(1)
    assert set(predicted) == set(present) and (predicted == targets).mean() > 0.7


def test_what_varies_by_rounding_alone_is_not_blown_up() -> None:
    """As the mean of position embeddings does, where all clips have one length: a clip of another would get any class."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 12)) * np.geomspace(1, 30, 12)
    rows[:, 3], rows[:, 8] = 5 + 1e-7 * rows[:, 3], 0
    scale = feature_scale(rows, 6)
    ordinary = [0, 1, 2, 4, 5, 6, 7, 9, 10, 11]
    assert np.allclose(scale[ordinary], rows.std(0)[ordinary])
    assert scale[3] == pytest.approx(0.1 * np.median(rows[:, :6].std(0)))
    assert (feature_scale(np.ones((4, 6)), 3) == 1).all()


def test_speakers_get_the_mean_and_deviation_of_the_average_training_speaker() -> None:
    """Whatever a speaker's voice adds and scales by; a test speaker's labels and other speakers' clips have no part in it."""
    rng = np.random.default_rng(0)
    speakers, train = np.repeat([0, 1, 2, 3], 50), np.repeat([True, True, True, False], 50)
    plain = rng.standard_normal((200, 8))
    rows = plain * rng.uniform(0.5, 2, (4, 1))[speakers] + rng.normal(0, 5, (4, 8))[speakers]
    found = normalize_by_speaker(rows, speakers, train, 4)
    within = rows[train] - np.stack([rows[speakers == s].mean(0) for s in range(4)])[speakers[train]]
    for speaker in range(4):
        own = found[speakers == speaker]
        assert np.allclose(own.mean(0), rows[train].mean(0)) and np.allclose(own.std(0), within.std(0))
    louder = np.where(speakers[:, None] == 3, 3 * rows + 7, rows)
    assert np.allclose(normalize_by_speaker(louder, speakers, train, 4), found)
    alone = normalize_by_speaker(np.vstack([rows, rows[:1]]), np.append(speakers, 4), np.append(train, False), 4)
    assert np.allclose(alone[:-1], found) and np.allclose(alone[-1], rows[train].mean(0)), "of one clip nothing is known"


@pytest.mark.parametrize("how", ["clip", "train_speakers", "transductive"])
def test_normalised_probes_are_kept_and_named_for_what_they_are(base: Path, pretrained: Path, how: str) -> None:  # noqa: F811
    """The model predicts what was recorded from sound alone, unless the scores are transductive: then the report warns."""
    run = probe(base / how, pretrained, f"model.head.normalization={how}")
    place, experiment = fit(run), reopen_experiment(run)
    model = build_classifier(experiment.settings.model, 3, 0).eval()
    model.load_state_dict(load_file(place.weights), strict=False)
    where = {name: i for i, name in enumerate(experiment.index.metadata.utterance_id)}
    same = []
    with ShardReader(experiment.index) as reader, torch.no_grad():
        for prediction in [p for p in found_by(place) if p.part == "test"][::15]:
            clip = torch.from_numpy(np.asarray(reader.read(where[prediction.utterance_id])))
            chances = model(clip, torch.tensor([0, len(clip)]))["emotion"].softmax(-1)[0].numpy()
            same.append(np.allclose(list(prediction.probabilities.values()), chances, rtol=0, atol=1e-4))
    warned = [text for text in cross_validate(run).warnings if "transductive" in text]
    assert is_transductive(run) == (how == "transductive"), "so that compare names it"
    assert (not all(same) and warned) if how == "transductive" else (all(same) and not warned)


def test_speakers_must_be_known_to_normalise_by_them(base: Path, pretrained: Path) -> None:  # noqa: F811
    lines = ("model.head={kind: probe, normalization: transductive}", f"model.weights={pretrained}", "model.freeze=encoder")
    settings = load_settings(None, [*lines, f"data.shards={packed_tones(base)}", "folds.protocol=speaker_groups"])
    index = ShardIndex.load(packed_tones(base))
    index.metadata.speaker.names[0] = "unknown"
    targets = np.zeros(len(index.metadata), np.int64)
    with pytest.raises(UserError, match=r"normalization=transductive normalises by speaker, and of \d+ of \d+ clips"):
        check_speakers(settings, index, targets)
    check_speakers(load_settings(None, [*lines, "model.head.normalization=clip"]), index, targets)
    with pytest.raises(ConfigError, match=r"model\.head\.normalization: unknown key"):
        load_settings(None, ["model.head.normalization=transductive"])


def test_the_model_that_is_kept_predicts_the_same_from_sound(base: Path, pretrained: Path) -> None:  # noqa: F811
    """Its weights are the probe's alone; put into the whole model, each clip gets the probabilities that were recorded."""
    run = probe(base / "kept", pretrained)
    place, experiment = fit(run), reopen_experiment(run)
    model = build_classifier(experiment.settings.model, 3, 0).eval()
    saved = load_file(place.weights)
    assert saved and all(name.startswith("head.") for name in saved)
    model.load_state_dict(saved, strict=False)
    found = [p for p in found_by(place) if p.part == "test"][::10]
    where = {name: i for i, name in enumerate(experiment.index.metadata.utterance_id)}
    with ShardReader(experiment.index) as reader, torch.no_grad():
        for prediction in found:
            clip = torch.from_numpy(np.asarray(reader.read(where[prediction.utterance_id])))
            chances = model(clip, torch.tensor([0, len(clip)]))["emotion"].softmax(-1)[0]
            assert np.allclose(list(prediction.probabilities.values()), chances.numpy(), rtol=0, atol=1e-4)
    lines = [json.loads(line) for line in place.current.epochs.read_text().splitlines()]
    marker = json.loads(place.done.read_text())
    best = max(line["dev_uar"] for line in lines)
    assert len(lines) == 3 and lines[marker["best_epoch"]]["dev_uar"] == best == marker["best_dev_uar"]
    assert best > 0.5, "tones are easily told apart"


class StopAfterTwoFits(StopFlag):
    """Is asked to stop once the current attempt has tried two penalties."""

    def __init__(self, place: TrialDir) -> None:
        super().__init__()
        self._place = place

    def reason(self, save_s: float = 0.0) -> str | None:
        path = self._place.current.epochs
        return "SIGTERM" if path.exists() and path.read_text().count("\n") == 2 else None


def test_stopped_and_started_again_it_ends_in_the_same_bits(base: Path, pretrained: Path) -> None:  # noqa: F811
    """Whatever the seed; and the encoder sees each clip once in the run, for all folds and seeds."""
    whole, run = probe(base / "whole", pretrained, "seeds=2"), probe(base / "run", pretrained, "seeds=2")
    expected = fit(whole)
    with pytest.raises(Stopped, match="SIGTERM"):
        fit(run, stop=StopAfterTwoFits(run.trial(FIRST)))
    same = fit(run)
    assert same.current.predictions.read_bytes() == expected.current.predictions.read_bytes()
    assert same.weights.read_bytes() == expected.weights.read_bytes()
    before = dated(run)
    other = fit(run, Trial(1, 0))
    assert other.weights.read_bytes() == expected.weights.read_bytes()
    fit(run, Trial(0, 1))
    assert dated(run) == before and len(before) == 3


def test_two_ranks_predict_the_same(base: Path, pretrained: Path) -> None:  # noqa: F811
    """Through the command that every job runs: one rank fits, the other waits."""
    alone, together = (probe(base / name, pretrained) for name in ("alone", "together"))
    fit(alone)
    assert run_here(together, FIRST, ranks=2) == {FIRST: 0}
    ours, theirs = (found_by(run.trial(FIRST)) for run in (alone, together))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.utterance_id == other.utterance_id
        assert np.allclose(list(mine.probabilities.values()), list(other.probabilities.values()), rtol=0, atol=2e-3)


def test_damaged_clips_take_no_part_and_are_named(base: Path, pretrained: Path) -> None:  # noqa: F811
    shards = Path(shutil.copytree(packed_tones(base), base / "damaged-probe"))
    run = probe(base / "few", pretrained, "data.max_corrupt=0.1", shards=shards)
    damaged = set(damage_two(run))
    outcomes = set()
    for trial in run.trials():
        try:
            lines = fit(run, trial).current.damaged.read_text().splitlines()
            assert {(line["shard"], line["clip"]) for line in map(json.loads, lines)} == damaged
            outcomes.add("done")
        except CorruptClipError:
            outcomes.add("dev or test")
    assert "done" in outcomes
    with pytest.raises(UserError, match=r"data\.max_corrupt=0\.001"):
        fit(probe(base / "many", pretrained, shards=shards))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.head.kind=probe"], "add model.freeze=encoder"),
        (["model.head.kind=probe", "model.freeze=encoder", "data.balance=class"], "train.class_weights=balanced"),
        (["model.head.kind=probe", "model.freeze=encoder", "model.head.layers=[]"], "model.head.layers"),
        (["model.head.kind=probe", "model.freeze=encoder", "model.head.l2=0"], "greater than 0"),
        (["model.head.kind=prob"], "model.head: there is no kind 'prob'; did you mean probe"),
        (["model.head.kind=probe", "model.head.projection=8"], "unknown key"),
    ],
)
def test_what_a_probe_cannot_do_is_refused_in_words(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_settings(None, settings)


def test_layers_that_there_are_not_are_refused_before_anything_is_queued(pretrained: Path) -> None:  # noqa: F811
    head = "model.head={kind: probe, layers: [0, 3]}"
    settings = load_settings(None, [f"model.weights={pretrained}", "model.freeze=encoder", head])
    with pytest.raises(UserError, match="has 3, but this encoder's are 0 to 2"):
        check_configuration(settings.model)  # type: ignore[arg-type]


def test_a_probe_is_a_run_of_its_own_and_one_number_is_a_list() -> None:
    settings = load_settings(find_config("any_corpus_probe", ""), ["model.head.l2=0.5"])
    assert settings.is_probe and settings.uses_feature_cache and settings.model.head.l2 == (0.5,)  # type: ignore[union-attr]
    found = schema.identity(settings)
    assert found is not None and found["model"]["head"] == {"kind": "probe", "l2": [0.5]}
    assert schema.identity(settings, 1) is None, "the first schema has no words for it"
