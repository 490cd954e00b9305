"""Errors that a user can cause and mend; every room may raise them, and only `ser_hpc.core.cli` turns them into exit codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class UserError(Exception):
    """A foreseeable mistake: says what was given, what is allowed and what to do. Shown without a traceback; exit code 2."""


class SharedError(UserError):
    """A mistake of which no trial of the run is free: what one ended with, all others would."""


class ConfigError(UserError):
    """Every mistake of a configuration at once, each as `path: what is wrong`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            f"{counted(len(self.problems), 'mistake')} in the settings:\n"
            + "\n".join(f"  {problem}" for problem in self.problems)
        )


@contextmanager
def shared_by_all_trials() -> Iterator[None]:
    """What goes wrong here has nothing to do with the one trial that came to it first."""
    try:
        yield
    except UserError as error:
        raise SharedError(str(error)) from error


def counted(number: int, what: str, several: str = "") -> str:
    """`1 trial`, `3 trials`, `1,440 clips`; `several` where its plural is not made with an s."""
    return f"{number:,} {what if number == 1 else several or what + 's'}"


def listed(names: Sequence[object], limit: int = 8) -> str:
    """`a, b, c and 12 more`: names in a message, never thousands of them."""
    shown = ", ".join(str(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"
