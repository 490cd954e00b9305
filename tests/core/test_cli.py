"""Exit codes and words of every command line: what a file's place is to blame for is told, our own mistakes are raised."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ser_hpc.core import cli
from ser_hpc.core.errors import UserError, counted


def ending(error: BaseException) -> int:
    def main() -> int:
        raise error

    return cli.run_to_exit_code(main)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG])
def test_places_that_cannot_be_written_are_told_in_words(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(OSError(number, os.strerror(number), "/some/where")) == 2
    assert capsys.readouterr().err == f"error: /some/where: {os.strerror(number)}\n"


def test_what_is_nobodys_mistake_but_ours_keeps_its_traceback(tmp_path: Path) -> None:
    for error in (OSError(errno.EBADF, "Bad file descriptor"), FileNotFoundError(2, "No such file", "x"), ValueError("x")):
        with pytest.raises(type(error)):
            ending(error)
    assert ending(UserError("x")) == 2 and ending(KeyboardInterrupt()) == 130


def test_output_that_a_shell_has_closed_goes_nowhere(tmp_path: Path) -> None:
    """And no file of ours takes its number: what a child prints would be written into it."""
    program = """
import os, subprocess, sys
from ser_hpc.core import cli
def main():
    with open(sys.argv[1], "w") as file:
        cli.make_console().print("shown")
        print("said")
        subprocess.run([sys.executable, "-c", "print(1)"], check=True)
        file.write("whole")
    return 3
cli.run_main(main)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "file")]
    done = subprocess.run(["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], check=False)
    assert done.returncode == 3 and (tmp_path / "file").read_text() == "whole"


def test_numbers_and_nouns() -> None:
    assert [counted(number, "clip") for number in (0, 1, 2, 1440)] == ["0 clips", "1 clip", "2 clips", "1,440 clips"]
    assert [counted(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
