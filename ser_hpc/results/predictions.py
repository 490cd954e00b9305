"""What a trial predicted: one JSON object a line in `predictions.jsonl`, the only thing that scores are computed from.

{"corpus": "emodb", "utterance_id": "03a01Fa", "speaker": "03", "part": "test", "truth": "happiness",
 "predicted": "happiness", "probabilities": {"anger": 0.01, ..., "happiness": 0.97}}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ser_hpc.errors import UserError
from ser_hpc.files import write_text


@dataclass(frozen=True, slots=True)
class Prediction:
    """One clip's prediction in one trial. `part` is "dev" or "test"; `probabilities` has every class of the label set."""

    corpus: str
    utterance_id: str
    speaker: str
    part: str
    truth: str
    predicted: str
    probabilities: dict[str, float]


def write(path: Path, predictions: Iterable[Prediction]) -> None:
    write_text(path, "".join(json.dumps(asdict(p), ensure_ascii=False, allow_nan=False) + "\n" for p in predictions))


def read(path: Path) -> list[Prediction]:
    """Raises UserError naming file and line where a line is not a prediction."""
    predictions = []
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            predictions.append(Prediction(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}:{number} is not a prediction: {error}") from error
    return predictions
