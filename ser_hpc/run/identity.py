"""Say which experiment a run is, for planning and reports: RUN/identity.json holds what its name is a hash of.

    identity_of(settings, label_set, files)      the settings that change the result, the label set, digests of such files
    write_identity(run, identity, folds, seeds)  beside it, outside of the hash: a digest of each fold, all seeds planned

Folds and seeds stand here and in plan.json, so that neither can lose one unnoticed; more seeds may come.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ser_hpc.config import schema as schemas
from ser_hpc.config.load import load_run_settings
from ser_hpc.config.section import Section
from ser_hpc.core.atomic_io import json_digest, read_sealed, write_sealed
from ser_hpc.core.errors import ConfigError, UserError, listed
from ser_hpc.core.home import expand_home
from ser_hpc.corpora import labels
from ser_hpc.corpora.labels import LabelSet
from ser_hpc.run.run_dir import RunDir

FILES = ("shards", "sounds", "weights", "init_from", "extensions")
_WEIGHTS = ("*.safetensors", "*.bin", "*.json")


@dataclass(frozen=True, slots=True)
class Identity:
    """What identifies a run. `content`: strict JSON, as `schema` writes it."""

    schema: int
    content: dict[str, Any]

    @property
    def digest(self) -> str:
        """Return the SHA-256 in hex; the run's name ends in its first eight digits."""
        return json_digest(self.content)


@dataclass(frozen=True, slots=True)
class RecordedIdentity:
    """The content of identity.json. `folds`: their digests; `seeds`: all that were ever planned."""

    identity: Identity
    folds: tuple[str, ...]
    seeds: tuple[int, ...]


def identity_of(
    settings: Section, label_set: LabelSet, files: Mapping[str, str], schema: int = schemas.SCHEMA
) -> Identity | None:
    """Return the identity; None: nothing of that schema can have been this.

    `files`: digests of what is read, wherever it lies: `shards`; where there are such, `sounds` that augmentation mixes in,
    `weights` of a local folder, trained ones that trials start from (`init_from`), and `extensions`, the sources of what stands
    outside the package.
    """
    if (changed := schemas.identity(settings, schema)) is None:
        return None
    numbered = {"schema": schema} if schema > 1 else {}  # the first one had no number
    if "weights" in files:
        if schema == 1:
            files = {name: digest for name, digest in files.items() if name != "weights"}  # it went by the folder's name
        else:
            changed.setdefault("model", {})["weights"] = ""
    content = {**numbered, "settings": changed, **label_set.as_identity(), **files}
    return Identity(schema, json.loads(json.dumps(content)))


def write_identity(run: RunDir, identity: Identity, folds: Sequence[str], seeds: Iterable[int]) -> None:
    """Write identity.json. `folds`: their digests; `seeds`: all that were ever planned."""
    record = {"schema": identity.schema, _content_key(identity.schema): identity.content, "digest": identity.digest}
    write_sealed(run.identity, record | {"folds": list(folds), "seeds": sorted(seeds)})


def read_identity(run: RunDir) -> RecordedIdentity | None:
    """Read identity.json; None for a run older than identities. Raises UserError where it is damaged or was changed."""
    if not run.identity.exists():
        return None
    try:
        record = read_sealed(run.identity)
        identity = Identity(record["schema"], record[_content_key(record["schema"])])
        if identity.digest != record["digest"]:
            raise ValueError("its digest is another one")
        return RecordedIdentity(identity, tuple(record["folds"]), tuple(record["seeds"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.identity} is damaged ({error}); nothing says any more which experiment this run is") from error


def _content_key(schema: int) -> str:
    """Return the name that the code of that schema, which may go on with its run, knows the content by."""
    return "content" if schema > 2 else "what"


def check_identity(run: RunDir, recorded: RecordedIdentity) -> None:
    """Compare the run's settings.yaml and labels.yaml with its identity. Raises UserError naming what was changed."""
    content, schema = recorded.identity.content, recorded.identity.schema
    content = {name: value for name, value in content.items() if name != "ensemble"}  # its first member's, and more
    try:
        settings, label_set = load_run_settings(run.settings), labels.load_label_set(run.labels)
    except ConfigError as error:
        raise UserError(f"{run.settings} was changed after the run was made: {error}") from error
    now = identity_of(settings, label_set, {name: content[name] for name in FILES if name in content}, schema)
    if now is None or now.content != content:
        names = [] if now is None else sorted(now.content | content)
        changed = [name for name in names if now and now.content.get(name) != content.get(name)] or ["settings"]
        file = run.settings if "settings" in changed else run.labels
        raise UserError(
            f"{file} was changed after the run was made: its {listed(changed)} are others than those that the run's name "
            "stands for. Put it back, or launch with the new ones: that makes a run of its own"
        )


def local_folder(settings: Section) -> Path | None:
    """Return the folder that `model.weights` names; None if it is a name on the hub."""
    weights = getattr(getattr(settings, "model", None), "weights", None)
    path = expand_home(weights) if weights else None
    return path if path is not None and path.is_dir() else None


def weights_digest(settings: Section) -> str | None:
    """Hash names and contents of a local folder's files, SHA-256 in hex; takes as long as to read them once.

    The content of pre-trained weights is a part of a run's identity, and their path is not.
    """
    path = local_folder(settings)
    return None if path is None else files_digest(weight_files(path))


def weight_files(folder: Path) -> list[Path]:
    """List what a model folder is made of: its weights, and what says how they are to be used."""
    return sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern) if file.is_file()})


def files_digest(files: Iterable[Path]) -> str:
    """Hash names and contents of files, SHA-256 in hex."""
    return _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@cache
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash the files; cached by their size and time, for planning asks more than once."""
    whole = hashlib.sha256()
    for file, _, _ in files:
        with file.open("rb") as content:
            whole.update(f"{file.name}\0".encode() + hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()
