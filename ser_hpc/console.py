"""What every command line of the project does alike: user errors in words and exit code 2, Ctrl-C as 130."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ser_hpc.errors import UserError


def run(main: Callable[[], int]) -> None:
    """Run an entry point and exit with its code; foreseeable mistakes print `error: ...` without a traceback."""
    sys.exit(exit_code(main))


def exit_code(main: Callable[[], int]) -> int:
    """Run an entry point; what a shell would see of it."""
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
