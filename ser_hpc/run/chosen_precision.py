"""What a run computes in: what its settings say or, where they leave it open (`auto`), what its first trial found right."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ser_hpc.core.atomic_io import write_json_once
from ser_hpc.core.errors import UserError
from ser_hpc.run.run_dir import RunDir
from ser_hpc.run.sealed import read_sealed, seal

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class ChosenPrecision:
    """`precision` of the layers; `tf32`: of what else is multiplied in float32; `device`: on which it was found."""

    precision: str
    tf32: bool
    device: str


def fix_precision(run: RunDir, here: ChosenPrecision) -> ChosenPrecision:
    """What the first trial to ask found, which is then that of all trials. Raises UserError if the run's file is damaged."""
    if not run.precision.exists():
        write_json_once(run.precision, seal(asdict(here)))
    found = read_precision(run)
    assert found is not None
    return found


def read_precision(run: RunDir) -> ChosenPrecision | None:
    """None if no trial has started yet, or the settings said it."""
    try:
        told: dict[str, Any] = read_sealed(run.precision)
        return ChosenPrecision(str(told["precision"]), bool(told["tf32"]), str(told["device"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run.precision} is damaged; what trials compute in stood there: give another run.name") from error


def precision_note(run: RunDir, setting: str) -> str:
    """A sentence for the plan and the report. `setting`: the setting."""
    if setting != AUTO:
        return f"Computed in {setting} (train.precision)."
    found = read_precision(run)
    if found is None:
        return "Computed in bf16 on GPUs that have it, else in fp32 (train.precision=auto): the first trial to start fixes it."
    tf32 = ", other products in TF32" if found.tf32 else ""
    return f"Computed in {found.precision}{tf32} (train.precision=auto), as the first trial found it right on {found.device}."
