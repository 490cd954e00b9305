"""What gpu_material.py made, ready to be used: wheels and the model unpacked. With the standard library alone."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zipfile import ZipFile


def unpack_wheels(folder: Path, site: Path) -> list[str]:
    """Unpack into `site` each wheel whose distribution is not installed, and put `site` behind what is; their names."""
    found = []
    for wheel in sorted(folder.glob("*.whl")):
        name = wheel.name.split("-")[0]
        if not installed(name):
            with ZipFile(wheel) as archive:
                archive.extractall(site)
            found.append(name)
    if found:
        sys.path.append(str(site))
    return found


def installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def unpack_model(archive: Path, folder: Path) -> Path | None:
    """The folder with the model; None where it did not travel."""
    if not archive.exists():
        return None
    with ZipFile(archive) as packed:
        packed.extractall(folder)
    return folder
