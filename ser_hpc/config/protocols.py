"""Define how a protocol is chosen: by the name of one of the package's, or `module:Class` from outside of it."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

from ser_hpc.config.choice import Choice
from ser_hpc.config.extensions import import_outside, is_outside
from ser_hpc.config.section import Section

NAMES = (
    *("leave_one_session_out", "leave_one_speaker_out", "speaker_groups", "leave_one_corpus_out", "cross_corpus"),
    *("given_split", "iemocap_ses01", "superb"),
)


class ProtocolSettings(Section):
    """How speakers are divided over train, dev and test. From outside the package: derive from this and write `divide`."""

    kind: str = ""

    def divide(self, clips: Any, count: int | None) -> Any:
        """Make folds and notes of a `ser_hpc.protocols.clip_table.ClipTable`: (list of FoldDraft, list of str), unchecked: what
        leaks is refused as of any protocol. `count`: the folds asked for, None: the protocol's own."""
        raise NotImplementedError


class ProtocolChoice(Choice):
    """A name, which stays one, or a class from outside."""

    def of(self, value: Any) -> type[Section]:
        """Return the class that a value asks for. Raises ValueError for what names none."""
        kind = str(value.get("kind") if isinstance(value, dict) else value)
        if is_outside(kind):
            return import_outside(kind, self.base)
        near = difflib.get_close_matches(str(kind), NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}"
        raise ValueError(f"there is no protocol {kind!r}; {hint} (or module:Class, from outside the package)")

    def validate(self, value: Any) -> Any:
        """Return a protocol's name, or the settings of one from outside."""
        return value if isinstance(value, str) and value in NAMES else super().validate(value)


Protocol = Annotated[str | ProtocolSettings, ProtocolChoice(ProtocolSettings)]
