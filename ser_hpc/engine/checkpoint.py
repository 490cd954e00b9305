"""A trial's state on disk: one format for every strategy and number of ranks, no pickle, the marker last.

    checkpoints/step_00000120.safetensors    weights and AdamW moments by parameter name, full and fp32
    checkpoints/step_00000120.json           the marker: TrainState and the tensors' checksum, written after them
    checkpoints/best.safetensors             weights of the best dev epoch

Random numbers, data order and learning rate need no saving: they are pure functions of (seed, step, micro-batch).
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ser_hpc.engine.sharing import TrainTensors
from ser_hpc.files import aside, read_json, write_json
from ser_hpc.results.run_dir import TrialDir

KEEP = 2
_PARTS = ("model", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class TrainState:
    """All that a resume needs besides tensors. `epoch` counts the epochs that are trained and evaluated.

    `epoch_loss` / `epoch_weight` is the mean training loss of the epoch under way.
    """

    step: int = 0
    epoch: int = 0
    best_uar: float = -1.0
    best_epoch: int = -1
    stale_epochs: int = 0
    epoch_loss: float = 0.0
    epoch_weight: float = 0.0
    seconds: float = 0.0

    def after_step(self, loss_sum: float, weight_sum: float) -> TrainState:
        return replace(
            self, step=self.step + 1, epoch_loss=self.epoch_loss + loss_sum, epoch_weight=self.epoch_weight + weight_sum
        )

    def after_epoch(self, dev_uar: float) -> TrainState:
        """The state once the current epoch is evaluated; the first of equally good epochs stays the best."""
        after = replace(self, epoch=self.epoch + 1, epoch_loss=0.0, epoch_weight=0.0)
        if dev_uar > self.best_uar:
            return replace(after, best_uar=dev_uar, best_epoch=self.epoch, stale_epochs=0)
        return replace(after, stale_epochs=self.stale_epochs + 1)


def save(trial: TrialDir, state: TrainState, tensors: TrainTensors) -> None:
    """Write one checkpoint and drop all but the newest two. Rank 0 only."""
    flat = {f"{part}/{name}": tensor for part in _PARTS for name, tensor in getattr(tensors, part).items()}
    path = trial.checkpoints / f"step_{state.step:08d}.safetensors"
    marker = path.with_suffix(".json")
    # The same step may be saved again after its epoch's evaluation: its old marker must not vouch for the new tensors.
    marker.unlink(missing_ok=True)
    digest = save_weights(path, flat)
    write_json(
        marker,
        {"state": asdict(state), "updates": tensors.updates, "loss_scale": tensors.loss_scale, "sha256": digest},
    )
    _drop_all_but(trial, _markers(trial)[:KEEP])


def newest(trial: TrialDir) -> tuple[TrainState, TrainTensors | None, list[str]]:
    """The newest sound checkpoint, and a sentence about each damaged one that was passed over."""
    damaged = []
    for marker in _markers(trial):
        path = marker.with_suffix(".safetensors")
        try:
            saved = read_json(marker)
            if _sha256(path) != saved["sha256"]:
                raise ValueError("its checksum differs")
            flat = load_file(path)
            state = TrainState(**saved["state"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            damaged.append(f"checkpoint {path} is damaged ({error}) and was passed over")
            continue
        parts = {part: {k.removeprefix(f"{part}/"): v for k, v in flat.items() if k.startswith(f"{part}/")} for part in _PARTS}
        return state, TrainTensors(**parts, updates=saved["updates"], loss_scale=saved["loss_scale"]), damaged
    return TrainState(), None, damaged


def save_weights(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors whole or not at all; returns their file's sha256."""
    with aside(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        return _sha256(temporary)


def load_weights(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def clear(trial: TrialDir) -> None:
    """Drop everything but the best weights: the trial is done."""
    _drop_all_but(trial, [])


def _drop_all_but(trial: TrialDir, markers: list[Path]) -> None:
    """Markers go first; what a kill left half-written, or without its marker, goes too."""
    kept = {path.with_suffix(suffix) for path in markers for suffix in (".json", ".safetensors")}
    old = set(trial.checkpoints.glob("step_*")) - kept
    for path in sorted(old, key=lambda path: path.suffix) + list(trial.checkpoints.glob(".*.tmp")):
        path.unlink()


def _markers(trial: TrialDir) -> list[Path]:
    """Newest first."""
    return sorted(trial.checkpoints.glob("step_*.json"), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
