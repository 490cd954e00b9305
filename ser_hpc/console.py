"""What every command line of the project does alike: user errors in words and exit code 2, Ctrl-C as 130."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ser_hpc.errors import UserError


def run(main: Callable[[], int]) -> None:
    """Run an entry point and exit with its code; foreseeable mistakes print `error: ...` without a traceback."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
