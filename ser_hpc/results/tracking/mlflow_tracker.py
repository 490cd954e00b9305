"""Keep runs on an MLflow server: an experiment a project, a run and its trials as its child runs, each known by a tag.

Through the client that sends what it is given (`MlflowClient`): MLflow's fluent calls add user, host and source file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ser_hpc.core.atomic_io import json_digest
from ser_hpc.core.errors import UserError
from ser_hpc.results.tracking.record import FAILED, Record
from ser_hpc.results.tracking.tracker import Tracker, check_answers, import_library

# Tags: whose run it is, how it stands, the last step of its curves, and a digest of its files.
_KEY, _STATE, _STEP, _FILES = "ser_hpc.key", "ser_hpc.state", "ser_hpc.step", "ser_hpc.files"
_PARAMS, _METRICS = 100, 1000  # in one request: MLflow's own limits
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its own are minutes of them
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class MlflowTracker(Tracker):
    """An experiment of an MLflow server."""

    def __init__(self, url: str | None, project: str) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)  # read when it is imported
        super().__init__(url or os.environ.get("MLFLOW_TRACKING_URI"), project)
        if not self.url:
            raise UserError("--to mlflow needs a server: --url http://HOST:5000, or MLFLOW_TRACKING_URI in the environment")
        if "://" not in self.url and not self.url.startswith("databricks"):
            raise UserError(f"{self.url} is no address of an MLflow server: write http://HOST:5000")
        if self.url.startswith(("http://", "https://")):
            check_answers(self.url)
        self._mlflow = import_library("mlflow")
        with self._explained():
            self._client = self._mlflow.MlflowClient(tracking_uri=self.url)
            experiment = self._client.get_experiment_by_name(project)
            self._experiment = experiment.experiment_id if experiment else self._client.create_experiment(project)
        self._ids: dict[str, str] = {}  # of MLflow's runs, by the records' keys

    def keep(self, record: Record) -> int:
        with self._explained():
            run = self._find(record.key) or self._create(record)
            self._ids[record.key] = run.info.run_id
            known, tags = run.data, run.data.tags
            lacking = {name: value for name, value in map(_param, record.settings.items()) if name not in known.params}
            last = int(tags.get(_STEP, 0))
            new = [
                (point.step, name, number)
                for point in record.points
                if point.step > last
                for name, number in point.numbers.items()
            ]
            scores = {_name(name): score for name, score in record.scores.items()}
            new += [(record.step, name, score) for name, score in scores.items() if known.metrics.get(name) != score]
            self._send(run.info.run_id, record, lacking, new)
            step = max(last, record.points[-1].step if record.points else 0)  # a new attempt may begin with less
            state = {_STATE: record.state, "mlflow.note.content": record.summary, _STEP: str(step)}
            self._client.log_batch(run.info.run_id, tags=[self._mlflow.entities.RunTag(*each) for each in state.items()])
            if record.files and tags.get(_FILES) != json_digest(record.files):
                for name, text in record.files.items():
                    self._client.log_text(run.info.run_id, text, name)
                self._client.set_tag(run.info.run_id, _FILES, json_digest(record.files))
            self._end(run, record)
            return len(new)

    def close(self) -> str:
        place = urlsplit(str(self.url))
        shown = place._replace(netloc=place.netloc.rpartition("@")[2]).geturl().rstrip("/")  # without a password
        return f"{shown}/#/experiments/{self._experiment}/runs/{next(iter(self._ids.values()))}"

    def _find(self, key: str) -> Any:
        found = self._client.search_runs([self._experiment], f"tags.`{_KEY}` = '{key}'", max_results=1)
        return found[0] if found else None

    def _create(self, record: Record) -> Any:
        tags = {_KEY: record.key} | ({"mlflow.parentRunId": self._ids[record.parent]} if record.parent else {})
        return self._client.create_run(self._experiment, _milliseconds(record.started), tags, record.name)

    def _send(self, run_id: str, record: Record, params: Mapping[str, str], numbers: list[tuple[int, str, float]]) -> None:
        """Send settings and numbers; what is sent twice after a cut connection is the same, and kept once."""
        entities, when = self._mlflow.entities, _milliseconds(record.started) or 0  # steps have no time of their own
        for some in _chunks([entities.Param(name, value) for name, value in params.items()], _PARAMS):
            self._client.log_batch(run_id, params=some)
        for some in _chunks([entities.Metric(_name(name), number, when, step) for step, name, number in numbers], _METRICS):
            self._client.log_batch(run_id, metrics=some)

    def _end(self, run: Any, record: Record) -> None:
        status = "FINISHED" if record.finished else "FAILED" if record.state in FAILED else "RUNNING"
        ended = _milliseconds(record.ended)
        if record.finished and (run.info.status, run.info.end_time) != (status, ended):
            self._client.set_terminated(run.info.run_id, status, ended)
        elif run.info.status != status:
            self._client.update_run(run.info.run_id, status)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise what MLflow or its server refuses as a UserError, in its own words."""
        try:
            yield
        except self._mlflow.exceptions.MlflowException as error:
            raise UserError(f"MLflow refuses, or was lost in between; the same command goes on: {error.message}") from error


def _param(setting: tuple[str, str]) -> tuple[str, str]:
    return _name(setting[0]), setting[1]


def _name(name: str) -> str:
    """Return a name as MLflow allows it."""
    return re.sub(r"[^\w./: -]", "_", name)


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
