"""Train alone, or by DistributedDataParallel: every rank holds the whole model. Made by `build.build_strategy`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler  # type: ignore[attr-defined]  # public, but not in __all__
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # public, but not in __all__
from torch.nn.parallel import DistributedDataParallel

from ser_hpc.config.settings import TrainSettings
from ser_hpc.engine import gpu
from ser_hpc.engine.distributed.strategy import LOSS_SCALE_WINDOW, TrainTensors
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.optim import build_optimizer, set_learning_rate

DTYPES = {  # `auto` has become one of these (precision.py)
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def autocast(settings: TrainSettings, device: torch.device) -> AbstractContextManager[None]:
    """Compute the forward pass in the settings' precision, over fp32 weights."""
    dtype = DTYPES[settings.precision]
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


class GradientBuckets:
    """DDP's reduction of gradients, bucket by bucket while the backward pass goes on: their sum over ranks (the step's loss is
    normalised over all of them already), counted so that a rank that breaks off can do its part of what the others wait for.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []  # reduced in this step so far
        self._before: list[int] = []  # in the whole step before
        self._sure = False  # DDP arranges its buckets anew after the first step

    def reduce(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        self._sizes.append(buffer.numel())
        work = dist.all_reduce(buffer, async_op=True)
        assert work is not None
        summed: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
        return summed

    def end_step(self) -> None:
        self._sure = self._sizes == self._before
        self._before, self._sizes = self._sizes, []

    def join_pending_collectives(self, device: torch.device) -> None:
        """Reduce zeros as often as the others still wait. Raises RuntimeError where the buckets are not known yet."""
        if not self._sure:
            raise RuntimeError("memory ran out in the first steps, before ranks know what the others wait for")
        for size in self._before[len(self._sizes) :]:
            dist.all_reduce(torch.zeros(size, device=device))


class DdpStrategy:
    """Every rank holds the whole model; gradients are added up by DDP at the step's last micro-batch."""

    def __init__(self, module: nn.Module, settings: TrainSettings, world: World, saved: TrainTensors | None) -> None:
        self._module, self._settings, self._world = module, settings, world
        self._buckets = GradientBuckets()
        self._parallel = self._distributed(module) if world.size > 1 else None
        self._optimizer = build_optimizer(module, settings)
        self._scaler = GradScaler(world.device.type, enabled=settings.precision == "fp16", growth_interval=LOSS_SCALE_WINDOW)
        if saved is not None:
            self._restore(saved)

    def _distributed(self, module: nn.Module) -> DistributedDataParallel:
        """Wrap without `device_ids`, for which DDP would move every input to the GPU: the offsets belong on the CPU.

        Gradients that are there already become views of DDP's buckets; others would live beside them until the step's last
        micro-batch.
        """
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        parallel = DistributedDataParallel(module, gradient_as_bucket_view=True, broadcast_buffers=False)
        self._buckets = GradientBuckets()
        # As a lambda: DDP looks at annotations and refuses those that are still words (PEP 563).
        parallel.register_comm_hook(self._buckets, lambda buckets, bucket: buckets.reduce(bucket))
        return parallel

    @property
    def module(self) -> nn.Module:
        return self._module

    def forward(self, samples: Tensor, offsets: Tensor, *, last: bool = False) -> dict[str, Tensor]:
        if self._parallel is not None:
            self._parallel.require_backward_grad_sync = last  # DDP reads it in the forward pass already
        model = self._parallel if self._parallel is not None and self._module.training else self._module
        with autocast(self._settings, self._world.device):
            outputs: dict[str, Tensor] = model(samples, offsets)
        return outputs

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def join_pending_collectives(self) -> None:
        if self._parallel is not None:
            self._buckets.join_pending_collectives(self._world.device)

    def discard_step(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        alone, self._parallel = self._parallel is None, None
        gpu.release_cached_memory(self._world.device)
        if not alone:  # DDP's backward pass was broken off: it cannot begin another one
            self._parallel = self._distributed(self._module)

    def step(self, lr: float) -> Tensor:
        set_learning_rate(self._optimizer.param_groups, lr)
        self._scaler.unscale_(self._optimizer)
        limit = self._settings.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_([p for p in self._module.parameters() if p.grad is not None], limit)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=self._parallel is None)
        self._buckets.end_step()
        return norm

    def train_mode(self, mode: bool) -> None:
        self._world.broadcast_from_main(self._module.buffers())
        self._module.train(mode)

    def weights(self) -> dict[str, Tensor] | None:
        if not self._world.is_main:
            return None
        return {name: tensor.detach().cpu().clone() for name, tensor in self._module.state_dict().items()}

    def tensors(self) -> TrainTensors | None:
        weights = self.weights()
        if weights is None:
            return None
        states = {name: self._optimizer.state[p] for name, p in self._module.named_parameters() if p in self._optimizer.state}
        counts = {name: int(state["step"]) for name, state in states.items()}
        exp_avg, exp_avg_sq = (
            {name: state[key].detach().cpu().clone() for name, state in states.items()} for key in ("exp_avg", "exp_avg_sq")
        )
        scale = self._scaler.state_dict() or {"scale": 1.0, "_growth_tracker": 0}  # empty but for fp16
        updates, late = TrainTensors.split_updates(counts)
        return TrainTensors(weights, exp_avg, exp_avg_sq, updates, scale["scale"], scale["_growth_tracker"], late_updates=late)

    def _restore(self, saved: TrainTensors) -> None:
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(
                self._scaler.state_dict() | {"scale": saved.loss_scale, "_growth_tracker": saved.good_steps}
            )
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad and (updates := saved.updates_of(name)):
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(updates), device=parameter.device),
                    "exp_avg": saved.exp_avg[name].to(parameter),
                    "exp_avg_sq": saved.exp_avg_sq[name].to(parameter),
                }

    def close(self) -> None:
        self._parallel = None
        self._optimizer.zero_grad(set_to_none=True)
