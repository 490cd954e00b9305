"""Normalise frames: layer normalisation that keeps its input's precision (transformers' encoders), and batch normalisation that
trains alike however a step is shared out (the recurrent network).

By batch normalisation, in training, a clip is scaled by the statistics of its group: the clips of one micro-batch, which are
always the same ones (data/sampler.py cuts a step between groups only). The running statistics, which evaluation uses, are not
updated as groups come, in whatever order on whatever rank, but once a step, by all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser_hpc.models.packed import at_least_float32


class FrameNorm(nn.LayerNorm):
    """nn.LayerNorm in the precision of its input. Make it with `patch_layer_norms`.

    Under autocast torch's own gives float32, and everything that is added to it becomes float32: under bf16, twice the memory
    traffic from layer to layer, to be narrowed again by the next product. Inside, means and variances are in float32 anyway.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def patch_layer_norms(model: nn.Module) -> None:
    """Give the model's layer normalisations this forward; parameters and names stay."""
    for module in model.modules():
        if type(module) is nn.LayerNorm and module.elementwise_affine:
            module.__class__ = FrameNorm


class FrameBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over all but the last dimension, the channels': of the clips' real frames, without padding.

    In training `found`, (2, C), are mean and unbiased variance of the last batch; only `RunningStatistics` takes them over.
    """

    found: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., C) -> (..., C)."""
        assert self.running_mean is not None and self.running_var is not None
        # Parameters that a strategy has cast (ZeRO's bf16) are widened again: torch takes no mixture but that.
        wide = at_least_float32(self.weight.dtype)
        mean, variance = (values.detach().to(wide, copy=True) for values in (self.running_mean, self.running_var))
        rows = x.reshape(-1, self.num_features)
        batch = self.training and len(rows) > 1  # one value has no variance: scaled as in evaluation
        # With momentum 1 what torch writes into the running statistics are the batch's own.
        scaled = F.batch_norm(rows, mean, variance, self.weight.to(wide), self.bias.to(wide), batch, 1.0, self.eps)
        if self.training:
            self.found = torch.stack([mean, variance])
        return scaled.view(x.shape)


class RunningStatistics:
    """Running statistics of all batch normalisations of a model, brought up to date once for each optimizer step.

    A step's statistics are the mean of its groups', on all ranks, weighted by their clips. They enter with torch's momentum
    where a step has `global_batch` clips, and with proportionally less where it has fewer: an epoch's last may have just one.
    """

    def __init__(self, model: nn.Module, global_batch: int) -> None:
        # A frozen encoder's run as in evaluation.
        frozen = set(model.get_submodule("encoder").modules()) if getattr(model, "freeze_encoder", False) else set()
        self._norms = [module for module in model.modules() if isinstance(module, FrameBatchNorm) and module not in frozen]
        self._sizes = [norm.num_features for norm in self._norms]
        self._global_batch = global_batch
        self._sums = torch.empty(0)

    def begin(self) -> None:
        """Clear what was added, before the first micro-batch of a step, made for the first time or again."""
        if self._norms:
            weight = self._norms[0].weight
            self._sums = torch.zeros(2, sum(self._sizes), dtype=at_least_float32(weight.dtype), device=weight.device)

    def add(self, clips: int) -> None:
        """Add a group's statistics, after its forward pass over so many clips."""
        if self._norms:
            self._sums += clips * torch.cat([norm.found for norm in self._norms], dim=1)

    @torch.no_grad()
    def update(self, clips: int, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Take over a step's statistics, all ranks together. `over_ranks` sums a tensor over them, for every rank."""
        if not self._norms:
            return
        means = torch.split(over_ranks(self._sums) / clips, self._sizes, dim=1)
        for norm, found in zip(self._norms, means, strict=True):
            assert norm.running_mean is not None and norm.running_var is not None
            assert norm.num_batches_tracked is not None and norm.momentum is not None
            share = norm.momentum * clips / self._global_batch
            norm.running_mean.lerp_(found[0].to(norm.running_mean), share)
            norm.running_var.lerp_(found[1].to(norm.running_var), share)
            norm.num_batches_tracked += 1
