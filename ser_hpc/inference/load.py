"""Load a trained model, by the folder of a run or one that was exported, as a `Predictor`."""

from __future__ import annotations

from pathlib import Path

from ser_hpc.core.errors import UserError, counted
from ser_hpc.inference.adapter_folder import RECORD, read_adapter
from ser_hpc.inference.folder import CONFIG, read_model
from ser_hpc.inference.predictor import Predictor
from ser_hpc.inference.trials import RunModels
from ser_hpc.run.run_dir import RunDir


def load(
    model: str | Path,
    *,
    fold: int | None = None,
    seed: int | None = None,
    calibrated: bool = True,
    device: str | None = None,
    batch_seconds: float | None = None,
    base: str | None = None,
) -> Predictor:
    """Load a run, or a folder that `python -m ser_hpc.export` wrote; of an adapter's (--adapter), over the encoder `base`, a
    folder or a name on the hub.

    Of a run: all folds of its first finished seed (or of `seed`), whose probabilities are averaged; with `fold` one trial.
    `calibrated`: by the temperatures that were fitted to the dev parts; False: probabilities as the training saved them.
    `device`: cpu, cuda or cuda:1; none: a GPU if there is one. Raises UserError.
    """
    path = Path(model)
    adapter = (path / RECORD).exists()
    if base is not None and not adapter:
        raise UserError(f"{path} is no adapter folder (export --adapter), so there is no base to give: leave --base out")
    if (run := RunDir(path)).plan.exists():
        opened = RunModels.open(run)
        trials = opened.choose(fold, seed)
        spec, module = opened.load(trials, calibrated)
        source = str(trials[0]) if len(trials) == 1 else f"{counted(len(trials), 'fold')} of seed {trials[0].seed}, averaged"
        return Predictor(spec, module, f"{path}: {source}", device, batch_seconds)
    if (path / CONFIG).exists() or adapter:
        if fold is not None or seed is not None:
            raise UserError(
                f"{path} is a model folder, which has no folds and seeds to choose from: leave --fold and --seed out"
            )
        spec, module = read_adapter(path, base, calibrated) if adapter else read_model(path, calibrated)
        many = f": the mean of {len(spec.members)} models" if len(spec.members) > 1 else ""
        return Predictor(spec, module, f"{path}{many}", device, batch_seconds)
    if (path / "model.onnx").exists():
        raise UserError(f"{path} holds model.onnx, which is for other programs: predict from the run, or export without --onnx")
    raise UserError(f"{path} is neither a run nor a model folder: it has no plan.json, nor a config.json")
