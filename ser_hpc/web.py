"""Try a trained model on a local page: `python -m ser_hpc.web MODEL_OR_RUN`, then http://127.0.0.1:7860 in a browser.

Record or drop a clip: the page shows its class, with a calibrated confidence, and, of more than 8 s, the probabilities over
time. Nothing leaves this machine, and nothing is kept (pip install 'ser_hpc[web]').
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ser_hpc.core import cli, cores
from ser_hpc.core.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Load, and serve until Ctrl-C. Raises UserError."""
    given = _arguments(argv)
    from ser_hpc.inference.load import load  # torch: not before the arguments are read
    from ser_hpc.inference.page import LOCAL, open_page

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not to die before what was uploaded is removed
    with _listening(given.host, given.port) as listening, ExitStack() as stack:
        predictor = load(given.model, fold=given.fold, seed=given.seed, device=given.device)
        app = stack.enter_context(open_page(predictor, given.host))
        import uvicorn

        address = f"http://{given.host}:{listening.getsockname()[1]}"
        print(f"{predictor.source}: {address}; Ctrl-C ends it", file=sys.stderr, flush=True)
        if given.host not in LOCAL:
            print("whoever reaches this machine can use the page; it has no password", file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listening])
    return 0


def _listening(host: str, port: int) -> socket.socket:
    """Open the port. Raises UserError where it is another's."""
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{host}:{port} cannot be opened ({reason}): give another --port, or 0 for any free one") from error


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m ser_hpc.web", description=__doc__, formatter_class=cli.Help)
    parser.add_argument("model", metavar="MODEL_OR_RUN", type=Path, help="a run directory, or an exported folder")
    parser.add_argument("--fold", type=int, metavar="K", help="of a run the model of this fold alone")
    parser.add_argument("--seed", type=int, metavar="S", help="of this seed (default: the first that is finished)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, which this machine alone can reach")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    return parser.parse_args(argv)


if __name__ == "__main__":
    cores.limit_threads(os.environ, cores.process_share(os.environ))  # before torch is imported
    cli.run_main(main)
