"""How an attempt ended is read from what this version writes and from what earlier ones did."""

from __future__ import annotations

from pathlib import Path

import pytest

from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.run.attempt import end_attempt
from ser_hpc.run.attempt_end import AttemptEnd, read_end
from ser_hpc.run.run_dir import AttemptDir, RunDir, Trial


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    attempt = RunDir(tmp_path).trial(Trial(0, 0)).claim()
    write_json(attempt.progress, {"step": 7})
    return attempt


def test_an_end_is_read_as_it_was_written(attempt: AttemptDir) -> None:
    end_attempt(attempt, "failed", "loss is nan", shared=True)
    host = read_json(attempt.end)["host"]
    assert read_end(attempt) == AttemptEnd("failed", 7, "loss is nan", host, shared=True)


def test_an_earlier_versions_end_is_read(attempt: AttemptDir) -> None:
    write_json(attempt.end, {"how": "hung", "error": None, "host": "n1", "when": 1.0})
    assert read_end(attempt) == AttemptEnd("hung", 7, None, "n1")


@pytest.mark.parametrize("content", ["", "[]", "{}", '"how"', "3"])
def test_an_end_that_cannot_be_read_is_a_kill(attempt: AttemptDir, content: str) -> None:
    attempt.end.write_text(content)
    assert read_end(attempt) == AttemptEnd("killed", 7, None, None)
