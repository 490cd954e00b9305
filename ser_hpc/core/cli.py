"""Run every command line alike: user errors as messages with exit code 2, Ctrl-C as 130; consoles, logs and --help."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from ser_hpc.core.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

_OF_A_PIPE = 10_000  # columns
_NARROWEST = 20
# What the place of a file is to blame for, whatever wanted to write or read there: no mistake of the program.
_PLACES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT}


def run_main(main: Callable[[], int]) -> None:
    """Run an entry point and exit with its code; foreseeable mistakes print `error: ...` without a traceback."""
    sys.exit(run_to_exit_code(main))


def run_to_exit_code(main: Callable[[], int]) -> int:
    """Run an entry point and return the exit code that a shell would see."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks is no reason to fall
    try:
        return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _PLACES or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr, flush=True)
        return 2


def _open_closed_streams() -> None:
    """Open what a shell has closed (`>&-`) to nowhere: no file of ours may take its number, which children would write into."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode)  # noqa: SIM115  # gets the lowest free number, its own
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Within it, what this process and its children print, output and errors alike, is appended to a file."""
    before = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with path.open("ab") as file:
            _flush()
            for number, _ in before:
                os.dup2(file.fileno(), number)
        yield
    finally:
        _flush()
        for number, kept in before:
            os.dup2(kept, number)
            os.close(kept)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def make_console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """Make a console, here alone: no text is ever read as markup (colours are `style=` and Text), and a pipe has no width.

    `soft_wrap`: lines are left whole; without it they are broken between words where a terminal ends.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    plain: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False, "soft_wrap": soft_wrap}
    if stream.isatty():
        return Console(stderr=stderr, **plain)
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and int(columns) >= _NARROWEST else _OF_A_PIPE
    return Console(file=cast(IO[str], _Pipe(stream)), width=width, **plain)


class Help(argparse.RawDescriptionHelpFormatter):
    """--help for the terminal's width: paragraphs are filled anew, lines of a list broken below their text, commands whole."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs: list[str] = []
        before = ""
        for line in text.splitlines():
            goes_on = bool(line and before) and not (line[0].isspace() or before[0].isspace())
            paragraphs[-1:] = [f"{paragraphs[-1]} {line}"] if goes_on else [*paragraphs[-1:], line]
            before = line
        return "\n".join(_filled(paragraph, width) for paragraph in paragraphs)


def _filled(line: str, width: int) -> str:
    if line.startswith(" ") and ("python " in line or line.endswith("\\")):
        return line
    head = re.match(r" +(\S.*?  +)?", line)  # an entry of a list, as `  --json   the same for programs`
    return textwrap.fill(line, width, subsequent_indent=" " * len(head[0]) if head else "", break_on_hyphens=False)


class _Pipe:
    """A stream without the blanks with which tables fill their rows: as wide as the longest line, they would fill screens."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(re.sub(r" +$", "", text, flags=re.MULTILINE))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
