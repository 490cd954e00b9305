"""Train by DeepSpeed ZeRO, stages 1, 2 and 3, behind the interface of `strategy.Strategy`; the only importer of deepspeed.

DeepSpeed's own checkpoints are pickles tied to one number of ranks. So the state is gathered and set by parameter name, with
calls of which some are private: pyproject.toml bounds the version, and tests hold every stage to DDP's curve and state.
"""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import torch
from torch import Tensor, nn

from ser_hpc.config.settings import TrainSettings
from ser_hpc.core.errors import UserError
from ser_hpc.engine import gpu
from ser_hpc.engine.distributed.strategy import LOSS_SCALE_WINDOW, TrainTensors
from ser_hpc.engine.distributed.world import World, need_group, wait_for_ever
from ser_hpc.engine.memory.model import REDUCE_BUCKET
from ser_hpc.engine.optim import build_optimizer, set_learning_rate

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# On a CPU it would have a compiler make an operation for inference alone, for a minute, or fail for want of one.
deepspeed.ops.__compatible_ops__ = {}

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroStrategy:
    """Optimizer states (1), gradients too (2), weights too (3) are split over the ranks."""

    def __init__(self, module: nn.Module, settings: TrainSettings, world: World, saved: TrainTensors | None) -> None:
        if settings.precision == "fp16" and world.device.type == "cpu":
            raise UserError("DeepSpeed has no fp16 on a CPU: use train.precision=bf16 or fp32, or train.strategy=ddp")
        self._settings, self._world = settings, world
        self._stage = int(settings.strategy.removeprefix("zero"))
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._buffers = [name for name in module.state_dict() if name not in set(self._names.values())]
        self._exact = self._frozen_weights(module)
        need_group(world)
        os.environ |= world.environment
        self._engine: Any = deepspeed.initialize(
            model=module,
            optimizer=build_optimizer(module, settings),
            config=self._config(module, saved),
            dist_init_required=False,
        )[0]
        wait_for_ever()  # DeepSpeed makes groups of its own
        if saved is not None and saved.updates:
            self._restore(saved)
        if saved is not None and settings.precision == "fp16":
            self._engine.optimizer.loss_scaler.cur_iter = saved.good_steps  # since the iteration -1, as in a new one

    def _config(self, module: nn.Module, saved: TrainTensors | None) -> dict[str, Any]:
        scale_power = round(math.log2(saved.loss_scale)) if saved else 16
        trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        return {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed only logs it; our micro-batches vary in size
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self._settings.clip_norm or 0.0,
            "zero_optimization": {"stage": self._stage, "reduce_bucket_size": min(REDUCE_BUCKET, trained)},
            "zero_allow_untested_optimizer": True,  # torch's own AdamW: compute nodes often lack nvcc for DeepSpeed's
            "bf16": {"enabled": self._settings.precision == "bf16"},
            "fp16": {
                "enabled": self._settings.precision == "fp16",
                "initial_scale_power": scale_power,
                "loss_scale_window": LOSS_SCALE_WINDOW,
                "hysteresis": 1,
            },
            "steps_per_print": 2**62,
        }

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self._engine.module
        return module

    def forward(self, samples: Tensor, offsets: Tensor, *, last: bool = False) -> dict[str, Tensor]:
        self._engine.set_gradient_accumulation_boundary(last)
        outputs: dict[str, Tensor] = self._engine(samples, offsets)
        return outputs

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss * self._world.size, scale_wrt_gas=False)

    def join_pending_collectives(self) -> None:
        raise UserError(
            f"memory ran out in the middle of a step, which strategy {self._settings.strategy} cannot make again: lower "
            "train.budget_seconds, or set data.max_seconds"
        )

    def discard_step(self) -> None:
        raise AssertionError("no rank goes on after join_pending_collectives")

    def step(self, lr: float) -> Tensor:
        set_learning_rate(self._engine.optimizer.param_groups, lr)
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm())

    def train_mode(self, mode: bool) -> None:
        self._world.broadcast_from_main(self._engine.module.buffers())
        self._engine.module.train(mode)

    def weights(self) -> dict[str, Tensor] | None:
        full = {name: self._exact.get(name, self._full(parameter)) for name, parameter in self._parameters()}
        state = self._engine.module.state_dict()
        return self._on_main(full | {name: state[name] for name in self._buffers})

    def tensors(self) -> TrainTensors | None:
        weights = self.weights()
        self._link_states()
        exp_avg, exp_avg_sq = (
            self._on_main({name: safe_get_full_optimizer_state(p, key) for name, p in self._trained()}) for key in MOMENTS
        )
        if weights is None or exp_avg is None or exp_avg_sq is None:
            return None
        updates, late = TrainTensors.split_updates(self._updates())
        return TrainTensors(weights, exp_avg, exp_avg_sq, updates, *self._loss_scale(), late_updates=late)

    def close(self) -> None:
        self._engine.destroy()
        self._engine = None
        gpu.release_cached_memory(self._world.device)

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(self._names[id(parameter)], parameter) for parameter in self._engine.module.parameters()]

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self._parameters() if parameter.requires_grad]

    def _frozen_weights(self, module: nn.Module) -> dict[str, Tensor]:
        """Copy what is frozen, by name, where the engine is about to narrow it: what is trained, now or later, it keeps in
        fp32, and rank 0 saves what is frozen."""
        if self._settings.precision == "fp32" or not self._world.is_main:
            return {}
        return {name: p.detach().cpu().clone() for name, p in module.named_parameters() if not p.requires_grad}

    def _full(self, parameter: nn.Parameter) -> Tensor:
        """Gather the whole fp32 parameter; all ranks join."""
        if parameter.requires_grad:
            full: Tensor = safe_get_full_fp32_param(parameter)
            return full
        with deepspeed.zero.GatheredParameters([parameter], enabled=self._stage == 3):
            return parameter.detach().float().clone()

    def _on_main(self, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
        if not self._world.is_main:
            return None
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def _flat_partitions(self) -> list[Tensor]:
        optimizer = self._engine.optimizer
        flat: list[Tensor] = (
            optimizer.fp32_partitioned_groups_flat if self._stage == 3 else optimizer.single_partition_of_fp32_groups
        )
        return flat

    def _groups(self) -> list[list[str]]:
        """List the names of the parameters of each flat partition: they were released together."""
        optimizer = self._engine.optimizer
        groups = optimizer.fp16_groups if self._stage == 3 else optimizer.bit16_groups
        return [[self._names[id(parameter)] for parameter in group] for group in groups]

    def _updates(self) -> dict[str, int]:
        """Return how often each trained parameter was updated."""
        counts: dict[str, int] = {}
        for flat, names in zip(self._flat_partitions(), self._groups(), strict=True):
            state = self._engine.optimizer.optimizer.state[flat]
            counts |= dict.fromkeys(names, int(float(state["step"])) if "step" in state else 0)
        return counts

    def _loss_scale(self) -> tuple[float, int]:
        """Return the scale, and for how many steps it has done well."""
        if self._settings.precision != "fp16":
            return 1.0, 0
        scaler = self._engine.optimizer.loss_scaler
        return float(scaler.cur_scale), scaler.cur_iter - scaler.last_overflow_iter - 1

    def _link_states(self) -> None:
        """Link states anew: stages 1 and 2 find those of two or more parameter groups only after being linked anew."""
        if self._stage < 3:
            self._engine.optimizer._link_all_hp_params()
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _restore(self, saved: TrainTensors) -> None:
        """Make the optimizer state that a fresh engine lacks, then set it (and the fp32 weights) parameter by parameter."""
        for flat, names in zip(self._flat_partitions(), self._groups(), strict=True):
            (updates,) = {saved.updates_of(name) for name in names}
            self._engine.optimizer.optimizer.state[flat] = {
                "step": torch.tensor(float(updates), device=flat.device),
                **{key: torch.zeros_like(flat) for key in MOMENTS},
            }
        self._link_states()
        for name, parameter in self._trained():
            device = self._world.device
            self._set(parameter, saved.model[name].to(device), None)
            if name in saved.exp_avg:  # else it was released just now
                self._set(parameter, saved.exp_avg[name].to(device), "exp_avg")
                self._set(parameter, saved.exp_avg_sq[name].to(device), "exp_avg_sq")

    def _set(self, parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
        """Set the fp32 weight (key None) or a moment from its full value."""
        if self._stage < 3:
            if key is None:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, key)
            return
        # The full setters fail where a size is not divisible by the ranks: cut our own part, padded with zeros.
        share = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        flat = torch.zeros(share * self._world.size, dtype=value.dtype, device=value.device)
        flat[: value.numel()] = value.flatten()
        mine = flat.narrow(0, share * self._world.rank, share)
        if key is None:
            safe_set_local_fp32_param(parameter, mine)
        else:
            safe_set_local_optimizer_state(parameter, mine, key)
