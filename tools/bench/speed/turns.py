"""Contenders that take turns, each in a process of its own.

One that fails or hangs takes none of the others along; each has its memory to itself, and whose turn it is, the machine.
"""

from __future__ import annotations

import traceback
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from speed.task import Task

from ser_hpc.shards.audio import RATE

_PATIENCE_S = 5.0
KINDS = ("ours", "alone", "A", "B", "C", "D", "E")


class Lost(Exception):  # noqa: N818  (a contender, not an error of ours)
    """It failed, or did not answer in time; says why in a line."""


class Turn:
    """One contender's process. `loss`, `how` once it is `ready`."""

    def __init__(self, kind: str, task: Task) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, kind, task), name=f"contender {kind}")
        self._process.start()
        theirs.close()

    def answer(self, limit_s: float) -> Any:
        """What it says next. Raises Lost, having ended it, if it failed or says nothing for so long."""
        try:
            if not self._pipe.poll(max(0.0, limit_s)):
                raise Lost(f"no answer within {limit_s:.0f} s")
            right, said = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise Lost(f"its process ended with code {self._process.exitcode}") from None
        except Lost:
            self.end()
            raise
        if not right:
            self.end()
            raise Lost(said)
        return said

    def train(self, number: int, updates: int, limit_s: float) -> dict[str, Any]:
        """Round `number`, cut after so many updates: `seconds`, real `samples` of each clip that was trained on,
        the `peak_gb` of the rounds after the first, and `how`."""
        self._pipe.send((number, updates))
        answer: dict[str, Any] = self.answer(limit_s)
        return answer

    def end(self) -> None:
        self._pipe.close()  # an idle one ends by itself then
        self._process.join(_PATIENCE_S)
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, kind: str, task: Task) -> None:
    try:
        contender, clips = _made(kind, task)
        pipe.send((True, {"how": contender.how, "loss": contender.loss(_shortest(clips))}))
        while True:
            number, updates = pipe.recv()
            warm_up, positions = clips.drawn(number, task.update)
            positions = positions[: updates * task.update]
            seconds = contender.train(warm_up, positions)
            samples = clips.index.num_samples[positions].clip(max=_most(contender)).tolist()
            answer = {"seconds": seconds, "samples": samples, "peak_gb": _peak_gb(task.device), "how": contender.how}
            pipe.send((True, answer))
            if not number:
                _forget_peak(task.device)
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc()
        pipe.send((False, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"))


def _made(kind: str, task: Task) -> tuple[Any, Any]:
    import torch
    from speed.task import Clips, quiet

    quiet()
    torch.set_num_threads(task.threads)
    clips = Clips(task.shards)
    if kind in ("ours", "alone"):
        from speed import contenders

        return {"ours": contenders.Ours, "alone": contenders.Alone}[kind](task, clips), clips
    if kind in ("A", "B", "C"):
        from speed import trainer

        return trainer.SETTINGS[kind](task, clips), clips
    from speed.speechbrain import Recipe

    return Recipe(task, clips, dynamic=kind == "E"), clips


def _most(contender: Any) -> int | None:
    return None if contender.most_s is None else round(contender.most_s * RATE)


def _shortest(clips: Any) -> int:
    return int(clips.index.num_samples.argmin())


def _peak_gb(device: str) -> float:
    """The most since `_forget_peak`: on a GPU of tensors, on a CPU of the process, libraries included."""
    if device != "cuda":
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9
    import torch

    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.empty_cache()  # the others need the room
    return peak


def _forget_peak(device: str) -> None:
    """What loading took, and batch sizes that were only tried, is not what training takes."""
    if device != "cuda":
        Path("/proc/self/clear_refs").write_text("5")
        return
    import torch

    torch.cuda.reset_peak_memory_stats()
