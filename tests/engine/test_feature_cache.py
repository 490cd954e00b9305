"""The states of a frozen encoder: exactly what the head needs, made once a run, whoever is killed meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.test_data_side import damage_two
from models.tiny import ENCODERS, batch, clips
from safetensors.torch import load_file
from small import curve, packed_tones, planned, pretrained_wav2vec2
from torch import Tensor, nn
from transformers import Wav2Vec2FeatureExtractor

from ser_hpc.config.heads import MlpSettings
from ser_hpc.config.load import load_settings
from ser_hpc.config.losses import CrossEntropySettings
from ser_hpc.config.settings import Settings
from ser_hpc.core.errors import UserError
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.fault.preemption import StopFlag, Stopped
from ser_hpc.engine.fault.watchdog import Watchdog
from ser_hpc.engine.frozen_encoder import FrozenEncoder
from ser_hpc.engine.loop import train_trial
from ser_hpc.engine.trial_data import TrialData
from ser_hpc.models.classifier import build_classifier
from ser_hpc.models.encoders.wav2vec2 import Wav2Vec2Frontend
from ser_hpc.models.heads.linear_probe import pool_states
from ser_hpc.run import predictions
from ser_hpc.run.attempt import claim_attempt
from ser_hpc.run.experiment import reopen_experiment
from ser_hpc.run.rank import Rank
from ser_hpc.run.run_dir import RunDir, Trial, TrialDir
from ser_hpc.shards.read import CorruptClipError, ShardReader
from ser_hpc.tasks.targets import ClassTarget
from ser_hpc.tasks.task import Task

TRIAL = Trial(0, 0)
CLIPS, BLOCK = 144, 64


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def pretrained(base: Path) -> Path:
    return pretrained_wav2vec2(base / "weights")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clips each run of the encoder took, as they come."""
    counts: list[int] = []
    real = Wav2Vec2Frontend.__call__

    def counting(self: Wav2Vec2Frontend, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        counts.append(len(offsets) - 1)
        return real(self, encoder, samples, offsets)

    monkeypatch.setattr(Wav2Vec2Frontend, "__call__", counting)
    return counts


def frozen(root: Path, pretrained: Path, *more: str, shards: Path | None = None) -> RunDir:
    """Micro-batches of 10 s: about 17 clips."""
    shards = shards or packed_tones(pretrained.parent)
    settings = (f"model.weights={pretrained}", "model.config=null", "model.freeze=encoder", "train.budget_seconds=10", *more)
    return planned(root, shards, *settings)


def train(run: RunDir, trial: Trial = TRIAL, stop: StopFlag | None = None, world: World | None = None) -> TrialDir:
    """In this process."""
    place, experiment = run.trial(trial), reopen_experiment(run)
    attempt = claim_attempt(place, Rank(0, 1, 0, 1))
    fold = experiment.folds.folds[trial.fold]
    data = TrialData(experiment.index, experiment.tasks, fold)
    world = world or World(0, 1, 0, 1, torch.device("cpu"))
    with Watchdog(300, lambda: None, exit_code=1) as watchdog:
        train_trial(place, attempt, experiment.settings, data, world, stop or StopFlag(), watchdog, FrozenEncoder())
    return place


def blocks(run: RunDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.trial(TRIAL).feature_cache.rglob("*.npy")}


def dated(run: RunDir) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in run.trial(TRIAL).feature_cache.rglob("*.npy")}


class StopAfter(StopFlag):
    """Is asked to stop at the n-th look."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def reason(self, save_s: float = 0.0) -> str | None:
        self._looks -= 1
        return "SIGTERM" if self._looks < 0 else None


@dataclass(frozen=True, slots=True)
class AnotherIsAsked(World):
    """One of whose other ranks is asked to stop."""

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(True for _ in flags)


def test_a_head_on_the_mean_needs_the_states_alone() -> None:
    """An mlp over the mean, and of two tasks: outputs from each clip's mean frame are those through the encoder."""
    settings = ENCODERS["hubert"].model_copy(update={"freeze": "encoder", "head": MlpSettings(hidden=(8,))})
    given = load_settings(
        None, ["model.freeze=encoder", "model.head=mlp", "tasks.gender=classification", "tasks.gender.column=x"]
    )
    assert given.uses_feature_cache
    assert not load_settings(
        None, ["model.freeze=encoder", "model.head=mlp", "model.head.pooling=attention"]
    ).uses_feature_cache
    gender = Task("gender", ClassTarget(("f", "m")), np.zeros(4, dtype=np.int64), CrossEntropySettings())
    samples, offsets = batch(clips(4000, 9000, 1500, 6400))
    whole = build_classifier(settings, 4, 7, others=[gender]).double().eval()
    alone = build_classifier(settings, 4, 7, others=[gender], pooled_width=32).double().eval()
    frames, lengths = whole.frontend(whole.encoder, samples, offsets)
    pooled = pool_states([frames], lengths, std=False)
    for name, output in whole(samples, offsets).items():
        torch.testing.assert_close(alone(pooled, torch.arange(5))[name], output, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_head_learns_the_same_from_states(name: str) -> None:
    """Logits and gradients in double precision, for every family of encoders."""
    settings = ENCODERS[name].model_copy(update={"freeze": "encoder"})
    samples, offsets = batch(clips(4000, 9000, 1500, 6400))
    whole = build_classifier(settings, 4, 7).double().train()
    width = whole.head.projector.in_features  # type: ignore[union-attr]
    alone = build_classifier(settings, 4, 7, pooled_width=width).double().train()  # type: ignore[arg-type]
    with torch.no_grad():
        frames, lengths = whole.frontend(whole.encoder, samples, offsets)
        pooled = pool_states([frames], lengths, std=False)
    ours, theirs = alone(pooled, torch.arange(5))["emotion"], whole(samples, offsets)["emotion"]
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    slope = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for logits in (ours, theirs):
        (logits * slope).sum().backward()
    for mine, other in zip(alone.parameters(), whole.head.parameters(), strict=True):
        assert mine.grad is not None and other.grad is not None and other.grad.abs().max() > 1e-3
        assert torch.allclose(mine.grad, other.grad, rtol=0, atol=1e-12)


def test_the_same_training_as_through_the_encoder(base: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, weights and predictions of a whole trial, to float32's rounding."""
    ours = frozen(base / "ours", pretrained, "train.epochs=3", "train.ema_decay=0.5")
    theirs = frozen(base / "theirs", pretrained, "train.epochs=3", "train.ema_decay=0.5")
    here = train(ours)
    monkeypatch.setattr(Settings, "uses_feature_cache", False)
    there = train(theirs)
    assert blocks(ours) and not blocks(theirs)
    assert np.abs(curve(ours) - curve(theirs)).max() < 1e-6
    mine, other = load_file(here.weights), load_file(there.weights)
    assert mine.keys() == other.keys() and all(name.startswith("head.") for name in mine)
    assert max(float((mine[name] - other[name]).abs().max()) for name in mine) < 1e-5
    found, expected = (predictions.read_predictions(place.current.predictions) for place in (here, there))
    assert [p.utterance_id for p in found] == [p.utterance_id for p in expected]
    scores = [np.array([list(p.probabilities.values()) for p in part]) for part in (found, expected)]
    assert np.abs(scores[0] - scores[1]).max() < 1e-5


def test_the_encoder_sees_each_clip_once_in_a_run(base: Path, pretrained: Path, encoded: list[int]) -> None:
    """Over all folds, seeds and epochs; later trials leave the blocks as they are."""
    run = frozen(base / "once", pretrained, "seeds=2", "folds.count=3", "folds.protocol=speaker_groups")
    train(run)
    assert sum(encoded) == CLIPS
    before = dated(run)
    assert len(before) == -(-CLIPS // BLOCK)
    for trial in run.trials()[1:]:
        train(run, trial)
    assert len(run.trials()) == 6 and sum(encoded) == CLIPS
    assert dated(run) == before


def died(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second block."""
    real, left = Wav2Vec2Frontend.__call__, iter([True] * 6)

    def dying(*arguments: object) -> tuple[Tensor, Tensor]:
        if not next(left, False):
            raise RuntimeError("gone")
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="gone"):
        patch.setattr(Wav2Vec2Frontend, "__call__", dying)
        train(run)


def stopped(run: RunDir, _: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stopped, match="SIGTERM"):
        train(run, stop=StopAfter(6))


@pytest.mark.parametrize("interrupt", [died, stopped])
def test_interrupted_is_as_uninterrupted(
    base: Path,
    pretrained: Path,
    interrupt: Callable[[RunDir, pytest.MonkeyPatch], None],
    encoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was made before stays and is not made again; losses and predictions are those of one go, bit for bit."""
    whole, run = (frozen(base / f"{interrupt.__name__}-{name}", pretrained) for name in ("whole", "run"))
    expected = train(whole)
    interrupt(run, monkeypatch)
    kept = blocks(run)
    assert 0 < len(kept) < len(blocks(whole))
    encoded.clear()
    found = train(run)
    assert sum(encoded) < CLIPS
    assert blocks(run) == blocks(whole) and kept.items() <= blocks(run).items()
    assert found.current.steps.read_bytes() == expected.current.steps.read_bytes()
    assert found.current.predictions.read_bytes() == expected.current.predictions.read_bytes()


def test_ranks_stop_together(base: Path, pretrained: Path) -> None:
    with pytest.raises(Stopped, match="another rank was asked to"):
        train(frozen(base / "together", pretrained), world=AnotherIsAsked(0, 1, 0, 1, torch.device("cpu")))


def test_damaged_clips_count_as_they_do_in_training_on_sounds(base: Path, pretrained: Path, encoded: list[int]) -> None:
    """Named once, at weight zero; too many end training. Their block is not kept, so that a repair is seen."""
    shards = Path(shutil.copytree(packed_tones(base), base / "damaged"))
    sound = {path: path.read_bytes() for path in shards.rglob("*.tar")}
    few = frozen(base / "few", pretrained, "data.max_corrupt=0.03", shards=shards)
    damaged = damage_two(few)
    found = [json.loads(line) for line in train(few).current.damaged.read_text().splitlines()]
    assert sorted((line["shard"], line["clip"]) for line in found) == sorted(damaged)
    assert len(blocks(few)) < -(-CLIPS // BLOCK)
    with pytest.raises(UserError, match=r"data\.max_corrupt=0\.001"):
        train(frozen(base / "many", pretrained, shards=shards))

    for path, content in sound.items():
        path.write_bytes(content)
    encoded.clear()
    assert train(few, Trial(0, 1)).is_done
    assert 0 < sum(encoded) <= CLIPS and len(blocks(few)) == -(-CLIPS // BLOCK)


def test_a_damaged_dev_clip_ends_the_trial_in_the_same_words(base: Path, pretrained: Path) -> None:
    shards = Path(shutil.copytree(packed_tones(base), base / "damaged-dev"))
    run = frozen(base / "dev", pretrained, "data.max_corrupt=1", shards=shards)
    damage_two(run)
    experiment = reopen_experiment(run)
    clip = int(experiment.folds.folds[0].train.positions[3])
    (number,) = (fold.index for fold in experiment.folds.folds if clip in fold.dev.positions)
    with ShardReader(experiment.index) as reader, pytest.raises(CorruptClipError) as expected:
        reader.read(clip)
    with pytest.raises(CorruptClipError) as found:
        train(run, Trial(0, number))
    assert str(found.value) == str(expected.value) and found.value.cause == expected.value.cause


def test_a_damaged_block_is_made_again(base: Path, pretrained: Path, encoded: list[int]) -> None:
    run = frozen(base / "flipped", pretrained)
    train(run)
    path = next(run.trial(TRIAL).feature_cache.rglob("00001.npy"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    encoded.clear()
    train(run, Trial(0, 1))
    assert sum(encoded) == BLOCK and path.read_bytes() == content


def test_states_are_of_what_makes_them(base: Path, pretrained: Path, encoded: list[int]) -> None:
    """The folder of weights says how to normalise, which no setting tells: told otherwise, it is another run."""
    weights = Path(shutil.copytree(pretrained, base / "changing"))
    run = frozen(base / "stale", weights)
    train(run)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(weights)
    with pytest.raises(UserError, match="was made with other weights"):
        train(run, Trial(0, 1))
    assert frozen(base / "stale", weights).path != run.path
    assert sum(encoded) == CLIPS


@pytest.mark.parametrize(
    "change",
    [
        "model.head.dropout=0.1",
        "data.augment=[{name: Gain}]",
        "model.freeze=feature_encoder",
        "model.freeze=none",
        "model={kind: acrnn}",
    ],
)
def test_whatever_is_drawn_anew_needs_the_encoder(change: str) -> None:
    assert load_settings(None, ["model.freeze=encoder"]).uses_feature_cache
    assert not load_settings(None, ["model.freeze=encoder"] * (not change.startswith("model=")) + [change]).uses_feature_cache


def test_with_dropout_the_encoder_runs_in_every_epoch(base: Path, pretrained: Path, encoded: list[int]) -> None:
    run = frozen(base / "dropout", pretrained, "model.head.dropout=0.1")
    train(run)
    assert sum(encoded) > CLIPS and not blocks(run)
