"""Write a run's model as a folder that can be shipped, and check that it predicts the same before it is put in its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ser_hpc.core.atomic_io import fsync_path
from ser_hpc.core.errors import UserError, listed
from ser_hpc.inference.adapter_folder import RECORD, read_adapter, write_adapter
from ser_hpc.inference.card import write_card
from ser_hpc.inference.folder import is_transformers_own, portable, read_model, write_model
from ser_hpc.inference.predictor import Predictor
from ser_hpc.inference.spec import ModelSpec
from ser_hpc.inference.trials import RunModels
from ser_hpc.run.init_source import heard_by
from ser_hpc.run.run_dir import Trial
from ser_hpc.shards import RATE
from ser_hpc.tasks.targets import softmax

PARITY = 1e-5  # of probabilities


def export(run: RunModels, trials: Sequence[Trial], out: Path, *, adapter: bool = False, onnx: bool = False) -> ModelSpec:
    """Write the model of these trials to the folder `out`, which is not there yet, or empty. Returns what was written.
    `adapter`: of the one trial what was trained alone, as PEFT does, without the encoder under it.

    `onnx`: as model.onnx, in place of weights for this package and transformers. Raises UserError where a part of it is code
    from outside the package, which no folder holds; and where what was written does not predict what the run's own model does.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is there already: give a new folder, or remove it first")
    spec = run.spec(trials)
    if outside := spec.outsiders():
        raise UserError(
            f"{listed(outside)} is code of yours, and an exported folder holds no code: predict from the run itself, python -m "
            f"ser_hpc.predict {run.run.path} ..., which keeps a copy of it"
        )
    with _whole_folder(out) as aside:
        if adapter:
            spec = write_adapter(aside, run, trials[0])
            write_card(aside, run, spec, "peft")
        elif onnx:
            from ser_hpc.inference.onnx_folder import write_onnx

            spec, module = run.load(trials)
            spec = portable(spec, module)
            write_onnx(aside, spec, module)
            write_card(aside, run, spec, "onnx")
        else:
            spec, module = run.load(trials, calibrated=False)
            spec = portable(spec, module)
            write_model(aside, spec, module, _heard(run, trials))
            write_card(aside, run, spec, "transformers" if is_transformers_own(spec) else "ser_hpc")
        if not onnx:
            _check_parity(aside, run, trials)
    return spec


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `out` at the end; where that raises, nothing is left."""
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        aside.mkdir()
        yield aside
        for path in aside.iterdir():
            fsync_path(path)
        fsync_path(aside)
        aside.rename(out)  # onto an empty folder too
        fsync_path(out.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _heard(run: RunModels, trials: Sequence[Trial]) -> dict[str, list[str]]:
    """List the speakers, as CORPUS/NAME, that these trials learnt from, and those that chose their epochs."""
    every = heard_by(run.run, run.plan, trials).values()
    return {part: sorted({name for heard in every for name in getattr(heard, part)}) for part in ("train", "dev")}


def _check_parity(folder: Path, run: RunModels, trials: Sequence[Trial]) -> None:
    """Predict noise of three lengths from the folder and from the run. Raises UserError where they differ by more than 1e-5."""
    rng = np.random.default_rng(0)
    clips = [(rng.standard_normal(round(s * RATE)) * 3000).astype(np.int16) for s in (0.4, 1.0, 2.7)]
    outputs = []
    base = getattr(run.settings.model, "weights", None)
    written = read_adapter(folder, base) if (folder / RECORD).exists() else read_model(folder)
    for spec, module in (run.load(trials), written):
        outputs.append(softmax(Predictor(spec, module, "", "cpu").outputs(clips)[spec.main]))
    if not (gap := float(np.abs(outputs[0] - outputs[1]).max())) <= PARITY:
        raise UserError(
            f"what was written predicts otherwise than the run, by up to {gap:.1e}: nothing is exported; report this"
        )
