"""Report the progress of a trial's start to whoever started it (the batch script), by files that the environment names.

SER_HPC_MARK    there, once our code runs; not empty, once the trial has come further than any start before it
SER_HPC_FINAL   an exit code, where it is final: of several ranks srun reports the signal that ended the others instead, and a
                node without Python ends with codes like ours

A process that trains several trials, one after another, writes them for each: the file's name, then `-SEED-FOLD`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ser_hpc.core.errors import UserError
from ser_hpc.run.run_dir import Trial

MARK, FINAL_LINE = "SER_HPC_MARK", "SER_HPC_FINAL"
_MISTAKE = 2  # ser_hpc.core.cli's exit code of a UserError, and argparse's


def of_trial(path: str, trial: Trial) -> str:
    """Return the name of the trial's own file beside `path`."""
    return f"{path}-{trial.seed}-{trial.fold}"


@contextmanager
def marks_of_trial(trial: Trial) -> Iterator[None]:
    """Within it, what is reported is of this trial, one of several; and our code has reached it."""
    before = {name: os.environ[name] for name in (MARK, FINAL_LINE) if name in os.environ}
    os.environ.update({name: of_trial(path, trial) for name, path in before.items()})
    try:
        mark_reached()
        yield
    finally:
        os.environ.update(before)


def mark_reached() -> None:
    """Report that our code runs: this node could start it."""
    if MARK in os.environ:
        with suppress(OSError):
            Path(os.environ[MARK]).touch()


def mark_progress() -> None:
    """Report that the trial has come further than any start before, or saved what the next start need not make."""
    _write(MARK, "further")


def write_final_line(code: int) -> None:
    """Report a final exit code: no other start is to be asked for."""
    _write(FINAL_LINE, str(code))


@contextmanager
def mistakes_are_final() -> Iterator[None]:
    """Report what our own code refuses (argparse exits with 2) as final: another node would refuse it as well."""
    try:
        yield
    except (UserError, SystemExit) as error:
        if isinstance(error, UserError) or error.code == _MISTAKE:
            write_final_line(_MISTAKE)
        raise


def _write(variable: str, text: str) -> None:
    if variable in os.environ:
        with suppress(OSError):  # a full disk may be the very reason
            Path(os.environ[variable]).write_text(text, encoding="utf-8")
