"""Does packing cost accuracy? The same training on packed and on padded clips, paired by seed and fold: UAR and its difference.

    python tools/bench/accuracy.py --emodb /data/emodb [--corpora demo] [--models whisper]
        [--seeds 5] [--workers 2] [--out tools/bench/results/accuracy.json]

packed   this package as it is
padded   as transformers advises for the encoder. Wav2Vec2: transformers' own model, the clips of a step padded with zeros to
         the longest by its extractor.
         wav2vec2        group norm in its stem (wav2vec2-base): without an attention mask, so padding goes into the norm's
                         statistics, is attended to and pooled
         wav2vec2_layer  layer norms (wav2vec2-large-robust and later): with an attention mask, which leaves the padding out
         whisper         model.whisper_pad_to_30s: every clip padded with silence to the encoder's window; pooled are the real
                         frames
         Wav2Vec2 is evaluated in batches of as many clips as an update has, in the index's order.

All else is the same: initial weights, folds, clips of each step, optimiser, head, the choice of the epoch. The encoders are
small, without dropout, whose masks could not be the same in both layouts. They are fine-tuned from weights that were trained on
the synthetic corpus as ten other voices speak it: Wav2Vec2 on clips of one length, where packed is the same as padded; Whisper
on clips padded to the window, as published weights were. (From random weights 3 of 25 trainings on padded clips fail to learn,
and none on packed ones: such a difference would hide all others.) The window is 5 s, not 30: four times the mean clip of demo
and emodb_cut (30 s are seven times IEMOCAP's), which a CPU can train in minutes.

demo       the synthetic corpus
emodb      Emo-DB; in a copy whose clips are all of one length nothing is padded for wav2vec2, and packed is the same as padded
emodb_cut  Emo-DB, each clip cut to a length of its own, uniform from 0.5 to 2.0 s: real speech that needs padding

The difference is the UAR of packed less that of padded on the same test part after the same seed: its mean over all pairs
(seed, fold), with the two-sided 90 % interval by Student's t over the pairs. Where that lies within the margin, both one-sided
tests of equivalence reject at 5 % (Schuirmann 1987). Pairs of a fold share their test clips, so the interval over seeds, each
the mean over its folds, stands beside it: fewer numbers, but independent ones for this corpus.

Finished trials are kept in --runs and not trained again: the same command goes on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from padded import build_padded_for_tasks
from safetensors.torch import load_file
from scipy.stats import t as student_t
from transformers import AutoConfig, WhisperModel

from ser_hpc.config.settings import Settings
from ser_hpc.core import cli
from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.errors import UserError
from ser_hpc.corpora import demo_speech
from ser_hpc.corpora.parsers import emodb
from ser_hpc.models.classifier import build_classifier
from ser_hpc.results.cross_validation import CrossValidation, cross_validate
from ser_hpc.run import experiment
from ser_hpc.run.create_run import write_run
from ser_hpc.run.demo_shards import make_demo_shards
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.shards.index import DATASET, ShardIndex
from ser_hpc.shards.write import pack
from ser_hpc.train import train

MARGIN = 0.03
LEVEL = 0.90
CUT_S = (0.5, 2.0)
LABELS = {"demo": "demo_4", "emodb": "emodb_7", "emodb_cut": "emodb_7"}
FOLDS: dict[str, dict[str, Any]] = {
    "demo": {"protocol": "leave_one_session_out"},
    "emodb": {"protocol": "speaker_groups", "count": 5},
    "emodb_cut": {"protocol": "speaker_groups", "count": 5},
}
_WAV2VEC2 = {
    "model_type": "wav2vec2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "conv_dim": [32, 32, 64, 64], "conv_kernel": [20, 8, 4, 4], "conv_stride": [10, 8, 2, 2], "num_feat_extract_layers": 4,
    "num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
ENCODERS: dict[str, dict[str, Any]] = {
    "wav2vec2": _WAV2VEC2 | {"feat_extract_norm": "group"},
    "whisper": {
        "model_type": "whisper", "d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128,
        "max_source_positions": 250, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 1, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64,
    },
    "wav2vec2_layer": _WAV2VEC2 | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}  # fmt: skip
HEAD: dict[str, Any] = {"dropout": 0.0, "head": {"projection": 64}}
TRAIN: dict[str, Any] = {
    "global_batch": 8,
    "lr": 1e-3,
    "warmup": 0.1,
    "decay": "cosine",
    "ema_decay": 0.98,
    "class_weights": "balanced",
}
EPOCHS = {"demo": 6, "emodb": 10, "emodb_cut": 10}
PRETRAINING = {"epochs": 20}
VOICES = tuple(replace(one, pitch_hz=1.06 * one.pitch_hz, formant_scale=0.97 * one.formant_scale) for one in demo_speech.VOICES)
SYSTEMS = ("packed", "padded")


def run_trial(path: Path, trial: Trial, model: str, system: str) -> None:
    """Train one trial, or go on with it, in this process; its words go to a file of the run."""
    torch.set_num_threads(1)
    run = RunDir(path)
    run.jobs.mkdir(exist_ok=True)
    with (run.jobs / f"seed_{trial.seed}-fold_{trial.fold}.log").open("a") as log, redirect_stdout(log):
        if model == "whisper" or system == "packed":
            code = train(run, trial)
        else:
            with patch("ser_hpc.engine.loop.build_for_tasks", side_effect=build_padded_for_tasks) as made:
                code = train(run, trial)
            assert made.called, "training took no notice of the padded encoder"
    if code:
        raise KeyboardInterrupt(f"{trial} was asked to stop")


def settings_of(model: str, corpus: str, system: str, shards: Path, weights: Path, options: argparse.Namespace) -> Settings:
    batch_s = TRAIN["global_batch"] * float(ShardIndex.load(shards).metadata.seconds.max())
    padded = model == "whisper" and system == "padded"
    told = {
        "run": {"name": f"{model}-{corpus}-{system}", "root": options.runs},
        "data": {"shards": [str(shards)], "labels": LABELS[corpus]},
        "folds": FOLDS[corpus],
        "model": HEAD | {"weights": str(weights), "whisper_pad_to_30s": padded},
        "train": TRAIN | {"epochs": options.epochs or EPOCHS[corpus], "budget_seconds": batch_s * 1.001},
        "seeds": options.seeds,
    }
    return Settings.model_validate(told)


def pretrained(model: str, options: argparse.Namespace) -> Path:
    """A folder with the encoder's weights as transformers saves them, trained when first asked for."""
    folder: Path = options.runs / "weights" / model
    if (folder / "config.json").exists():
        return folder
    with patch.object(demo_speech, "VOICES", VOICES):
        clips = demo_speech.make_demo_corpus(options.runs / "voices" / "corpus").utterances
    shards = options.runs / "voices" / "shards"
    pack(clips, shards, workers=options.workers)
    shortest = float(ShardIndex.load(shards).metadata.seconds.min())
    told = {
        "run": {"name": f"{model}-weights", "root": options.runs},
        "data": {"shards": [str(shards)], "labels": "demo_4", "max_seconds": None if model == "whisper" else shortest},
        "model": HEAD | {"weights": None, "config": ENCODERS[model], "whisper_pad_to_30s": model == "whisper"},
        "train": TRAIN | PRETRAINING,
    }
    run, trial = write_run(experiment.prepare_experiment(Settings.model_validate(told))), Trial(0, 0)
    run_trial(run.path, trial, model, "packed")
    ours = build_classifier(Settings.model_validate(told).model, 4, seed=0)
    ours.load_state_dict(load_file(run.trial(trial).weights))
    print(
        f"{model}: weights trained on other voices, dev UAR {read_json(run.trial(trial).done)['best_dev_uar']:.3f}", flush=True
    )
    whole: Any = ours.encoder
    if model == "whisper":
        shape: Any = AutoConfig.for_model(**ENCODERS[model])
        whole = WhisperModel(shape)
        whole.encoder.load_state_dict(ours.encoder.state_dict())
    whole.save_pretrained(folder)
    return folder


def packed_corpus(name: str, options: argparse.Namespace) -> Path:
    """Its shards, made when first used."""
    shards: Path = options.runs / name / "shards"
    if name == "demo":
        make_demo_shards(shards, cli.make_console())
    elif not (shards / DATASET).exists():
        if options.emodb is None:
            raise UserError(f"{name}: give --emodb FOLDER, the corpus as it is downloaded, or --corpora demo")
        clips = emodb.parse(options.emodb).utterances
        if name == "emodb_cut":
            ends = np.random.default_rng(0).uniform(*CUT_S, len(clips)).tolist()
            clips = tuple(replace(clip, start_s=0.0, end_s=end) for clip, end in zip(clips, ends, strict=True))
        shards.parent.mkdir(parents=True, exist_ok=True)
        pack(clips, shards, workers=options.workers)
    return shards


def real_share(model: str, shards: Path) -> float:
    """Of the padded system's training batches, the part that is audio and no padding."""
    seconds = ShardIndex.load(shards).metadata.seconds
    if model == "whisper":
        return float(seconds.mean() / (ENCODERS["whisper"]["max_source_positions"] / 50))
    drawn = np.random.default_rng(0).choice(seconds, (10_000, TRAIN["global_batch"]))
    return float(seconds.mean() / drawn.max(axis=1).mean())


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean of the values (n,), and its two-sided interval by Student's t with n - 1 degrees of freedom."""
    half = student_t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return {"mean": float(values.mean()), "low": float(values.mean() - half), "high": float(values.mean() + half)}


def compared(packed: CrossValidation, padded: CrossValidation) -> dict[str, Any]:
    """The pairs, and both intervals of the difference in UAR."""
    pairs = [
        {"seed": a.trial.seed, "fold": a.trial.fold, "packed": a.uar, "padded": b.uar}
        for a, b in zip(packed.trials, padded.trials, strict=True)
        if a.trial == b.trial
    ]
    assert len(pairs) == len(packed.trials), "every trial has its partner"
    by_pair = np.array([pair["packed"] - pair["padded"] for pair in pairs])
    by_seed = np.array([a.mean - b.mean for a, b in zip(packed.seeds, padded.seeds, strict=True)])
    over_pairs, over_seeds = interval(by_pair), interval(by_seed)
    return {
        "pairs": pairs,
        "difference": over_pairs | {"std": float(by_pair.std(ddof=1))},
        "difference_over_seeds": over_seeds | {"std": float(by_seed.std(ddof=1)), "values": by_seed.tolist()},
        "within_margin": over_pairs["low"] > -MARGIN and over_pairs["high"] < MARGIN,
        "within_margin_over_seeds": over_seeds["low"] > -MARGIN and over_seeds["high"] < MARGIN,
    }


def measured(model: str, corpus: str, pool: ProcessPoolExecutor, options: argparse.Namespace) -> dict[str, Any]:
    """Train what is not trained yet, fold by fold all systems, and compare."""
    shards = packed_corpus(corpus, options)
    weights = pool.submit(pretrained, model, options).result()
    runs = {
        system: write_run(experiment.prepare_experiment(settings_of(model, corpus, system, shards, weights, options)))
        for system in SYSTEMS
    }
    tasks = [(run, trial, system) for trial in runs["packed"].trials() for system, run in runs.items()]
    todo = [task for task in tasks if not task[0].trial(task[1]).is_done]
    trained = [pool.submit(run_trial, run.path, trial, model, system) for run, trial, system in todo]
    for (run, trial, system), future in zip(todo, trained, strict=True):
        future.result()
        done = read_json(run.trial(trial).done)
        told = f"dev UAR {done['best_dev_uar']:.3f}  {done['seconds']:5.1f} s"
        print(f"{model:15} {corpus:10}{system:7} {trial}  {told}", flush=True)
    found = {system: cross_validate(run) for system, run in runs.items()}
    return {
        "clips": len(ShardIndex.load(shards).metadata),
        "real_share_of_padded_batches": round(real_share(model, shards), 3),
        "systems": {system: summary(runs[system], cv) for system, cv in found.items()},
        **compared(found["packed"], found["padded"]),
    }


def summary(run: RunDir, cv: CrossValidation) -> dict[str, Any]:
    assert cv.scores is not None, "every trial of the plan was trained"
    done = [read_json(run.trial(trial.trial).done) for trial in cv.trials]
    return {
        "uar": {"mean": cv.scores.uar.mean, "std": cv.scores.uar.std, "pooled": cv.scores.uar.pooled},
        "chance": 1 / len(cv.classes),
        "epochs": done[0]["epochs"],
        "median_seconds_of_a_trial": median(one["seconds"] for one in done),
    }


def row(model: str, corpus: str, found: dict[str, Any]) -> str:
    line = f"{model:15} {corpus:10}" + "".join(f"{100 * found['systems'][system]['uar']['mean']:8.1f}" for system in SYSTEMS)
    for name in ("difference", "difference_over_seeds"):
        mean, low, high = (100 * found[name][key] for key in ("mean", "low", "high"))
        line += f"  {mean:+5.2f} [{low:+5.2f}, {high:+5.2f}]"
    return line + ("  equal" if found["within_margin"] else "  not shown to be equal")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emodb", type=Path, help="Emo-DB as it is downloaded")
    parser.add_argument("--corpora", nargs="+", choices=list(LABELS), default=("demo", "emodb_cut"))
    parser.add_argument("--models", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="default: enough for each to learn")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="trials at a time, one core each")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the trained trials")
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    options = parser.parse_args()
    if options.seeds < 2:
        raise UserError(f"--seeds is {options.seeds}; an interval needs 2 at least")
    results: dict[str, Any] = {}
    table: list[str] = []
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        for corpus in options.corpora:
            for model in options.models:
                results[f"{model} {corpus}"] = measured(model, corpus, pool, options)
                table.append(row(model, corpus, results[f"{model} {corpus}"]))
                if options.out:
                    write_json(options.out, {**setting(options), "comparisons": results})
    print(f"\nUAR; its difference with the 90 % interval over pairs and over seeds; in points, margin {100 * MARGIN:.0f}")
    print(f"{'':26}{SYSTEMS[0]:>8}{SYSTEMS[1]:>8}")
    print(*table, sep="\n")
    return 0


def setting(options: argparse.Namespace) -> dict[str, Any]:
    command = ["python tools/bench/accuracy.py --emodb FOLDER", "--corpora", *options.corpora, "--models", *options.models]
    return {
        "command": " ".join([*command, f"--seeds {options.seeds} --workers {options.workers}"]),
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "packages": {name: version(name) for name in ("torch", "transformers")},
        "margin": MARGIN,
        "level": LEVEL,
        "seeds": options.seeds,
        "encoders": ENCODERS,
        "train": TRAIN,
        "pretraining": PRETRAINING,
        "epochs": options.epochs or EPOCHS,
        "folds": FOLDS,
        "cut_s": CUT_S,
    }


if __name__ == "__main__":
    cli.run_main(main)
