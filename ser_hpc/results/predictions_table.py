"""Write predictions.parquet: the test predictions of all trials as one table, for analyses of one's own.

seed, fold, corpus, utterance_id, speaker, truth, predicted      as in predictions.jsonl
probability.<class>                                              float64, of each class
task.<name>.truth, task.<name>.prediction.<class or number>      of each task beside the main one, null where there is none
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ser_hpc.core.atomic_io import write_aside
from ser_hpc.results.cross_validation import CrossValidation
from ser_hpc.run.predictions import Prediction

_FIELDS = ("corpus", "utterance_id", "speaker", "truth", "predicted")


def write_predictions_table(path: Path, cv: CrossValidation) -> None:
    """Write the table: a row for each test clip of each finished trial, by seed and fold, as in the trial's own file.

    The same predictions give the same bytes. Raises OSError.
    """
    import pyarrow as pa  # a tenth of a second: not for every command that knows reports
    import pyarrow.parquet as pq

    trials = sorted(cv.trials, key=lambda t: t.trial)
    rows = [(t.trial, p) for t in trials for p in t.test]
    columns: dict[str, Any] = {
        "seed": pa.array([trial.seed for trial, _ in rows], pa.int64()),
        "fold": pa.array([trial.fold for trial, _ in rows], pa.int64()),
    }
    columns |= {name: pa.array([getattr(p, name) for _, p in rows], pa.string()) for name in _FIELDS}
    columns |= {f"probability.{name}": pa.array([p.probabilities[name] for _, p in rows], pa.float64()) for name in cv.classes}
    each = [dict(_task_columns(p)) for _, p in rows]
    for name in sorted({name for row in each for name in row}):
        columns[name] = pa.array([row.get(name) for row in each])
    with write_aside(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def _task_columns(prediction: Prediction) -> Iterator[tuple[str, Any]]:
    """Yield the columns of the other tasks: one for a word, one for each entry of a distribution or of numbers."""
    for name, pair in prediction.tasks.items():
        for side in ("truth", "prediction"):
            value = pair.get(side)
            if isinstance(value, dict):
                yield from ((f"task.{name}.{side}.{key}", number) for key, number in value.items())
            else:
                yield f"task.{name}.{side}", value
