"""Look up a run's test clips in its shards, where these are still there: who speaks, how long, and the sound itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ser_hpc.core.errors import UserError
from ser_hpc.results.run_panel import LEGACY_REASON
from ser_hpc.run.run_dir import RunDir

if TYPE_CHECKING:
    from ser_hpc.shards.index import ShardIndex

WORDS = ("gender", "language", "intensity")  # columns whose groups a report compares


@dataclass(frozen=True, slots=True)
class ShardClips:
    """The test clips of a run in the index of its shards; `positions`: of each clip there, by `plan_checks.clip_name`."""

    index: ShardIndex
    positions: dict[str, int]

    def words(self, column: str) -> dict[str, str]:
        """Return each clip's word in a column of the metadata, where it has one."""
        words = getattr(self.index.metadata, column).take(np.array([*self.positions.values()], dtype=np.int64)).tolist()
        return {clip: word for clip, word in zip(self.positions, words, strict=True) if word}

    def seconds(self) -> dict[str, float]:
        """Return each clip's length in seconds."""
        lengths = self.index.metadata.seconds[np.array([*self.positions.values()], dtype=np.int64)].tolist()
        return dict(zip(self.positions, lengths, strict=True))

    def sounds(self, clips: Iterable[str]) -> dict[str, bytes]:
        """Read the sound of some clips, each a FLAC file of 16 kHz; those that cannot be read are left out."""
        from ser_hpc.shards.read import ClipReader, clip_extents, decode_clip

        clips = [clip for clip in clips if clip in self.positions]
        extents = clip_extents(self.index, [self.positions[clip] for clip in clips])
        payloads = ClipReader(self.index.roots).fetch(extents)
        return {
            clip: payload
            for clip, extent, payload in zip(clips, extents, payloads, strict=True)
            if isinstance(payload, bytes)
            and isinstance(decode_clip(extent, payload, self.index.roots[extent.dataset]), np.ndarray)
        }


def find_shard_clips(run: RunDir, plan: dict[str, Any]) -> tuple[ShardClips | None, str | None]:
    """Return the test clips of a run, or None and the reason; no report is lost for it."""
    if "run" not in plan:
        return None, LEGACY_REASON
    from ser_hpc.run.planned_clips import open_planned_clips  # Arrow

    try:
        planned = open_planned_clips(run, plan)
        tested = np.unique(np.concatenate([fold.test.positions for fold in planned.folds.folds]))
        names = (planned.index.metadata.corpus.take(tested).tolist(), planned.index.metadata.utterance_id[tested].tolist())
        keys = [f"{corpus}-{utterance}" for corpus, utterance in zip(*names, strict=True)]
    except (UserError, OSError, ValueError, MemoryError) as error:
        return None, str(error).partition("\n")[0] or type(error).__name__
    return ShardClips(planned.index, dict(zip(keys, tested.tolist(), strict=True))), None
