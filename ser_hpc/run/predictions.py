"""Write and read predictions.jsonl, one JSON object a line: what a trial predicted, and all that scores are computed from.

{"corpus": "emodb", "utterance_id": "03a01Fa", "speaker": "03", "part": "test", "truth": "happiness",
 "predicted": "happiness", "probabilities": {"anger": 0.01, ..., "happiness": 0.97}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ser_hpc.core.atomic_io import write_text
from ser_hpc.core.errors import UserError


@dataclass(frozen=True, slots=True)
class Prediction:
    """One clip's prediction in one trial. `part` is "dev" or "test"; `probabilities` has every class of the label set.

    `tasks`: of each task beside the main one, by name, its {"truth": ..., "prediction": ...}, as its target writes them; the
    truth is null where the clip has none. Left out of the file where there is no other task.
    """

    corpus: str
    utterance_id: str
    speaker: str
    part: str
    truth: str
    predicted: str
    probabilities: dict[str, float]
    tasks: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        """Return its line of the file."""
        fields = asdict(self)
        if not self.tasks:
            del fields["tasks"]
        return json.dumps(fields, ensure_ascii=False, allow_nan=False)


_parse = json.JSONDecoder().raw_decode
_WORDS = ("corpus", "utterance_id", "speaker", "part", "truth", "predicted")


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> str:
    """Write the file; returns its SHA-256 in hex, for the trial's marker."""
    text = "".join(prediction.as_json() + "\n" for prediction in predictions)
    write_text(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def read_predictions(path: Path, sha256: str | None = None) -> list[Prediction]:
    """Read the file. Raises UserError if its SHA-256 is another, or, naming the line, where a line is not a prediction."""
    predictions = []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} was changed after its trial had written it: it is not the file that the trial's marker names")
    try:
        lines = content.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            prediction = Prediction(**_parsed(line))
            if wrong := [name for name in _WORDS if not isinstance(getattr(prediction, name), str)]:
                raise ValueError(f"its {wrong[0]} is no text")
            if not isinstance(prediction.probabilities, dict):
                raise ValueError("its probabilities are not by class")
            if not isinstance(prediction.tasks, dict):
                raise ValueError("its tasks are not by name")
            predictions.append(prediction)
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}:{number} is not a prediction: {error}") from error
    return predictions


def _parsed(line: str) -> Any:
    """Parse a line, by json.loads only where it is no plain one: two thirds of the time."""
    with suppress(ValueError):
        value, end = _parse(line)
        if end == len(line):
            return value
    return json.loads(line)


def clip_hashes(*columns: Iterable[str]) -> np.ndarray:
    """Hash each clip's fields, uint64 (num_clips,). `columns`: corpus, id, speaker, true class, each (num_clips,)."""
    hashes = (hashlib.blake2b("\0".join(fields).encode(), digest_size=8).digest() for fields in zip(*columns, strict=True))
    return np.frombuffer(b"".join(hashes), dtype="<u8")


def clips_digest(hashes: np.ndarray) -> str:
    """Hash a part's clips, in any order: SHA-256 of their sorted hashes, in hex."""
    return hashlib.sha256(np.sort(hashes).astype("<u8").tobytes()).hexdigest()
