"""Is a trial that was stopped and gone on with the same as one that was not, and is that one the same twice?

For each encoder: `again`, trained a second time; `resumed`, asked to stop in the middle and gone on with. Each is compared with
the first: weights, bit by bit, and where they differ how far, ‖a - b‖ / ‖b‖; losses, and from which update on they differ. All
train for one epoch, whose weights are the ones that are kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from gpu.told import write_told
from gpu.trials import planned, stopped
from ser_hpc.core import cli
from ser_hpc.run.attempt import STOPPED
from ser_hpc.run.run_dir import Trial, TrialDir
from ser_hpc.train import train

TRIAL = Trial(0, 0)
_WAV2VEC2: dict[str, Any] = {"model_type": "wav2vec2", "num_hidden_layers": 4}
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "conv_dim": [32] * 7}
LAYER_NORM: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="packed Emo-DB")
    parser.add_argument("--model", type=Path, help="a folder of pre-trained weights, as one more encoder")
    parser.add_argument("--size", choices=("tiny", "real"), required=True, help="tiny: one encoder, clips of half a second")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help="more settings")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    small = SMALL if options.size == "tiny" else {}
    encoders: dict[str, dict[str, Any]] = {
        "group norm": {"weights": None, "config": _WAV2VEC2 | small},
        "layer norm": {"weights": None, "config": _WAV2VEC2 | small | LAYER_NORM},
    }
    if options.size == "tiny":
        encoders.pop("layer norm")
    if options.model:
        encoders["pre-trained"] = {"weights": str(options.model)}
    told: dict[str, Any] = {}
    for name, encoder in encoders.items():
        told[name] = compared(encoder, options)
        write_told(options.out, told)
        print(name, told[name], flush=True)
    return 0


def compared(encoder: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        names = ("once", "again", "resumed")
        runs = {name: planned(settings(encoder, options, Path(folder) / name)) for name in names}
        codes = [train(runs[name], TRIAL) for name in ("once", "again")]
        updates = len(losses(runs["once"].trial(TRIAL)))
        stop = stopped(runs["resumed"], TRIAL, updates // 2)
        codes += [stop, train(runs["resumed"], TRIAL)]
        assert codes == [0, 0, STOPPED, 0], f"exit codes {codes}"
        once = runs["once"].trial(TRIAL)
        return {"updates": updates} | {name: apart(runs[name].trial(TRIAL), once) for name in ("again", "resumed")}


def settings(encoder: dict[str, Any], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The budget is given: one that is found depends on who else is on the GPU, and other cuts of a step round differently."""
    training = {"epochs": 1, "precision": options.precision, "global_batch": 8, "accumulation": 2, "lr": 1e-4}
    training |= {"budget_seconds": 60.0}
    cut = 0.5 if options.size == "tiny" else None
    return {
        "run": {"name": "resume", "root": folder},
        "data": {"shards": [str(options.shards)], "labels": "emodb_7", "max_seconds": cut},
        "folds": {"protocol": "leave_one_speaker_out"},
        "model": encoder | {"dropout": 0.1},
        "train": training | {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in options.train)},
    }


def losses(trial: TrialDir) -> list[float]:
    return [json.loads(line)["loss"] for line in trial.current.steps.read_text(encoding="utf-8").splitlines()]


def apart(found: TrialDir, truth: TrialDir) -> dict[str, Any]:
    """How far a trial is from another one."""
    ours, theirs = load_file(found.weights), load_file(truth.weights)
    unequal = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    square = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in unequal)
    norm = sum(float(tensor.double().square().sum()) for tensor in theirs.values())
    pairs = list(zip(losses(found), losses(truth), strict=True))
    return {
        "bit_equal": not unequal,
        "tensors_apart": f"{len(unequal)} of {len(theirs)}",
        "distance": (square / norm) ** 0.5,
        "first_update_apart": next((number for number, (a, b) in enumerate(pairs) if a != b), None),
        "losses_apart": max(abs(a - b) for a, b in pairs),
    }


if __name__ == "__main__":
    cli.run_main(main)
