"""Every experiment of configs/ trains: planned on a small tree in its corpus's layout, with a tiny encoder of its family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fixtures_iemocap import make_iemocap
from small import curve, packed_tones, train_on_ranks, wav2vec2

from ser_hpc.config.load import configs_folder, load_settings
from ser_hpc.config.settings import AcrnnModel, CnnModel, EncoderModel
from ser_hpc.corpora.parsers import crema_d, iemocap, msp_podcast, ravdess, tess, urduser
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.run import experiment
from ser_hpc.run.create_run import write_run
from ser_hpc.run.predictions import read_predictions
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.shards.write import pack

WHISPER = {"model_type": "whisper", "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
WAVLM = wav2vec2(model_type="wavlm")
ENCODERS = {"wavlm-large": WAVLM, "whisper": WHISPER}
ACRNN = "first_channels: 4, channels: 4, layers: 2, linear: 8, cells: 4, mels: 16"
ELSEWHERE = ("demo", "any_corpus_probe")  # run as they are, by test_launch.py and test_docs.py
CONFIGS = [path for path in sorted(configs_folder().glob("*.yaml")) if path.stem not in ELSEWHERE]


def noise(path: Path, seed: int) -> Path:
    """A third of a second of noise, each its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, 5000).clip(-1, 1), 16_000)
    return path


def crema_d_tree(root: Path) -> Path:
    """Ten actors at every level, and their listeners' votes."""
    names = [
        f"{actor}_IEO_{emotion}_{level}"
        for actor in range(1001, 1011)
        for emotion in ("ANG", "DIS", "FEA", "HAP", "SAD", "NEU")
        for level in (("XX",) if emotion == "NEU" else ("LO", "MD", "HI", "XX"))
    ]
    for number, name in enumerate(names):
        noise(root / "AudioWAV" / f"{name}.wav", number)
    return root


def msp_podcast_tree(root: Path) -> Path:
    """A release with all eight emotions in each part, attributes, and the votes of its annotators."""
    labels, votes, number = [], [], 0
    for speaker, split in enumerate(("Train", "Train", "Development", "Test1")):
        for emotion in "ASHUFDCN":
            number += 1
            name = f"MSP-PODCAST_{speaker:04d}_{number:04d}.wav"
            noise(root / "Audios" / name, number)
            labels.append(f"{name},{emotion},{1 + number % 6},{1 + number % 5},{2 + number % 4},{speaker},Female,{split}")
            votes += [f'{name},"WORKER{i}; {word}; ; A:4; V:4; D:4;"' for i, word in enumerate(("Neutral", "Angry", "Neutral"))]
    (root / "Labels").mkdir()
    header = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"
    (root / "Labels" / "labels_consensus.csv").write_text("\n".join([header, *labels]) + "\n")
    (root / "Labels" / "labels_detailed.csv").write_text("\n".join(["FileName,EmoDetail", *votes]) + "\n")
    return root


def ravdess_tree(root: Path) -> Path:
    """Five actors in all eight emotions."""
    names = [f"03-01-{emotion:02d}-01-01-01-{actor:02d}" for emotion in range(1, 9) for actor in range(1, 6)]
    for number, name in enumerate(names, start=1000):
        noise(root / f"Actor_{name[-2:]}" / f"{name}.wav", number)
    return root


def tess_tree(root: Path) -> Path:
    """Both actresses."""
    names = [
        f"{actress}_{word}_{emotion}"
        for actress in ("OAF", "YAF")
        for word in ("back", "germ")
        for emotion in ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")
    ]
    for number, name in enumerate(names, start=2000):
        noise(root / f"{name}.wav", number)
    return root


def urduser_tree(root: Path) -> Path:
    """Four actors in all emotions."""
    for number, (emotion, folder) in enumerate(enumerate(urduser.EMOTIONS, start=1), start=3000):
        for actor in range(1, 5):
            noise(root / folder.title() / f"{actor}_{actor % 2}_{emotion}_01.wav", 10 * number + actor)
    return root


CORPORA: dict[str, Callable[[Path], tuple[Utterance, ...]]] = {
    "iemocap": lambda root: iemocap.parse(make_iemocap(root, turns=6)).utterances,
    "crema": lambda root: crema_d.parse(crema_d_tree(root)).utterances,
    "ravdess": lambda root: ravdess.parse(ravdess_tree(root)).utterances,
    "tess": lambda root: tess.parse(tess_tree(root)).utterances,
    "urduser": lambda root: urduser.parse(urduser_tree(root)).utterances,
    "msp": lambda root: msp_podcast.parse(msp_podcast_tree(root)).utterances,
}
# Recipes that are not named after their corpora.
OTHERS = {"multilingual_6class_attention": ["ravdess", "urduser"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    """One epoch of the first fold of each, with all of its encoder that is trained."""
    base = tmp_path_factory.mktemp("configs")
    shards = {"tones": packed_tones(base)}
    for name, parsed in CORPORA.items():
        shards[name] = base / name
        pack(parsed(base / f"{name}-raw"), base / name, workers=1)
    made = {}
    for path in CONFIGS:
        corpus = path.stem.partition("_")[0]
        corpora = OTHERS.get(path.stem) or path.stem.split("_")
        together = [str(shards[name]) for name in corpora if name in CORPORA] or [str(shards["tones"])]
        changes = [
            f"data.shards={json.dumps(together)}",
            f"run.root={base / 'runs'}",
            f"train.epochs={load_settings(path, []).train.freeze_epochs + 1}",
            "seeds=1",
            "data.workers=0",
        ]
        changes += [] if corpus in shards or path.stem in OTHERS else ["data.labels=as_annotated", "folds.count=4"]
        made[path.stem] = write_run(experiment.prepare_experiment(load_settings(path, [*changes, *tiny(path)])))
    train_on_ranks(list(made.values()), ranks=1)
    return made


def tiny(path: Path) -> list[str]:
    """What makes the configuration's model small, and nothing else of it."""
    settings = load_settings(path, [])
    if isinstance(settings.model, AcrnnModel):
        return [f"model.{name}={value}" for name, value in (pair.split(": ") for pair in ACRNN.split(", "))]
    if isinstance(settings.model, CnnModel):
        return ["model.channels=[4, 8]", "model.mels=16"]
    assert isinstance(settings.model, EncoderModel)
    config = next((of for name, of in ENCODERS.items() if name in (settings.model.weights or "")), wav2vec2())
    frozen = ["model.freeze_layers=1"] if settings.model.freeze_layers else []
    return ["model.weights=null", f"model.config={json.dumps(config)}", "train.strategy=ddp", *frozen]


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
def test_a_configuration_trains(runs: dict[str, RunDir], name: str) -> None:
    """The test part predicted once, by finite probabilities."""
    folder = runs[name].trial(Trial(0, 0))
    assert folder.is_done
    found = [p for p in read_predictions(folder.current.predictions) if p.part == "test"]
    assert len({p.utterance_id for p in found}) == len(found) > 0
    assert all(abs(sum(p.probabilities.values()) - 1) < 1e-3 for p in found)
    assert len(curve(runs[name])) > 0 and np.isfinite(curve(runs[name])).all()


def test_what_the_field_compares_is_written_as_published() -> None:
    """The numbers of the table that five systems on IEMOCAP come from: optimizer, rate, batch, epochs, decay."""
    published = {
        "iemocap_wav2vec2_full_chain": ("adamw", 5e-5, 16, 100, 0.01),
        "iemocap_wav2vec2_base_noise": ("adamw", 1e-4, 32, 30, 0.01),
        "iemocap_wav2vec2_960h_lv60_self": ("adamw", 2e-4, 16, 30, 5e-5),
        "iemocap_wav2vec2_large": ("adamw", 1e-4, 16, 200, 1e-4),
        "iemocap_wav2vec2_base_bn": ("adamw", 1e-4, 128, 100, 0.01),
        "iemocap_cnn_base": ("adam", 1e-3, 128, 100, 1e-5),
        "crema_d_21class": ("adamw", 1e-5, 4, 15, 0.01),
    }
    for name, expected in published.items():
        train = load_settings(configs_folder() / f"{name}.yaml", []).train
        assert (train.optimizer, train.lr, train.global_batch, train.epochs, train.weight_decay) == expected, name
