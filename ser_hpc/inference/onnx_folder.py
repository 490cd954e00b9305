"""Write model.onnx, and model.json, which says what goes in and comes out: for programs without torch and without this package.

`samples` (batch, samples) float32 in [-1, 1], 16 kHz, in; of each task, by its name, (batch, width) out: probabilities, already
calibrated and averaged, or numbers on their scale. Both dimensions are free. Clips of a batch have one length, as the graph
pads none: clips of unlike lengths go in one after another.

torch's older exporter, which records what a run does, makes it: in seconds, where the newer one took minutes. What records is
wrong where a length was taken for a constant, so the file is run at three lengths, alone and in a batch, before it is believed.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ser_hpc
from ser_hpc.core.atomic_io import follow_umask, write_json
from ser_hpc.core.errors import UserError
from ser_hpc.data.prefetch import Crop
from ser_hpc.inference.ensemble import Ensemble
from ser_hpc.inference.plain import Plain
from ser_hpc.inference.spec import ModelSpec
from ser_hpc.shards import RATE
from ser_hpc.tasks.targets import OverClasses, Target

MODEL, ABOUT = "model.onnx", "model.json"
INPUT = "samples"
PARITY = 1e-4  # of probabilities
_OPSET = 17  # read by onnxruntime 1.12 and newer
_MOST_BYTES = 2_000_000_000  # protobuf's messages end at 2 GiB
_LENGTHS_S = (0.4, 1.0, 2.7)


def write_onnx(folder: Path, spec: ModelSpec, module: Ensemble) -> None:
    """Write both files into a folder that is there. `module`: calibrated. Raises UserError for a model that has no such form,
    and where the file does not say what the model says."""
    session_of = _runtime()
    if (size := sum(tensor.nbytes for tensor in module.state_dict().values())) > _MOST_BYTES:
        raise UserError(f"its weights have {size / 1e9:.1f} GB, and an ONNX file holds 2 GB at most: export without --onnx")
    plain, path = Plain(spec, module), folder / MODEL
    free = {name: {0: "batch"} for name in spec.targets} | {INPUT: {0: "batch", 1: "samples"}}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter's, that it is the older one, and that lengths are looked at
        torch.onnx.export(
            plain,
            (torch.zeros(2, RATE),),
            path,
            input_names=[INPUT],
            output_names=list(spec.targets),
            dynamic_axes=free,
            opset_version=_OPSET,
            dynamo=False,
        )
    follow_umask(path)
    gap = _gap(session_of(path), spec, module)
    if not gap <= PARITY:
        raise UserError(f"{MODEL} predicts otherwise than the run, by up to {gap:.1e}: nothing is exported; report this")
    write_json(folder / ABOUT, _about(spec, module, gap))


def _runtime() -> Any:
    """Return what opens a file. Raises UserError where a package is missing."""
    try:
        import onnx  # noqa: F401  # torch's exporter wants it
        import onnxruntime
    except ImportError as error:
        raise UserError(f"--onnx needs the packages onnx and onnxruntime: pip install 'ser_hpc[onnx]' ({error})") from error
    return lambda path: onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def _gap(session: Any, spec: ModelSpec, module: Ensemble) -> float:
    """Return the largest difference between what the file and the model predict of noise."""
    rng, largest = np.random.default_rng(0), 0.0
    for seconds, clips in zip(_LENGTHS_S, (1, 3, 1), strict=True):
        samples = (rng.standard_normal((clips, round(seconds * RATE))) * 0.1).astype(np.float32)
        found = dict(zip(spec.targets, session.run(list(spec.targets), {INPUT: samples}), strict=True))
        crop = Crop.of_seconds(spec.max_seconds, spec.crop)
        heard = np.stack([crop(clip) for clip in samples])
        offsets = torch.arange(clips + 1) * heard.shape[1]
        for name, output in module(torch.from_numpy(heard).flatten(), offsets).items():
            wanted = _as_told(spec.targets[name], output.double().numpy())
            largest = max(largest, float(np.abs(found[name] - wanted).max()))
    return largest


def _as_told(target: Target, outputs: np.ndarray) -> np.ndarray:
    """Write outputs (B, width) of a task as the predictor tells them."""
    return np.array([list(target.prediction(row).values()) for row in outputs])


def _about(spec: ModelSpec, module: Ensemble, gap: float) -> dict[str, Any]:
    limits = [front.max_seconds for front in module.fronts] + [spec.max_seconds]
    return {
        "input": {
            "name": INPUT,
            "shape": ["batch", "samples"],
            "type": "float32",
            "range": [-1, 1],
            "rate_hz": RATE,
            "most_seconds": min((limit for limit in limits if limit is not None), default=None),
            "crop": spec.crop,
            "batch": "clips of one length; none is padded",
        },
        "outputs": {name: _output(target) for name, target in spec.targets.items()},
        "classes": list(spec.classes),
        "temperatures": [member.temperatures for member in spec.members],
        "trials": [{"seed": member.seed, "fold": member.fold} for member in spec.members],
        "largest_difference": float(f"{gap:.1e}"),
        "opset": _OPSET,
        "ser_hpc": ser_hpc.__version__,
    }


def _output(target: Target) -> dict[str, Any]:
    if isinstance(target, OverClasses):
        return {"probabilities_of": list(target.classes)}
    return {"numbers": list(getattr(target, "names", ())), "low": target.low, "high": target.high}  # type: ignore[attr-defined]
