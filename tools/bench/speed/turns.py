"""Contenders that take turns, each in a process of its own.

One that fails or hangs takes none of the others along; each has its memory to itself, and whose turn it is, the machine.
"""

from __future__ import annotations

import traceback
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from speed.task import Task

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
        from speed.rounds import Rounds  # torch and the contender's libraries, here alone

        rounds = Rounds(kind, task)
        pipe.send((True, rounds.ready()))
        while True:
            pipe.send((True, rounds.train(*pipe.recv())))
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc()
        pipe.send((False, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"))
