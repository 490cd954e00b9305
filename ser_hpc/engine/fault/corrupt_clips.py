"""Count training clips whose bytes are damaged, for `step_metrics`: each is named once, and too many of them end training.

Such a clip adds nothing to a step's loss, while the weight that the step divides by stays what was known before it, on every
rank: the step is smaller by the clip's share, and nobody had to wait for the rank that found the damage. What is damaged is
damaged at every start, so a resume goes the same way.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np

from ser_hpc.core.errors import UserError, listed
from ser_hpc.engine.fault.checkpoint import TrainState
from ser_hpc.engine.progress import continue_lines
from ser_hpc.run.run_dir import AttemptDir
from ser_hpc.shards.index import PACK_AGAIN, ShardIndex
from ser_hpc.shards.read import CorruptionCause


class CorruptClips:
    """Every rank keeps count alike; rank 0 (`active`) writes damaged.jsonl, a line a clip, after what `before` found.

    `clips`: of the training part, of which `most` (a fraction) may be damaged.
    """

    def __init__(
        self,
        attempt: AttemptDir,
        before: AttemptDir | None,
        state: TrainState,
        index: ShardIndex,
        clips: int,
        most: float,
        *,
        active: bool,
    ) -> None:
        self._path, self._index, self._clips, self._most, self._active = attempt.damaged, index, clips, most, active
        self._seen: dict[int, CorruptionCause] = {}
        self._written: set[str] = set()
        if active and before is not None and before.damaged.exists():
            with continue_lines(attempt.damaged, before.damaged, "step", state.step):
                pass
            self._written = {json.loads(line)["clip"] for line in attempt.damaged.read_text(encoding="utf-8").splitlines()}

    def add(self, positions: np.ndarray, causes: np.ndarray, state: TrainState) -> None:
        """Note a step's clips, and what was wrong with each (0: nothing). Raises UserError when there are too many."""
        new = {int(position): CorruptionCause(int(cause)) for position, cause in zip(positions, causes, strict=True) if cause}
        new = {position: cause for position, cause in new.items() if position not in self._seen}
        if not new:
            return
        self._seen |= new
        if self._active:
            lines = [line for position, cause in new.items() if (line := self._line(position, cause, state.step))]
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        if len(self._seen) > self._most * self._clips:
            raise UserError(
                f"{len(self._seen)} of the {self._clips} training clips are damaged so far, more than data.max_corrupt="
                f"{self._most:g} allows: {self._counts()}: {listed([self._index.key(i) for i in self._seen], 4)}. All damage: "
                f"python -m ser_hpc.shards.verify FOLDER; {PACK_AGAIN}"
            )

    def _line(self, position: int, cause: CorruptionCause, step: int) -> str | None:
        key = self._index.key(position)
        if key in self._written:
            return None
        return json.dumps({"step": step, "shard": self._shard(position), "clip": key, "cause": cause.description}) + "\n"

    def _counts(self) -> str:
        """Count by shard and cause, the most first."""
        counts = Counter((self._shard(position), cause.description) for position, cause in self._seen.items())
        return listed([f"{count} in {shard} ({cause})" for (shard, cause), count in counts.most_common()])

    def _shard(self, position: int) -> str:
        number = self._index.shard[position]
        return str(self._index.roots[self._index.dataset[number]] / self._index.shards[number].path)
