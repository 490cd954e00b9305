"""Find the largest micro-batch that fits: activations are measured on a few clips, and the budget that follows is tried.

All of it is done by a copy of the model, before the optimizer exists and without a word to the other ranks, so a copy that runs
out of memory harms nobody, whatever the strategy. Then the ranks agree on the least of their answers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import numpy as np
import torch

from ser_hpc.config.settings import Settings, TrainSettings
from ser_hpc.core.errors import UserError
from ser_hpc.data.sampler import BatchSpec, split_micro_batches
from ser_hpc.engine import gpu
from ser_hpc.engine.distributed.ddp import DTYPES, autocast
from ser_hpc.engine.distributed.world import World, device_name
from ser_hpc.engine.memory.budget import Budget, Hardware
from ser_hpc.engine.memory.model import Activations, BudgetRange, static_bytes
from ser_hpc.engine.memory.peak import peak_bytes
from ser_hpc.models import checkpointing
from ser_hpc.models.classifier import Classifier
from ser_hpc.models.frontend import PooledFeatureFrontend
from ser_hpc.shards import RATE

CPU_SECONDS = 80.0  # main memory is rarely what limits a CPU; larger micro-batches gain nothing there
# Of the free memory: what is left is for the allocator, whose blocks fit ever other lengths of clips badly, for libraries'
# workspaces, and for clips that augmentation makes longer.
SHARE = 0.9
_LESS = 0.85  # of a budget that did not fit after all
_MEASURED = 4 * RATE  # samples, at least, on which activations are measured first


def find_budget(
    model: Classifier, settings: Settings, samples: np.ndarray, world: World, saved: Budget | None = None
) -> Budget:
    """Find the budget of a micro-batch: the one that was `saved` by a trial on like hardware, or else a new one.

    Turns on activation checkpointing in `model` where it is to be. `samples`: what each training clip takes of the budget
    (`front.costs`). All ranks call it, before the strategy takes the model over. Raises UserError if not even the longest clip
    fits.
    """
    train = settings.train
    if world.is_main and (message := _idle(settings, world.size)):
        print(message, flush=True)
    if train.activation_checkpointing == "always":
        checkpointing.enable(model)
    searched = (
        train.budget_seconds is None and world.device.type == "cuda" and not isinstance(model.frontend, PooledFeatureFrontend)
    )
    hardware = Hardware(_description(train, world), _free_bytes(settings, world) if searched else 0.0)
    (elsewhere,) = world.any_rank(saved is None or not hardware.is_like(saved.hardware))
    if saved is not None and not elsewhere:
        if saved.activation_checkpointing:
            checkpointing.enable(model)
        return saved
    if searched:
        found = search_budget(model, train, samples, world, hardware.free_bytes)
    else:
        found = round((train.budget_seconds or CPU_SECONDS) * RATE)
    return Budget(found, checkpointing.is_on(model), hardware)


def _idle(settings: Settings, ranks: int) -> str:
    """Return a warning where a step has fewer groups than there are ranks, else ""."""
    if settings.norm_group is None:
        return ""
    (norm, group), clips = settings.norm_group, settings.train.global_batch
    if (groups := -(-clips // group)) >= ranks:
        return ""
    return (
        f"{ranks - groups} of {ranks} ranks are idle: a step of {clips} clips is {groups} of the groups that "
        f"{norm}=batch keeps together. Start fewer ranks, raise train.global_batch, or lower {norm}_group={group}"
    )


def _description(train: TrainSettings, world: World) -> str:
    given = (train.strategy, train.budget_seconds, train.accumulation, train.activation_checkpointing)
    return " ".join(map(str, (world.size, "x", device_name(world.device), *given)))


def _free_bytes(settings: Settings, world: World) -> float:
    """Return bytes that every rank may use of its GPU: the least of all ranks', as it is saved for all of them."""
    free, total = torch.cuda.mem_get_info(world.device)
    return world.min_over_ranks(round(SHARE * min(free, total / settings.cluster.trials_per_gpu)))


def search_budget(model: Classifier, train: TrainSettings, samples: np.ndarray, world: World, free_bytes: float) -> int:
    """Return samples of the largest micro-batch that fits into `free_bytes`, with activation checkpointing if it takes that.

    Raises UserError on all ranks if not even the longest clip fits.
    """
    # The step, or the group of one, that has the longest clips.
    worst = np.sort(samples)[::-1][: min(train.global_batch, model.frontend.group or train.global_batch)]
    problem: UserError | None = None
    budget = _Largest(0.0, "", activation_checkpointing=False)
    try:
        budget = _largest(model, train, worst, world, free_bytes)
    except UserError as error:
        problem = error
    gpu.release_cached_memory(world.device)  # what the copy had is for all libraries again
    failed, recompute = world.any_rank(problem is not None, budget.activation_checkpointing)
    if failed:
        raise problem or UserError("another rank's GPU has too little memory for the longest clip: see that rank's log")
    if recompute:
        checkpointing.enable(model)
    seconds = world.min_over_ranks(round(budget.seconds * RATE))
    if world.is_main:
        print(budget.message, flush=True)
    return seconds


@dataclass(frozen=True, slots=True)
class _Largest:
    seconds: float
    message: str
    activation_checkpointing: bool  # with activation checkpointing


def _largest(model: Classifier, train: TrainSettings, worst: np.ndarray, world: World, free_bytes: float) -> _Largest:
    padded, longest = model.frontend.padded, int(worst[0])
    useful = _budget_range(worst, BatchSpec(world.size, 1, train.accumulation, padded, model.frontend.group))
    static = static_bytes(model, train, world.size)
    needs = "more than there is"
    for recompute in _ways(model, train):
        probe = Probe(model, train, world.device, recompute)
        activations = probe.activations(longest)
        if activations is None:
            continue
        budget = useful.budget(activations.seconds(free_bytes - static))
        while budget is not None and not probe.fits(first(worst, budget, padded), free_bytes - static):
            budget = useful.budget(_LESS * budget)
        need = static + activations.bytes(budget or useful.min_seconds)
        if budget is not None:
            whole = ", all that a step has for a rank" if budget == useful.max_seconds else ""
            message = (
                f"micro-batches of up to {budget:g} s of audio{whole}: {_gb(need)} of the {_gb(free_bytes)} for it "
                f"(weights and optimizer {_gb(static)}, {activations.bytes_per_second / 1e9:.3f} GB a second), "
                f"{'with' if recompute else 'no'} activation checkpointing"
            )
            return _Largest(budget, message, recompute)
        needs = f"{_gb(need)}, of which {_gb(static)} are weights and optimizer"
    what = "the longest clip" if train.accumulation is None else "a micro-batch as train.accumulation cuts it"
    if model.frontend.group is not None:
        what = "a group of the longest clips, normalised by each other (norm_group)"
    raise UserError(
        f"{what}, {useful.min_seconds:.1f} s of audio, needs {needs}, and {_gb(free_bytes)} are free for it on this GPU. "
        "Cut long clips (data.max_seconds), train in half precision (train.precision=bf16), freeze more (model.freeze), split "
        "the optimizer over more GPUs (train.strategy=zero2), let train.activation_checkpointing be auto, or take a larger GPU"
    )


def _budget_range(worst: np.ndarray, spec: BatchSpec) -> BudgetRange:
    """Return the range for a step (or its largest group) of clips that take `worst` samples, longest first."""
    parts = split_micro_batches(np.arange(len(worst)), worst, replace(spec, accumulation=spec.accumulation or 1))
    most = max(len(part) * worst[part].max() if spec.padded else worst[part].sum() for part in parts) / RATE
    return BudgetRange(float(worst[0] / RATE if spec.accumulation is None and spec.group is None else most), float(most))


def _ways(model: Classifier, train: TrainSettings) -> tuple[bool, ...]:
    """List whether to checkpoint activations, in the order in which it is tried."""
    if train.activation_checkpointing == "always":
        return (True,)
    return (False, True) if train.activation_checkpointing == "auto" and checkpointing.is_possible(model) else (False,)


def first(worst: np.ndarray, seconds: float, padded: bool) -> list[int]:
    """Return the clips of `worst`, longest first, that fill a budget of so many seconds: at least one."""
    taken = worst[0] * np.arange(1, len(worst) + 1) if padded else worst.cumsum()
    lengths: list[int] = worst[: max(1, int((taken <= seconds * RATE).sum()))].tolist()
    return lengths


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


class Probe:
    """Forward and backward passes of a copy of `model`, in the precision of training, on batches of silence.

    Random states stay as they are, and so does the model.
    """

    def __init__(self, model: Classifier, train: TrainSettings, device: torch.device, activation_checkpointing: bool) -> None:
        self._device, self._train = device, train
        self._costs = model.frontend.costs
        copied = copy.deepcopy(model).to(device).train()
        # DDP computes in half precision as it goes, ZeRO in weights that have it.
        self._cast = train.strategy == "ddp" or train.precision == "fp32"
        self._model = copied if self._cast else copied.to(DTYPES[train.precision])
        if activation_checkpointing:
            checkpointing.enable(self._model)

    def activations(self, longest: int, *, shapes_only: bool = False) -> Activations | None:
        """Measure them on clips of `longest` samples, or shorter ones if those do not fit; None if nothing does."""
        while longest > RATE // 10:
            few, seconds = -(-_MEASURED // longest), float(self._costs(np.array(longest))) / RATE
            try:
                # The first pass makes the gradients, which are then there before and after the others.
                _, once, twice = (self.peak([longest] * count, shapes_only=shapes_only) for count in (1, few, 2 * few))
            except RuntimeError as error:
                if not gpu.is_out_of_memory(error):
                    raise
                longest //= 2
            else:
                return Activations(max(0.0, 2 * once - twice), max(1.0, twice - once) / (few * seconds))
            gpu.release_cached_memory(self._device)
        return None

    def peak(self, lengths: Sequence[int], *, shapes_only: bool = False) -> int:
        """Measure bytes that clips of so many samples take beside weights and gradients."""
        return peak_bytes(partial(self._pass, lengths), self._device, shapes_only=shapes_only)

    def fits(self, lengths: Sequence[int], free_bytes: float) -> bool:
        """Tell whether clips of so many samples take at most `free_bytes` beside weights and gradients."""
        try:
            return self.peak(lengths) <= free_bytes
        except RuntimeError as error:
            if not gpu.is_out_of_memory(error):
                raise
        gpu.release_cached_memory(self._device)  # here, where the error no longer holds what it ran out of
        return False

    def _pass(self, lengths: Sequence[int]) -> None:
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            samples = torch.zeros(sum(lengths), dtype=torch.int16).to(self._device)
            with autocast(self._train, self._device) if self._cast else nullcontext():
                outputs = self._model(samples, torch.tensor([0, *accumulate(lengths)]))
            total = torch.stack([of_task.sum() for of_task in outputs.values()]).sum()
            total.backward()  # type: ignore[no-untyped-call]
