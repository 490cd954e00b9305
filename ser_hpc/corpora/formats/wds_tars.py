"""Read the samples of WebDataset tars as texts and places of sound, from tars that anyone may have made; see `wds.py`.

Nothing is unpacked by the name that a tar gives, and no pickle is opened. A tar with a link, a device or a path that leads out
is refused, and so is a header that would be read into memory at any length.
"""

from __future__ import annotations

import json
import lzma
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.formats import column_names
from ser_hpc.corpora.parse_result import AUDIO

LAYOUT = "tars (.tar, .tar.gz) of samples: <key>.wav (or flac, mp3, ogg) and <key>.json, .cls or .txt, one after the other"
LARGEST_TEXT, LARGEST_SOUND, LARGEST_HEADER = 1 << 20, 1 << 30, 1 << 16  # bytes
_ENDINGS = (".tar", ".tar.gz", ".tgz")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # key and ending, as webdataset takes a name apart
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)
_TEXTS = {"txt", "text", "cls", *(name for names in column_names.NAMES.values() for name in names)}
_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


@dataclass(frozen=True, slots=True)
class Sound:
    """A recording inside a tar: `size` bytes at `offset` of its (unzipped) content, with the ending of its name, as .wav."""

    offset: int
    size: int
    suffix: str


@dataclass(slots=True)
class TarSample:
    """The members of one key: texts by column, recordings, names' endings, and what is wrong in words ("" if nothing)."""

    tar: Path
    key: str
    texts: dict[str, str] = field(default_factory=dict)
    sounds: list[Sound] = field(default_factory=list)
    endings: set[str] = field(default_factory=set)
    problem: str = ""

    def add_texts(self, found: dict[str, str]) -> None:
        """Add texts by column; of two for one column the first stays."""
        self.texts = found | self.texts


def find_tars(root: Path) -> list[Path]:
    """Return the tars of a folder, of a pattern (`emo-{000000..000005}.tar`, `emo-*.tar`), or the one; sorted.

    Raises UserError where there are none, or one that the pattern names is missing.
    """
    if root.is_dir():
        tars = sorted(path for path in root.rglob("*") if path.name.lower().endswith(_ENDINGS) and _is_visible(path, root))
    elif _RANGE.search(str(root)):
        tars = [Path(name) for name in _numbered(str(root))]
        if missing := [tar for tar in tars if not tar.is_file()]:
            raise UserError(f"{root}: of its {len(tars)} tars {len(missing)} are not there: {listed(missing, 3)}")
    elif "*" in root.name:
        tars = sorted(path for path in root.parent.glob(root.name) if not path.name.startswith("."))
    else:
        tars = [root] if root.is_file() and root.name.lower().endswith(_ENDINGS) else []
    if not tars:
        raise UserError(f"{root} is or holds no tar; expected {LAYOUT}")
    return tars


def read_samples(tar: Path, passed_over: Counter[str]) -> list[TarSample]:
    """Read the samples of a tar without their sound; members that mean nothing here are counted by their ending.

    Raises UserError where the tar is damaged, or holds what no WebDataset does.
    """
    samples: list[TarSample] = []
    with _opened(tar) as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps all
            name = _checked_name(tar, info)
            if name is None:
                continue
            if (match := _NAME.fullmatch(name)) is None:
                passed_over["(no ending)"] += 1
                continue
            key, ending = match[1], match[2].lower()
            if not samples or samples[-1].key != key or ending in samples[-1].endings:
                samples.append(TarSample(tar, key))
            samples[-1].endings.add(ending)
            _add_member(samples[-1], archive, info, ending, passed_over)
    return samples


def read_sounds(tar: Path, sounds: Sequence[Sound]) -> Iterator[bytes]:
    """Yield the bytes of recordings of a tar, which is read once where they are in its order."""
    with _opened(tar) as archive:
        assert archive.fileobj is not None
        for sound in sounds:
            archive.fileobj.seek(sound.offset)
            payload = archive.fileobj.read(sound.size)
            if len(payload) != sound.size:
                raise EOFError(f"it ends within a recording, {sound.size - len(payload)} bytes too early")
            yield payload


def _add_member(
    sample: TarSample, archive: tarfile.TarFile, info: tarfile.TarInfo, ending: str, passed_over: Counter[str]
) -> None:
    column, _, kind = ending.rpartition(".")
    if f".{kind}" in AUDIO:
        if info.size > LARGEST_SOUND:
            sample.problem = f"its recording has {info.size} bytes, more than {LARGEST_SOUND} are not read"
        sample.sounds.append(Sound(info.offset_data, info.size, f".{kind}"))
    elif kind != "json" and kind not in _TEXTS:
        passed_over[f".{kind}"] += 1
    elif info.size > LARGEST_TEXT:
        sample.problem = f"its .{ending} has {info.size} bytes, more than {LARGEST_TEXT} are not read"
    else:
        file: IO[bytes] | None = archive.extractfile(info)
        content = file.read() if file else b""
        try:
            text = content.decode("utf-8-sig").strip()
            sample.add_texts(_plain_values(json.loads(text)) if kind == "json" else {column or kind: text})
        except (ValueError, RecursionError) as error:
            sample.problem = f"its .{ending} cannot be read: {error}"


def _plain_values(value: object) -> dict[str, str]:
    """Return the texts, numbers and truths of a JSON object by name. Raises ValueError where it is none."""
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    plain = {name: one for name, one in value.items() if isinstance(one, str | int | float)}
    return {name: column_names.text_of(one) for name, one in plain.items()}


def _is_visible(path: Path, root: Path) -> bool:
    return path.is_file() and not any(name.startswith((".", "__MACOSX")) for name in path.relative_to(root).parts)


def _numbered(pattern: str) -> list[str]:
    """Expand the first `{000..005}` of a pattern, and then all others."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + 1_000_000:
        raise UserError(f"{pattern}: {match[0]} counts no tars; write {{000000..000005}}")
    numbers = (str(number).zfill(len(match[1])) for number in range(first, last + 1))
    return [name for number in numbers for name in _numbered(pattern[: match.start()] + number + pattern[match.end() :])]


def _checked_name(tar: Path, info: tarfile.TarInfo) -> str | None:
    """Return a member's name; None for a folder and for notes about the tar. Raises UserError for what may be an attack."""
    name = info.name.removeprefix("./")
    if info.isdir():
        return None
    kind = "is a sparse file" if info.issparse() else "is no plain file, but a link or a device" if not info.isreg() else ""
    if name.startswith("/") or ".." in name.split("/"):
        kind = "leads out of the tar's folder"
    if kind:
        raise UserError(f"{tar}: member {info.name[:100]!a} {kind}, which no WebDataset holds; the tar is not read")
    return None if re.match(r"__[^/]*__($|/)", name) or name.rpartition("/")[2].startswith("._") else name


class _CheckedInfo(tarfile.TarInfo):
    """A header whose further texts (pax, long names) are of a length that one reads into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _CheckedInfo:
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):  # tarfile takes it for the tar's end, and all that follows would be lost in silence
                raise tarfile.ReadError(f"damaged header: {error}") from error
            raise
        if info.type in _HEADERS and info.size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header announces {info.size} bytes of text")
        return info


@contextmanager
def _opened(tar: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(tar, "r:*", tarinfo=_CheckedInfo) as archive:
            yield archive
    except _DAMAGE as error:
        raise UserError(f"{tar} cannot be read as a tar, or is damaged: {error}") from error
