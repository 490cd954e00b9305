"""One contender in this process, asked round by round: how it is set up, its loss, and then the same clips as everybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed.task import Clips, Task, quiet

from ser_hpc.shards import RATE

AS_THEY_COME = ("A", "B", "D")


class Rounds:
    """`contender`, `clips`."""

    def __init__(self, kind: str, task: Task) -> None:
        quiet()
        torch.set_num_threads(task.threads)
        self.device, self.update = task.device, task.update
        self.clips = Clips(task.shards)
        self.contender = made(kind, task, self.clips)

    def ready(self) -> dict[str, Any]:
        return {"how": self.how, "loss": self.loss()}

    @property
    def how(self) -> str:
        """Its settings; cuDNN's attention is a matter of GPUs."""
        without = self.device == "cuda" and not torch.backends.cuda.cudnn_sdp_enabled()
        return self.contender.how + ", no cuDNN attention" * without

    def loss(self) -> float:
        """Of the shortest clip alone; that of the weights as they were, until something was trained."""
        return float(self.contender.loss(int(self.clips.index.num_samples.argmin())))

    def drawn(self, number: int, updates: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of round `number`, cut after so many updates; what warms up first."""
        warm_up, positions = self.clips.drawn(number, self.update)
        return warm_up, positions[: updates * self.update]

    def train(self, number: int, updates: int) -> dict[str, Any]:
        """`seconds`, real `samples` of each clip that was trained on, `peak_gb` of the rounds after the first, and `how`."""
        warm_up, positions = self.drawn(number, updates)
        seconds = self.contender.train(warm_up, positions)
        most = None if self.contender.most_s is None else round(self.contender.most_s * RATE)
        samples = self.clips.index.num_samples[positions].clip(max=most).tolist()
        told = {"seconds": seconds, "samples": samples, "peak_gb": _peak_gb(self.device), "how": self.how}
        if not number:
            _forget_peak(self.device)
        return told


def made(kind: str, task: Task, clips: Clips) -> Any:
    """cuDNN's attention, which plans anew for every shape, is off in ours; the peers that are tuned do not have it either."""
    torch.backends.cuda.enable_cudnn_sdp(kind in AS_THEY_COME)
    if kind in ("ours", "alone"):
        from speed import contenders

        return {"ours": contenders.Ours, "alone": contenders.Alone}[kind](task, clips)
    if kind in ("A", "B", "C", "C-compiled"):
        from speed import trainer

        return trainer.SETTINGS[kind](task, clips)
    from speed.speechbrain import Recipe

    return Recipe(task, clips, dynamic=kind == "E")


def _peak_gb(device: str) -> float:
    """The most since `_forget_peak`: on a GPU of tensors, on a CPU of the process, libraries included."""
    if device != "cuda":
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.empty_cache()  # the others need the room
    return peak


def _forget_peak(device: str) -> None:
    """What loading took, and batch sizes that were only tried, is not what training takes."""
    if device != "cuda":
        Path("/proc/self/clear_refs").write_text("5")
        return
    torch.cuda.reset_peak_memory_stats()
