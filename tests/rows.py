"""Tables of metadata for tests, without any audio."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from ser_hpc.corpora.utterance import COLUMNS, Metadata, TextColumn


def table(rows: list[dict[str, Any]]) -> Metadata:
    """Metadata of `rows`; what a row leaves out is not annotated, and every sound is another one."""
    defaults = dict.fromkeys(COLUMNS, "") | {"corpus": "tiny", "speaker": "s1", "emotion": "happy", "extra": ""}
    full = [defaults | {"utterance_id": f"u{i:05}", "sound": f"sound {i}"} | row for i, row in enumerate(rows)]
    columns = {name: np.array([row[name] for row in full], dtype=object) for name in full[0]}
    texts = {name: TextColumn(pa.array(columns.pop(name), pa.large_string())) for name in ("utterance_id", "sound")}
    return Metadata(**columns, **texts, seconds=np.ones(len(full)))
