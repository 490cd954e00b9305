"""Keep the precision of a run, the same for all its trials: of its settings or, for `auto`, what its first trial chose."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ser_hpc.core.atomic_io import read_sealed, seal, write_json_once
from ser_hpc.core.errors import UserError
from ser_hpc.run.run_dir import RunDir

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class ChosenPrecision:
    """A run's precision: `precision` of the layers; `tf32` of other float32 products; `device` on which it was found."""

    precision: str
    tf32: bool
    device: str


def fix_precision(run: RunDir, proposed: ChosenPrecision) -> ChosenPrecision:
    """Return the run's precision: `proposed`, if no trial has fixed it before. Raises UserError if the file is damaged."""
    if not run.precision.exists():
        write_json_once(run.precision, seal(asdict(proposed)))
    fixed = read_precision(run)
    assert fixed is not None
    return fixed


def read_precision(run: RunDir) -> ChosenPrecision | None:
    """Read precision.json; None if no trial has started yet, or the settings name one. Raises UserError if it is damaged."""
    try:
        record: dict[str, Any] = read_sealed(run.precision)
        return ChosenPrecision(str(record["precision"]), bool(record["tf32"]), str(record["device"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run.precision} is damaged; what trials compute in stood there: give another run.name") from error


def precision_note(run: RunDir, setting: str) -> str:
    """Return a sentence on the precision, for the plan and the report. `setting`: `train.precision`."""
    if setting != AUTO:
        return f"Computed in {setting} (train.precision)."
    found = read_precision(run)
    if found is None:
        return "Computed in bf16 on GPUs that have it, else in fp32 (train.precision=auto): the first trial to start fixes it."
    tf32 = ", other products in TF32" if found.tf32 else ""
    return f"Computed in {found.precision}{tf32} (train.precision=auto), as the first trial found it right on {found.device}."
