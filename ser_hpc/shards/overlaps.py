"""Find pieces of one recording that share sound, by their times alone, before anything is decoded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from ser_hpc.shards import RATE

_TOLERANCE_S = 0.001  # times are rounded to milliseconds
_TIMES = re.compile(r"(-\d+)?-(\d+|end)(-[0-9a-f]{8})?$")  # at the end of a piece's id (corpora.table, corpora.audformat)


def overlap_groups(recording: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Number the groups of pieces that overlap, one with the next: int32 (num_pieces,), -1 for a piece without overlap.

    `recording`: number of the recording that each is cut from; `start`, `end`: seconds. All have shape (num_pieces,).
    """
    order = np.lexsort((end, start, recording))
    group = np.full(len(order), -1, dtype=np.int32)
    number, first, until = -1, -1, 0.0
    for row in order.tolist():
        if first >= 0 and recording[row] == recording[first] and start[row] < until - _TOLERANCE_S:
            if group[first] < 0:
                number += 1
                group[first] = number
            group[row] = number
            until = max(until, float(end[row]))
        else:
            first, until = row, float(end[row])
    return group


def pieces(rows: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the arguments of `overlap_groups` for a shard's rows; None where no clip is a piece of a longer recording."""
    if not {"source", "start_s", "end_s"} <= set(rows.column_names):
        return None
    start, end = rows.column("start_s"), rows.column("end_s")
    if start.null_count == end.null_count == len(rows):
        return None
    begins = start.fill_null(0.0).to_numpy()
    whole = begins + rows.column("num_samples").to_numpy() / RATE
    ends = np.where(end.is_null().to_numpy(), whole, end.fill_null(0.0).to_numpy())
    timed = ~(start.is_null().to_numpy() & end.is_null().to_numpy())
    return np.fromiter(map(recording_number, _recordings(rows, timed.tolist())), np.int64, len(rows)), begins, ends


def recording_number(recording: str) -> int:
    """Return a number for a recording's name, the same in every process, unlike `hash`: groups come in the order of these."""
    return int.from_bytes(hashlib.blake2b(recording.encode(), digest_size=8).digest(), "big", signed=True)


def _recordings(rows: pa.Table, timed: Sequence[bool]) -> Iterator[str]:
    """Yield the recording that each clip is cut from: its source's size and CRC-32. Older shards have the file's name, and its
    path only at the beginning of a piece's id: there recordings of one name, whose folders differ in letters that an id cannot
    hold, are taken for one; packing again tells them apart."""
    if "recording" in rows.column_names:
        yield from rows.column("recording").to_pylist()
        return
    names = ("corpus", "source", "utterance_id")
    for is_piece, corpus, source, name in zip(timed, *(rows.column(each).to_pylist() for each in names), strict=True):
        yield f"{corpus}/{source}/{_TIMES.sub('', name) if is_piece else name}"
