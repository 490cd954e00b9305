"""Pieces of one recording that share sound: told by their times, before anything is decoded."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from ser_hpc.shards.audio import RATE

_TOLERANCE_S = 0.001  # times are rounded to milliseconds
_TIMES = re.compile(r"(-\d+)?-(\d+|end)(-[0-9a-f]{8})?$")  # at the end of a piece's id (corpora.table, corpora.audformat)


def sharing(recording: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Number of the group of pieces that overlap, one with the next; -1: with no other. int32 (num_pieces,).

    `recording`: of what each is a piece, as a number; `start`, `end`: seconds. All have shape (num_pieces,).
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
    """What `sharing` needs of a shard's clips, by its index; None where no clip is a piece of a longer recording.

    An index has no path, for a corpus may move: a recording is told by its file's name and what a piece's id begins with.
    """
    if not {"source", "start_s", "end_s"} <= set(rows.column_names):
        return None
    start, end = rows.column("start_s"), rows.column("end_s")
    if start.null_count == end.null_count == len(rows):
        return None
    begins = start.fill_null(0.0).to_numpy()
    whole = begins + rows.column("num_samples").to_numpy() / RATE
    ends = np.where(end.is_null().to_numpy(), whole, end.fill_null(0.0).to_numpy())
    timed = ~(start.is_null().to_numpy() & end.is_null().to_numpy())
    ids = zip(rows.column("utterance_id").to_pylist(), timed.tolist(), strict=True)
    stems = [_TIMES.sub("", name) if is_piece else name for name, is_piece in ids]
    columns = zip(rows.column("corpus").to_pylist(), rows.column("source").to_pylist(), stems, strict=True)
    return np.fromiter(map(hash, columns), np.int64, len(rows)), begins, ends
