"""Start a rank on this machine: as a new process or, where several are to come, from a warm process that has the imports.

Importing torch and transformers takes most of a small trial's time. A `RankStarter` has it done once, by `warm_process`, from
which ranks are forked. A rank is the same either way: a child of this process, in a session of its own, with the same
environment, log, signals and exit codes. Whatever goes wrong with the warm process costs its gain and nothing else: ranks that
run are none of its children, and the next one starts cold, or from a new warm process.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal, Protocol, Self

from ser_hpc.config.settings import EncoderModel, Settings
from ser_hpc.launchers import warm_process

# What differs from rank to rank, and no library reads while it is imported; nor anything of ours.
_OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES")
_OURS = "SER_HPC_"
# With these, OpenMP binds the thread that loads it to a core: ranks would inherit that.
_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
# Arrow's jemalloc, which nothing of ours allocates from, would start a thread as it is loaded. torch asks the driver's library
# how many GPUs there are, not CUDA, which could not be forked after that.
_WHILE_IMPORTING = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
_ANSWER_S = 60.0
_SET_SUBREAPER, _GET_SUBREAPER = 36, 37  # of prctl(2)

_ALWAYS = (
    "numpy",
    "pyarrow.compute",
    "pyarrow.parquet",
    "pandas",
    "yaml",
    "pydantic",
    "soundfile",
    "safetensors.torch",
    "torch",
)
_TRANSFORMERS = (
    "transformers.models.auto.modeling_auto",
    *(f"transformers.models.{family}.modeling_{family}" for family in ("wav2vec2", "hubert", "wavlm", "whisper")),
    "transformers.models.whisper.feature_extraction_whisper",
)
_PROBE = ("sklearn.linear_model", "sklearn.preprocessing")


class RankProcess(Protocol):
    """A rank, as subprocess.Popen is one."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit code, or minus the signal; None while it runs."""

    def wait(self) -> int:
        """Wait for its end; return as `poll`."""


def libraries_of(settings: Settings) -> tuple[str, ...]:
    """List what a trial of these settings imports beside `ser_hpc`, and takes long; nothing where ranks should start cold."""
    if settings.train.strategy != "ddp":  # DeepSpeed looks for GPUs as it is imported
        return ()
    model = _TRANSFORMERS if isinstance(settings.model, EncoderModel) else ("torchaudio",)
    return (*_ALWAYS, *model, *(_PROBE if settings.is_probe else ()))


class RankStarter:
    """Context manager: start ranks. `libraries`: to be imported once for all; none: every rank starts cold.

    `environment`: what its ranks have in common; one that differs in what libraries may read while they are imported starts
    cold. `about`: said in the list of processes.
    """

    def __init__(self, libraries: Sequence[str], environment: Mapping[str, str], about: str) -> None:
        bound = any(name in environment for name in _BINDING)
        self._libraries = () if bound else tuple(libraries)
        self._environment, self._about = dict(environment), about
        self._warm: _WarmProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(for_good=True)

    def is_ready(self) -> bool:
        """Tell whether a start need not wait for imports. The first call lets them begin."""
        if self._warm is not None and self._warm.state() == "ended":
            self._close(for_good=not self._warm.has_been_ready)
        if self._warm is None and self._libraries:
            try:
                self._warm = _WarmProcess(self._libraries, self._environment, self._about)
            except OSError:
                self._libraries = ()
        return self._warm is None or self._warm.has_been_ready

    def start(self, module: str, arguments: Sequence[str], own: Mapping[str, str], log: IO[bytes]) -> RankProcess:
        """Run `python -m module arguments` with the log as its output. `own`: the rank's own variables.

        Raises OSError where no process can be started.
        """
        environment, warm = {**self._environment, **own}, self._warm
        if warm is not None and warm.state() == "ready" and _of_imports(environment) == _of_imports(self._environment):
            try:
                return warm.fork(module, arguments, environment, log)
            except (OSError, ValueError):
                self._close(for_good=warm.state() != "ended")
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _close(self, *, for_good: bool) -> None:
        """End the warm process; the next start gets another one or, `for_good`, none."""
        if self._warm is not None:
            self._warm.close()
        self._warm, self._libraries = None, () if for_good else self._libraries


def _of_imports(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _OF_A_RANK and not name.startswith(_OURS)}


class _WarmProcess:
    """The warm process, from this side. While there is one, this process adopts its descendants' orphans: the ranks."""

    def __init__(self, libraries: Sequence[str], environment: Mapping[str, str], about: str) -> None:
        self.has_been_ready = False
        self._ranks: list[_WarmRank] = []
        self._adopted_before = _adopt_orphans(True)
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        with theirs, tempfile.TemporaryFile() as said:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(warm_process.__file__)), str(theirs.fileno()), about, *libraries],
                env={**environment, **_WHILE_IMPORTING},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def state(self) -> Literal["importing", "ready", "ended"]:
        with suppress(BlockingIOError):
            try:
                word = self._control.recv(1)
            except ConnectionError:
                word = b""
            if not word:
                return "ended"
            self.has_been_ready = True
        return "ready" if self.has_been_ready else "importing"

    def fork(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> RankProcess:
        """Start a rank. Raises OSError or ValueError if it did not come about; then nothing of it is left."""
        request = {"module": module, "arguments": list(arguments), "environment": dict(environment)}
        channel, theirs = socket.socketpair()
        channel.settimeout(_ANSWER_S)
        with channel, channel.makefile("rw", encoding="ascii") as words:
            with theirs:
                socket.send_fds(self._control, [b"."], [log.fileno(), theirs.fileno()])
            words.write(json.dumps(request) + "\n")
            words.flush()
            rank = _WarmRank(int(words.readline()))
            if rank.poll() is not None:
                raise ChildProcessError(f"process {rank.pid} has ended")
            words.write("go\n")
            words.flush()
            self._ranks.append(rank)
        return rank

    def close(self) -> None:
        """End it; what it forked runs on."""
        self._control.close()
        self._process.kill()
        self._process.wait()
        _adopt_orphans(self._adopted_before)
        for rank in self._ranks:
            rank.reap_orphans()


class _WarmRank:
    """A rank that the warm process forked, and that this process has adopted."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        code = self._wait(0)
        assert code is not None
        return code

    def reap_orphans(self) -> None:
        """Take notice of the ends of its own children, which have outlived it: they are this process's as well."""
        with suppress(ChildProcessError):
            while self._code is not None and os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass

    def _wait(self, options: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
                self.reap_orphans()
        return self._code


def _adopt_orphans(adopt: bool) -> bool:
    """Have descendants whose parents end become this process's children, or not; return how it was. Raises OSError."""
    library, before = ctypes.CDLL(None, use_errno=True), ctypes.c_int()
    if library.prctl(_GET_SUBREAPER, ctypes.byref(before)) or library.prctl(_SET_SUBREAPER, ctypes.c_ulong(adopt)):
        raise OSError(ctypes.get_errno(), "prctl")
    return bool(before.value)
