"""Small trees in a corpus's layout, of short real recordings in real encodings: shared by the tests of the parsers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile


def clip(path: Path, rate: int = 16000, channels: int = 1, subtype: str = "PCM_16", seconds: float = 0.2) -> Path:
    """Write a faint tone, a little different for each name, in the format of the path's suffix; folders are made.

    `rate` in Hz; `subtype` as soundfile names it: PCM_16, PCM_24, FLOAT. Returns `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hertz = 100 + sum(path.stem.encode()) % 300
    tone = 0.1 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, np.repeat(tone[:, None], channels, axis=1), rate, subtype=subtype, format=path.suffix[1:].upper())
    return path


def lfs_pointer(path: Path) -> Path:
    """What a zip download of a repository holds instead of the recording. Returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 81324\n")
    return path


def macos_note(path: Path) -> Path:
    """The file `._x.wav` that macOS leaves beside x.wav in archives; `path` is x.wav's. Returns the note's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    note = path.with_name(f"._{path.name}")
    note.write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    return note
