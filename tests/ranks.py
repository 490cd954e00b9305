"""Start processes of the package in tests from warm ones of the session's own: importing torch in each takes 5 CPU seconds.

The launcher's own way of doing so (`launchers.rank_process`), kept over several runs of trials. What is inherited differs from
what a new process has in nothing that a test looks at; tests of a cold start itself start one.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Self
from unittest import mock

from ser_hpc.config.settings import Settings
from ser_hpc.core import cli
from ser_hpc.core.cores import THREADS
from ser_hpc.launchers import local
from ser_hpc.launchers.rank_process import RankProcess, RankStarter, libraries_of
from ser_hpc.run.rank import prepare_allocator

_MOST = 3  # warm processes of a session: each holds some 300 MB
_LIBRARIES = (*libraries_of(Settings()), "sklearn.linear_model", "sklearn.preprocessing", "torchaudio", "audiomentations")
# Variables that libraries may read while they are imported. All others are set in the new process, by program.py.
_OF_IMPORTS = re.compile(
    r"(OMP|MKL|KMP|GOMP|OPENBLAS|NUMEXPR|TORCH|PYTORCH|CUDA|HF|TRANSFORMERS|LD|MALLOC|JE|PYTHON)_?(?!PATH$)"
)
_ALWAYS_THERE = ("PATH", "HOME", "TMPDIR")
_TESTS = str(Path(__file__).parent)
_starters: dict[frozenset[tuple[str, str]], RankStarter] = {}


class _SharedStarter:
    """A RankStarter that stays warm for the next one whose libraries would be imported under the same variables."""

    def __init__(self, libraries: Sequence[str], environment: Mapping[str, str], about: str) -> None:
        self._environment = dict(environment)
        of_imports = {name: value for name, value in environment.items() if _OF_IMPORTS.match(name)}
        key = frozenset(of_imports.items())
        there = {name: os.environ[name] for name in _ALWAYS_THERE if name in os.environ}
        self._starter = _starters.pop(key, None) or RankStarter(
            _LIBRARIES, {**there, **of_imports, "PYTHONPATH": os.pathsep.join([_TESTS, str(Path(_TESTS).parent)])}, "tests"
        )
        _starters[key] = self._starter  # the latest used stands last
        if len(_starters) > _MOST:
            _starters.pop(next(iter(_starters))).__exit__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def is_ready(self) -> bool:
        return self._starter.is_ready()

    def start(
        self, module: str, arguments: Sequence[str], own: Mapping[str, str], log: IO[bytes], text: str = "", cwd: str = ""
    ) -> RankProcess:
        environment = {"SER_HPC_TESTS": json.dumps({**self._environment, **own})}
        return self._starter.start("program", [cwd, module, text, *arguments], environment, log)


@atexit.register
def _close() -> None:
    for starter in _starters.values():
        starter.__exit__()


def call(main: Callable[[Sequence[str]], int], words: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the package in this process, as a shell would see it; ranks that it starts are warm."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.dict(os.environ, environment), redirect_stdout(out), redirect_stderr(err), warm_ranks():
        code = cli.run_to_exit_code(lambda: main(words))
    return subprocess.CompletedProcess(list(words), code, out.getvalue(), err.getvalue())


@contextmanager
def warm_ranks() -> Iterator[None]:
    """Within it, the local launcher of this process starts ranks from warm processes that stay."""
    with mock.patch.object(local, "RankStarter", _SharedStarter):
        yield


class Started:
    """`python -m module arguments` on one thread, to be waited for as subprocess.Popen; what it says goes to a file.

    `program`: Python's text, instead of a module; `cwd`: where it runs, and looks for modules first.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        program: str | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process
        common = {**(os.environ if environment is None else environment), THREADS: "1", "PYTHONUNBUFFERED": "1"}
        prepare_allocator(common)
        starter = _SharedStarter(_LIBRARIES, common, "tests")
        while not starter.is_ready():
            time.sleep(0.05)
        self._rank = starter.start(module, arguments, {}, self._log, program or "", str(cwd or ""))
        self.pid = self._rank.pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        self.returncode = self._rank.poll()
        return self.returncode

    def wait(self, timeout: float = 300.0) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a process of the test", timeout)
            time.sleep(0.01)
        return code

    def communicate(self, timeout: float = 300.0) -> tuple[str, None]:
        self.wait(timeout)
        return self.output(), None

    def output(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
