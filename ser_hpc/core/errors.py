"""Define the errors that a user can cause and mend; every room may raise them, `ser_hpc.core.cli` makes exit codes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class UserError(Exception):
    """A foreseeable mistake: what was given, what is allowed and what to do. Shown without a traceback; exit code 2."""


class SharedError(UserError):
    """A mistake that every trial of the run shares: what one ended with, all others would."""


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
    """Raise a UserError of the block as a SharedError: it is not of the one trial that met it first."""
    try:
        yield
    except UserError as error:
        raise SharedError(str(error)) from error


def counted(number: int, what: str, several: str = "") -> str:
    """Format `1 trial`, `3 trials`, `1,440 clips`; `several` where its plural is not made with an s."""
    return f"{number:,} {what if number == 1 else several or what + 's'}"


def listed(names: Sequence[object], limit: int = 8) -> str:
    """Format names for a message, never thousands of them: `a, b, c and 12 more`."""
    shown = ", ".join(str(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"
