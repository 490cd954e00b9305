"""Keep runs in Weights & Biases: the run and its trials as runs of one group, resumed by their ids."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from ser_hpc.core.errors import UserError
from ser_hpc.results.tracking.record import FAILED, Record
from ser_hpc.results.tracking.tracker import Tracker, check_answers, import_library

_ANSWER_S = 60.0
_URL = "https://api.wandb.ai"
_NOBODY = "undisclosed"


class WandbTracker(Tracker):
    """A project of W&B. With WANDB_MODE=offline a folder, into which each call writes the whole run."""

    def __init__(self, url: str | None, project: str) -> None:
        super().__init__(url or os.environ.get("WANDB_BASE_URL") or _URL, project)
        self._offline = os.environ.get("WANDB_MODE") == "offline"
        if not self._offline:
            check_answers(str(self.url))
        self._wandb = import_library("wandb")
        self._seen_at = ""

    def keep(self, record: Record) -> int:
        with self._explained():
            run = self._wandb.init(
                project=self.project,
                id=record.key,
                name=record.name,
                group=record.group,
                job_type="trial" if record.parent else "run",
                config=record.settings,
                notes=record.summary,
                resume=None if self._offline else "allow",
                settings=self._settings(),
            )
            with run:
                self._seen_at = self._seen_at or run.url or run.settings.sync_dir
                new = [point for point in record.points if point.step >= run.starting_step]  # the step after the last one
                for point in new:
                    run.log(point.numbers, step=point.step)
                scores = {name: score for name, score in record.scores.items() if run.summary.get(name) != score}
                run.summary.update(scores | {"state": record.state})
                for name, text in record.files.items():
                    (Path(run.dir) / name).write_text(text, encoding="utf-8")  # what lies there is sent
                run.finish(exit_code=1 if record.state in FAILED else 0)
            return sum(len(point.numbers) for point in new) + len(scores)

    def close(self) -> str:
        return f"{self._seen_at} (offline: `wandb sync` sends it)" if self._offline else self._seen_at

    def _settings(self) -> object:
        """Return settings that send what is logged alone: nothing of this machine, its processes, its user's code."""
        return self._wandb.Settings(
            base_url=self.url,
            init_timeout=_ANSWER_S,
            login_timeout=_ANSWER_S,
            host=_NOBODY,
            username=_NOBODY,
            silent=True,
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise what W&B refuses as a UserError, in its own words."""
        try:
            yield
        except self._wandb.Error as error:
            host = urlsplit(str(self.url)).hostname
            raise UserError(f"W&B at {host} refuses (who are you? wandb login, or WANDB_API_KEY): {error}") from error
