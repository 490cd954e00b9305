"""Small real things for tests: a packed corpus of tones, tiny encoders, and ranks started as the launcher starts them."""

from __future__ import annotations

import functools
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from ranks import Started, warm_ranks

from ser_hpc.config.load import load_settings
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.launchers.detect import Machine
from ser_hpc.launchers.local import run_trials
from ser_hpc.launchers.slurm.submissions import read_submissions
from ser_hpc.run import experiment
from ser_hpc.run.create_run import write_run
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.shards.index import DATASET
from ser_hpc.shards.mapped_index import INDEX
from ser_hpc.shards.write import pack

CLASSES = ("angry", "neutral", "sad")
# Packs as the command does and kills itself at the n-th call that changes or syncs the disk; n is its first argument.
SUICIDE = """
import os, signal, sys
from ser_hpc.pack import main
left = int(sys.argv.pop(1))
def counted(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
os.replace, os.fsync, os.unlink = counted(os.replace), counted(os.fsync), counted(os.unlink)
sys.exit(main())
"""
REAL_SPEECH = Path(__file__).parents[2] / "shared" / "corpora" / "emodb"


def tones(folder: Path, sessions: int = 4, takes: int = 6) -> list[Utterance]:
    """Two speakers a session; each class is a pitch contour over noise, 0.3 to 0.9 s long."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    utterances = []
    for session in range(1, sessions + 1):
        for gender in ("female", "male"):
            for emotion in CLASSES:
                for take in range(takes):
                    seconds = np.arange(int(rng.uniform(0.3, 0.9) * 16_000)) / 16_000
                    slope = {"angry": 300.0, "neutral": 0.0, "sad": -150.0}[emotion]
                    pitch = (220 if gender == "female" else 130) + slope * seconds
                    sound = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000) + 0.02 * rng.standard_normal(len(seconds))
                    name = f"s{session}{gender[0]}-{emotion}-{take}"
                    path = folder / f"{name}.wav"
                    soundfile.write(path, sound, 16_000)
                    utterances.append(
                        Utterance("tones", name, path, f"s{session}{gender[0]}", emotion, session=f"s{session}", gender=gender)
                    )
    return utterances


@functools.cache
def packed_tones(base: Path, sessions: int = 4, takes: int = 6) -> Path:
    """Shards of `tones` under `base`, made once a test session."""
    out = base / f"tones-{sessions}-{takes}"
    pack(tones(base / f"wav-{sessions}-{takes}", sessions, takes), out, workers=1)
    return out


def wav2vec2(**changes: Any) -> dict[str, Any]:
    """A Wav2Vec2 of some thousand weights."""
    return {
        "model_type": "wav2vec2",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_dim": [16, 16, 32],
        "conv_kernel": [10, 8, 4],
        "conv_stride": [10, 8, 4],
        "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
    } | changes


def pretrained_wav2vec2(folder: Path) -> Path:
    """Write one as the hub gives pre-trained weights: safetensors, configuration and preprocessor. Returns `folder`."""
    import torch  # these take seconds: not for whoever needs no weights
    from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(5)
    AutoModel.from_config(AutoConfig.for_model(**wav2vec2())).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def planned(root: Path, shards: Path, *overrides: str, encoder: dict[str, Any] | None = None, plain: bool = False) -> RunDir:
    """A run directory as the launcher makes it, for a tiny Wav2Vec2, or `encoder`, or (`plain`) what `overrides` say."""
    model = ["model.weights=null", f"model.config={encoder or wav2vec2()}", "model.head.projection=16"]
    lines = [
        f"run.root={root}",
        f"data.shards={shards}",
        *([] if plain else model),
        "train.epochs=2",
        "train.global_batch=16",
        "train.lr=1e-3",
    ]
    return write_run(experiment.prepare_experiment(load_settings(None, [*lines, *overrides])))


def run_here(run: RunDir, *trials: Trial, ranks: int = 1) -> dict[Trial, int]:
    """The trials' exit codes, each trained by `ranks` processes, one trial at a time."""
    machine = Machine(cores=2, gpus=(), slots=1, ranks=ranks, threads=1)
    with warm_ranks():
        return run_trials(run, trials or run.trials(), machine, lambda jobs: None)


def train_on_ranks(runs: Sequence[RunDir], ranks: int) -> None:
    """Trial (0, 0) of each run, one after another in the same processes: their start-up is paid once."""
    environment = os.environ | {"WORLD_SIZE": str(ranks), "SER_HPC_START": uuid.uuid4().hex}
    program = (Path(__file__).parent / "engine" / "train_many.py").read_text()
    processes = [
        Started("", [str(run.path) for run in runs], environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, program)
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(outputs)[-4000:]


def curve(run: RunDir) -> np.ndarray:
    """The loss of each step of trial (0, 0)."""
    lines = run.trial(Trial(0, 0)).current.steps.read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


def newest_jobs(run: RunDir) -> list[str]:
    """The ids of the array that was submitted last, and of its report."""
    known = [submission for submission in read_submissions(run) if submission.job]
    return [str(next(s.job for s in reversed(known) if s.kind == kind)) for kind in ("trials", "report")]


def without_index_file(root: Path) -> None:
    """Make a packed dataset one of earlier versions, which had no index of all shards."""
    dataset = json.loads((root / DATASET).read_text())
    del dataset["index"]
    (root / DATASET).write_text(json.dumps(dataset))
    (root / INDEX).unlink()
