"""Record what each optimizer step came to, for the training loop: its numbers become part of the trial's state a step late.

They travel from the GPU while the next step is under way, so the CPU is always a step ahead, and the GPU never waits for it.
Before a checkpoint, and at an epoch's end, all is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ser_hpc.core.awake_clock import awake_s
from ser_hpc.core.errors import UserError, listed
from ser_hpc.data.batches import Batch, Source
from ser_hpc.data.sampler import ClipSelection, MicroBatch
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.fault.checkpoint import TrainState
from ser_hpc.engine.fault.corrupt_clips import CorruptClips
from ser_hpc.engine.objective import Objective
from ser_hpc.engine.progress import Progress
from ser_hpc.engine.schedule import Schedule
from ser_hpc.engine.trial_data import TrialData
from ser_hpc.shards import RATE

_PROBE_S = 0.5
_WARM_UP, _STEPS = 3, 10  # steps that are not counted, and that are


@dataclass(frozen=True, slots=True)
class StepEntry:
    """A step: its clips, and its learning rate.

    `per_clip_loss` (tasks + 1, n): every clip's loss by each task, and what is wrong with it; `grad_norm` (): of the gradient;
    both underway to the CPU until `ready_event` has come.
    """

    clips: ClipSelection
    lr: float
    per_clip_loss: Tensor
    grad_norm: Tensor
    ready_event: torch.cuda.Event | None


class DeferredMetrics:
    """A queue of steps whose numbers are on their way to the CPU."""

    def __init__(self) -> None:
        self._entries: deque[StepEntry] = deque()

    def add(self, clips: ClipSelection, lr: float, per_clip_loss: Tensor, grad_norm: Tensor) -> None:
        """Send a step's numbers on their way; `per_clip_loss` and `grad_norm` on their device."""
        ready_event = None
        if per_clip_loss.device.type == "cuda":
            per_clip_loss, grad_norm = (x.to("cpu", non_blocking=True) for x in (per_clip_loss, grad_norm))  # to pinned memory
            ready_event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready_event.record()
        self._entries.append(StepEntry(clips, lr, per_clip_loss, grad_norm, ready_event))

    def read(self, *, all: bool = False) -> Iterator[StepEntry]:
        """Yield every step but the newest, or that too; each once, in order."""
        while len(self._entries) > (0 if all else 1):
            entry = self._entries.popleft()
            if entry.ready_event is not None:
                entry.ready_event.synchronize()
            yield entry


class Throughput:
    """The bottleneck: what reading, decoding and augmenting can deliver, against what the model takes.

    Measured while a trial starts (half a second of batches that are thrown away) and over its first steps, from when a step's
    batches are there until it is made; seconds of audio a second, of this rank; None until known. Training reads none of it.
    """

    def __init__(self) -> None:
        self.data: float | None = None
        self.model: float | None = None
        self._steps, self._seconds, self._audio, self._began, self._now = 0, 0.0, 0.0, 0.0, 0.0

    def begin(self, audio: float) -> None:
        """Start a step over seconds of `audio`."""
        self._began, self._now = awake_s(), audio

    def end(self, ranks: int) -> str | None:
        """Count the step. Returns a sentence, once, when both sides are known."""
        self._steps += 1
        if self._steps <= _WARM_UP or self.model is not None:
            return None
        self._seconds += awake_s() - self._began
        self._audio += self._now
        if self._steps < _WARM_UP + _STEPS:
            return None
        self.model = self._audio / self._seconds
        if self.data is None:
            return None
        wall = "the model" if self.model < self.data else "the data (more data.workers, or more cores a rank)"
        each = " on each rank" if ranks > 1 else ""
        return f"data {self.data:,.0f} audio-s/s, model {self.model:,.0f} audio-s/s{each}: {wall} is the wall"


class StepMetrics:
    """A trial's results, step by step: `state` for the next checkpoint, `progress` for people, corrupt clips by name.

    `objective`: whose losses these are; `schedule`: which epoch a step is of; `fp16`: its loss scaler skips steps whose
    gradient is not finite by itself.
    """

    def __init__(
        self,
        state: TrainState,
        data: TrialData,
        objective: Objective,
        schedule: Schedule,
        fp16: bool,
        progress: Progress,
        corrupt: CorruptClips,
    ) -> None:
        self.state, self.progress, self.schedule = state, progress, schedule
        self._data, self._objective, self._fp16, self._corrupt = data, objective, fp16, corrupt
        self._deferred, self._throughput, self._measured = DeferredMetrics(), Throughput(), False

    def measure_data_once(self, source: Source, steps: Iterable[list[MicroBatch]]) -> None:
        """Measure what the data side delivers when all ranks ask at once, as they will; in a start's first epoch alone."""
        if not self._measured:
            self._throughput.data = source.measure_throughput([micro for step in steps for micro in step], _PROBE_S)
        self._measured = True

    def begin_step(self, number: int, batches: Sequence[Batch]) -> None:
        """Note which step training is at, and that its batches are there."""
        self.progress.at_step(number)
        self._throughput.begin(sum(len(batch.samples) for batch in batches) / RATE)

    def end_step(
        self,
        clips: ClipSelection,
        lr: float,
        losses: Tensor,
        grad_norm: Tensor,
        world: World,
    ) -> None:
        """Take over a step's numbers, `losses` of `accumulate_gradients`, summed over ranks; read those of the one
        before. Raises UserError where one is not finite."""
        self._deferred.add(clips, lr, losses, grad_norm)
        self.read()
        if (summary := self._throughput.end(world.size)) and world.is_main:
            print(summary, flush=True)
            self.progress.note(data_audio_s_per_s=self._throughput.data, model_audio_s_per_s=self._throughput.model)

    def read(self, *, all: bool = False) -> None:
        """Bring the state up to date: by all steps but the newest, whose numbers are still under way; or by that too."""
        for entry in self._deferred.read(all=all):
            losses, causes = entry.per_clip_loss[:-1], entry.per_clip_loss[-1]
            finite = losses.isfinite().all(dim=0)
            if not bool(finite.all()):
                raise self._not_finite("loss", entry.clips.positions[~finite.numpy()], len(finite))
            if not entry.grad_norm.isfinite() and not self._fp16:
                raise self._not_finite("gradient", entry.clips.positions, len(finite))
            loss, weight = self._objective.combined(losses, entry.clips)
            before = self.state
            self.state = replace(
                before,
                step=before.step + 1,
                epoch=before.step // self.schedule.steps_per_epoch,
                epoch_loss=before.epoch_loss + loss,
                epoch_weight=before.epoch_weight + weight,
            )
            self.progress.step(self.state, loss / weight, entry.lr, float(entry.grad_norm))
            if causes.any():
                self._corrupt.add(entry.clips.positions, causes.numpy(), self.state)

    def _not_finite(self, what: str, positions: np.ndarray, of: int) -> UserError:
        """Say which clips; nothing of such a step is ever saved."""
        names = listed([self._data.index.metadata.utterance_id[position] for position in positions])
        return UserError(
            f"the {what} is not finite at step {self.state.step} (epoch {self.state.epoch + 1}), on {len(positions)} of its "
            f"{of} clips: {names}. Nothing of this step was saved. Lower train.lr, use train.precision=fp32, or look at these "
            "clips."
        )
