"""Return the versions of the packages on which a run's numbers depend, for each attempt and each snapshot."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib import metadata

PACKAGES = ("torch", "torchaudio", "transformers", "deepspeed", "submitit", "numpy", "safetensors")


def versions() -> dict[str, str | None]:
    """Return versions by package; None for one that is not installed: ZeRO and Slurm may not be wanted there."""
    return {name: _version(name) for name in PACKAGES}


@cache
def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None
