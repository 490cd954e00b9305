"""Find where the trials of a run were trained under different conditions, for the report: they may differ for that reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from ser_hpc.core.errors import listed
from ser_hpc.run.attempt_end import TrainedAttempt
from ser_hpc.run.run_dir import Trial

# Those of the packages in attempt.json whose arithmetic is in a result.
_PACKAGES = ("torch", "torchaudio", "transformers", "deepspeed", "numpy")


def differences(attempts: Sequence[TrainedAttempt]) -> list[str]:
    """Return a sentence for every condition that differed between the attempts that trials were trained in."""
    found: dict[str, dict[str, set[Trial]]] = defaultdict(lambda: defaultdict(set))
    for trial, about in attempts:
        for condition, read in _READ.items():
            if (value := read(about)) is not None:
                found[condition][str(value)].add(trial)
    return [
        f"The trials were trained {condition} ("
        + "; ".join(f"{value}: {listed(sorted(trials), 12)}" for value, trials in sorted(values.items()))
        + "), so they may differ for that reason."
        for condition, values in found.items()
        if len(values) > 1
    ]


def _version(package: str) -> Callable[[dict[str, Any]], Any]:
    def read(about: dict[str, Any]) -> Any:
        versions = about.get("versions")
        return versions.get(package) if isinstance(versions, dict) else None

    return read


_READ: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"under different versions of {package}": _version(package) for package in _PACKAGES},
    "on different devices": lambda about: about.get("device"),
    "with different numbers of threads": lambda about: about.get("threads") if about.get("device") == "CPU" else None,
    "on different numbers of ranks": lambda about: about.get("ranks"),
    "in different precisions": lambda about: about.get("precision"),
    "with different strategies": lambda about: about.get("strategy"),
    "with different memory budgets, in seconds of audio": lambda about: about.get("budget_s"),
}
