"""What a call has found so far: one file, whole at any moment, written anew whenever something is added."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ser_hpc.core.atomic_io import write_json

EVERY_CALL = ("machine", "prepare")
_APART_S = 0.5  # between two writings, of what is not the end of something


class Kept:
    """`told`: the JSON, to be read. A part's entry: `how` it went, `seconds`, `began` on the call's clock, its `result`."""

    def __init__(self, path: Path, about: dict[str, Any], summarised: Callable[[dict[str, Any]], Any]) -> None:
        self._path, self._summarised = path, summarised
        self._seen: dict[str, int] = {}
        self._last = 0.0
        self.told: dict[str, Any] = {**about, "summary": {}, "parts": {}}
        self._write()

    def part(self, name: str, **more: Any) -> None:
        """Add to a part's entry."""
        self.told["parts"].setdefault(name, {}).update(more)
        self._write()

    def look(self, name: str, file: Path, *, ended: bool = False) -> None:
        """Take over what the part has written by now, if that is new. A part writes whole files."""
        if not ended and time.monotonic() - self._last < _APART_S:
            return
        with suppress(OSError, ValueError):
            written = file.stat().st_mtime_ns
            if self._seen.get(name) != written:
                self.part(name, result=json.loads(file.read_text(encoding="utf-8")))
                self._seen[name] = written

    def adopt(self, earlier: Path) -> str | None:
        """Take over what a call before this one brought to its end, on the same GPU; why not, if not. Needs `machine`."""
        parts = json.loads(earlier.read_text(encoding="utf-8"))["parts"]
        there, here = (found.get("machine", {}).get("result", {}).get("gpu") for found in (parts, self.told["parts"]))
        if there != here:
            return f"{earlier} is of another machine ({there}, here {here}): everything is measured anew"
        for name, part in parts.items():
            if part["how"] == "done" and name not in self.told["parts"] and name not in EVERY_CALL:
                self.part(name, **part, earlier=True)
        return None

    def has(self, name: str) -> bool:
        """From an earlier call."""
        return "earlier" in self.told["parts"].get(name, {})

    def result(self, name: str) -> Any:
        return self.told["parts"].get(name, {}).get("result")

    def _write(self) -> None:
        self.told["summary"] = self._summarised(self.told["parts"])
        write_json(self._path, self.told)
        self._last = time.monotonic()
