"""Import libraries once, and fork a process that has them for each rank: the local launcher's warm process.

    python warm_process.py CONTROL RUN LIBRARY ...

`rank_process` starts it, with a socket at the descriptor CONTROL. RUN is there for whoever looks at `ps`. A file of the
standard library alone, run by its path: `ser_hpc` is never imported here, so that each rank imports the run's own copy of the
code. With a thread, or once CUDA has been asked anything, nothing is forked.

A rank is no child of this process but of the launcher (which adopts orphans): it lives on when this process is killed, and the
launcher learns its exit code from the kernel. It ends, before it has run anything, if the launcher does not hear of it; this
process ends with the launcher's end of the socket.
"""

import gc
import importlib
import json
import os
import runpy
import socket
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

READY = b"+"


def warm_up(libraries: list[str]) -> bool:
    """Import them, as far as they are installed; tell whether this process may fork."""
    gc.disable()  # nothing imported is garbage
    for name in libraries:
        if find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    gc.freeze()  # a collection in a rank leaves these pages shared
    if (first := os.fork()) == 0:  # before a fork, OpenBLAS ends its threads, until it is used
        os._exit(_sees_cuda_broken())
    _, status = os.waitpid(first, 0)
    return status == 0 and len([*Path("/proc/self/task").iterdir()]) == 1


def _sees_cuda_broken() -> bool:
    """Tell, in a fork, whether an import has asked CUDA something."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda._is_in_bad_fork()


def serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork a rank for each request; return it in that rank, and None in this process when no more can come."""
    while True:
        word, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not word:
            return None
        if (middle := os.fork()) == 0:
            middle = os.getpid()
            if os.fork():
                os._exit(0)  # and so its child is the launcher's
            control.close()
            log, channel = descriptors
            return _begin(middle, log, socket.socket(fileno=channel))
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(middle, 0)


def _begin(middle: int, log: int, channel: socket.socket) -> dict[str, Any]:
    """Become a process such as the launcher would start, and wait until it says that it knows this one."""
    os.setsid()
    while os.getppid() == middle:
        time.sleep(0.001)
    with channel, channel.makefile("rw", encoding="ascii") as words:
        request: dict[str, Any] = json.loads(words.readline() or "null")
        words.write(f"{os.getpid()}\n")
        words.flush()
        if request is None or not words.readline():
            os._exit(1)
    os.write(log, os.pread(1, os.fstat(1).st_size, 0))  # what importing had to say, as every rank's own import would
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return request


def become(request: dict[str, Any]) -> None:
    """Take on the rank's environment and arguments, and what a new process has of its own; then run its module."""
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[1:] = request["arguments"]
    sys.orig_argv[1:] = ["-m", request["module"], *request["arguments"]]
    Path("/proc/self/comm").write_text(request["module"][-15:], encoding="ascii")
    if "numpy.random" in sys.modules:  # Python's own generator sees to itself, torch's begins with a constant
        sys.modules["numpy.random"].seed()
    importlib.invalidate_caches()
    gc.enable()
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if not sys.flags.safe_path:
        sys.path[0] = str(Path.cwd())  # where `python -m` looks first, in place of this file's folder
    control = socket.socket(fileno=int(sys.argv[1]))
    if warm_up(sys.argv[3:]):
        control.send(READY)
        if (request := serve(control)) is not None:
            become(request)
