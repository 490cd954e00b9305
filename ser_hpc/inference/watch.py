"""Watch a folder for recordings: each is predicted once, when it has been written to its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import sleep

from ser_hpc.corpora.parse_result import find_recordings
from ser_hpc.inference.recordings import FileRecording

INTERVAL_S = 2.0
_Version = tuple[int, int]  # bytes, time of the last change


class WatchedFolder:
    """A folder, at any depth. A file counts as written once two looks, some seconds apart, find it the same."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, _Version] = {}
        self._given: dict[Path, _Version] = {}

    def look(self) -> list[FileRecording]:
        """Return the recordings that are written, and were not returned before, or have been written anew since."""
        now = {path: version for path in find_recordings(self._folder) if (version := _version(path)) is not None}
        settled = [path for path, version in now.items() if self._seen.get(path) == version != self._given.get(path)]
        self._seen = now
        self._given |= {path: now[path] for path in settled}
        return [FileRecording(str(path), path) for path in settled]

    def new(self) -> Iterator[list[FileRecording]]:
        """Yield what is new, look by look, for ever."""
        while True:
            if found := self.look():
                yield found
            sleep(INTERVAL_S)


def _version(path: Path) -> _Version | None:
    """Return what a file's version goes by; None of one that has vanished, or is still empty."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if status.st_size else None
