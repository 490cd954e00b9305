"""The loss of a step: over its tasks, the sum over clips of weight times loss, divided by the sum of their weights.

These sums of weights are known before the step starts, on every rank, so no rank has to wait for another's to scale its
gradients. A loss over a whole step (concordance) is no sum over clips: its gradient by each clip's outputs is computed first,
by a forward pass over all micro-batches whose outputs the ranks share, and then sent back through the model micro-batch by
micro-batch (gradient caching, Gao et al. 2021), exactly as if the step were one batch on one device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ser_hpc.config.extension_errors import check_made
from ser_hpc.core.errors import UserError
from ser_hpc.data.batches import Batch
from ser_hpc.data.sampler import ClipSelection, mix_seed
from ser_hpc.engine import gpu
from ser_hpc.engine.distributed.world import World
from ser_hpc.models.losses import Loss, build_loss
from ser_hpc.models.packed import to_device
from ser_hpc.tasks.task import ClipTargets, Task


@dataclass(frozen=True, slots=True)
class Term:
    """One task's part of the loss."""

    name: str
    width: int
    loss: Loss
    weight: float
    over_step: bool


@dataclass(frozen=True, slots=True)
class StepGradient:
    """Of a loss over a step: its `value`, (), and its gradient by the outputs of each of the step's clips, (clips, width)."""

    value: Tensor
    by_outputs: Tensor


@dataclass(frozen=True, slots=True)
class StepTerms:
    """What of a step's loss its micro-batches share, by task: the sums of weights, and gradients of losses over the step."""

    totals: dict[str, float]
    gradients: dict[str, StepGradient]


class Objective:
    """The loss of a trial's tasks, the main one first. `targets`: of every clip of the index."""

    def __init__(self, tasks: Sequence[Task], targets: ClipTargets) -> None:
        self.terms = [
            Term(task.name, task.target.width, build_loss(task.loss), task.weight, task.loss.over_step) for task in tasks
        ]
        self._weights = targets.weights

    def _totals(self, clips: ClipSelection) -> dict[str, float]:
        """Sum each task's weights over a step's clips."""
        return {term.name: float(self._clip_weights(term, clips).sum()) for term in self.terms}

    def _clip_weights(self, term: Term, clips: ClipSelection) -> np.ndarray:
        """Weigh each of a step's clips in a task, (n,): one that is mixed by what both clips weigh, by their shares."""
        weights: np.ndarray = self._weights[term.name][clips.positions]
        if clips.partners is None or clips.shares is None:
            return weights
        mixed: np.ndarray = clips.shares * weights + (1 - clips.shares) * self._weights[term.name][clips.partners.positions]
        return mixed

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch, of_step: StepTerms) -> tuple[Tensor, Tensor]:
        """Compute a micro-batch's share of the step's loss, (), and the loss of each of its clips, (tasks, B)."""
        shares, each = [], []
        for term in self.terms:
            output = _checked(term, outputs[term.name], batch)
            weights = to_device(batch.weights[term.name], output.device)
            if term.over_step:
                gradient = of_step.gradients[term.name]
                rows = to_device(torch.from_numpy(batch.rows), output.device)
                share = (output[: len(batch.rows)] * gradient.by_outputs[rows]).sum()  # of a filler 0, from no clip
                losses = gradient.value.expand(len(output))
            else:
                losses = _clip_losses(term, output, batch.targets[term.name])
                total = of_step.totals[term.name] or 1.0
                if batch.partners is not None:
                    theirs = _clip_losses(term, output, batch.partners.targets[term.name])
                    losses, weights = _mixed(losses, weights, theirs, batch.partners.weights[term.name])
                share = (losses * weights).sum() / total
            shares.append(share if term.weight == 1 else term.weight * share)
            each.append(losses.detach())
        return sum(shares[1:], start=shares[0]), torch.stack(each)

    def begin_step(
        self,
        forward: Callable[[Tensor, Tensor], dict[str, Tensor]],
        batches: Sequence[Batch],
        clips: ClipSelection,
        seed: tuple[int, int],
        world: World,
    ) -> StepTerms:
        """Sum up the weights, and compute the gradients of those losses that are over the whole step, all ranks together; if
        none are, nothing is run.

        `clips`, `seed`: as `step.accumulate_gradients` takes them. Raises RuntimeError if memory ran out, after the exchange
        that other ranks wait in.
        """
        terms = [term for term in self.terms if term.over_step]
        if not terms:
            return StepTerms(self._totals(clips), {})
        gathered = {term.name: _Gathered.empty(term, batches[0], len(clips), world) for term in terms}
        failure: RuntimeError | None = None
        try:
            with torch.no_grad():
                for batch in batches:
                    torch.manual_seed(mix_seed(*seed, batch.number))
                    outputs = forward(to_device(batch.samples, world.device), batch.offsets)
                    for term in terms if len(batch.rows) else ():
                        gathered[term.name].put(_checked(term, outputs[term.name], batch), batch, term.name)
        except RuntimeError as error:
            if not gpu.is_out_of_memory(error):
                raise
            failure = error
        found = {term.name: gathered[term.name].gradient(term, world) for term in terms}
        if failure is not None:
            raise failure
        return StepTerms(self._totals(clips), found)

    def combined(self, losses: Tensor, clips: ClipSelection) -> tuple[float, float]:
        """Sum up a step's loss from that of each clip, (tasks, clips) on the CPU, times the main task's sum of weights; and
        return that sum."""
        loss = main = 0.0
        for number, (term, row) in enumerate(zip(self.terms, losses, strict=True)):
            weights = self._clip_weights(term, clips)
            total, of_task = float(weights.sum()), term.weight * float(row.double() @ torch.from_numpy(weights).double())
            if number == 0:
                loss, main = of_task, total
            elif total:
                loss += of_task * (main / total)
        return loss, main


@dataclass(frozen=True, slots=True)
class _Gathered:
    """Outputs, targets and weights of a step's clips; zeros for those of other ranks, until they are summed over ranks."""

    outputs: Tensor
    targets: Tensor
    weights: Tensor

    @classmethod
    def empty(cls, term: Term, batch: Batch, clips: int, world: World) -> _Gathered:
        targets = batch.targets[term.name]
        return cls(
            torch.zeros(clips, term.width, device=world.device),
            torch.zeros(clips, *targets.shape[1:], dtype=targets.dtype, device=world.device),
            torch.zeros(clips, device=world.device),
        )

    def put(self, outputs: Tensor, batch: Batch, name: str) -> None:
        device = self.outputs.device
        rows = to_device(torch.from_numpy(batch.rows), device)
        self.outputs[rows] = outputs
        self.targets[rows] = to_device(batch.targets[name], device)
        self.weights[rows] = to_device(batch.weights[name], device)

    def gradient(self, term: Term, world: World) -> StepGradient:
        for gathered in (self.outputs, self.targets, self.weights):
            world.sum_over_ranks(gathered)
        given = self.weights > 0
        if not bool(given.any()):
            return StepGradient(torch.zeros((), device=world.device), torch.zeros_like(self.outputs))
        outputs = self.outputs.clone().requires_grad_()
        with torch.enable_grad():
            value = term.loss(outputs[given], self.targets[given], self.weights[given])
        _check_loss(term, value, ())
        (gradient,) = torch.autograd.grad(value, outputs)
        return StepGradient(value.detach().float(), gradient)


def _checked(term: Term, output: Tensor, batch: Batch) -> Tensor:
    """Return a head's outputs of a micro-batch, float32. Raises UserError where they are not (B, width)."""
    shape = (len(batch.targets[term.name]), term.width)
    fits = isinstance(output, Tensor) and tuple(output.shape) == shape and output.is_floating_point()
    check_made(f"tasks.{term.name}: its head", output, fits, f"a tensor of shape {shape}, of floats")
    return output.float()


def _clip_losses(term: Term, output: Tensor, targets: Tensor) -> Tensor:
    """Compute the loss of each clip, (B,)."""
    losses = term.loss(output, to_device(targets, output.device))
    _check_loss(term, losses, (len(output),))
    return losses


def _mixed(losses: Tensor, weights: Tensor, theirs: Tensor, their_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return loss and weight of mixed clips, (B,) each, of what both clips' targets say of one output.

    Their weighted mean is the cross-entropy (or focal loss) of the mixture of the targets as distributions; of the divergence
    it differs by a constant.
    """
    their_weights = to_device(their_weights, weights.device)
    total = weights + their_weights
    return (losses * weights + theirs * their_weights) / torch.where(total > 0, total, 1), total


def _check_loss(term: Term, losses: Tensor, shape: tuple[int, ...]) -> None:
    """Raise UserError where a loss is not of each clip, or of the step; or does not depend on the outputs."""
    fits = isinstance(losses, Tensor) and tuple(losses.shape) == shape and losses.is_floating_point()
    wanted = f"a tensor of shape {shape}: " + ("the loss of each clip" if shape else "one number for the step")
    check_made(f"tasks.{term.name}: its loss", losses, fits, wanted)
    if torch.is_grad_enabled() and not losses.requires_grad:
        raise UserError(f"tasks.{term.name}: its loss has no gradient by the outputs: was one of them detached?")
