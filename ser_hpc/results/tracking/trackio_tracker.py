"""Keep runs in Trackio, on this machine, a server, or a Space: the run and its trials as runs of one group."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from ser_hpc.results.tracking.record import Point, Record
from ser_hpc.results.tracking.tracker import Tracker, check_answers, import_library


class TrackioTracker(Tracker):
    """A project of Trackio, which keeps no files here."""

    def __init__(self, url: str | None, project: str) -> None:
        super().__init__(url, project)
        self._place: dict[str, Any] = {}
        if url and "://" in url:
            check_answers(url)
            self._place = {"server_url": url}
        elif url:
            check_answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
            self._place = {"space_id": url}
        self._trackio = import_library("trackio")

    def keep(self, record: Record) -> int:
        # It has no summary: scores are numbers behind the last step, once they are there.
        scores = [Point(record.step + bool(record.points), record.scores)] if record.scores else []
        with redirect_stdout(StringIO()):  # a line for each run and step of its own; warnings go elsewhere
            run = self._trackio.init(
                project=self.project,
                name=record.name,
                group=record.group,
                config=record.settings,
                resume="allow",
                embed=False,
                auto_log_gpu=False,  # of this machine, which is not the one that trained
                auto_log_cpu=False,
                **self._place,
            )
            new = [point for point in (*record.points, *scores) if point.step >= run._next_step]
            for point in new:
                run.log(point.numbers, step=point.step)
            run.finish()
        return sum(len(point.numbers) for point in new)

    def close(self) -> str:
        return self.url or f"trackio show --project {self.project}"
