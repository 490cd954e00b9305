"""Build heads and poolings of their settings: one builder for all kinds, from inside the package and from outside."""

from __future__ import annotations

from torch import nn

from ser_hpc.config.extension_errors import check_made, explain_errors
from ser_hpc.config.heads import (
    AttentionPooling,
    AttentiveStatisticsPooling,
    HeadSettings,
    MeanPooling,
    MeanPoolSettings,
    MeanStdPooling,
    MlpSettings,
    PoolingSettings,
)
from ser_hpc.models.heads import pooling
from ser_hpc.models.heads.mean_pool import MeanPool
from ser_hpc.models.heads.mlp import Mlp


def build_head(settings: HeadSettings, width: int, outputs: int) -> nn.Module:
    """Build a head for packed frames of `width`: (T, width) and lengths (B,) -> (B, outputs). Draws from torch's generator."""
    match settings:
        case MeanPoolSettings():
            return MeanPool(settings, width, outputs)
        case MlpSettings():
            return Mlp(settings, build_pooling(settings.pooling, width), outputs)
    with explain_errors(settings.kind):
        head: nn.Module = settings.build(width, outputs)
        check_made(f"{settings.kind}.build", head, isinstance(head, nn.Module), "a torch module")
        return head


def build_pooling(settings: PoolingSettings, width: int) -> pooling.Pooling:
    """Build a pooling for packed frames of `width`: (T, width) and lengths (B,) -> (B, out_width)."""
    match settings:
        case MeanPooling():
            return pooling.Mean(width)
        case MeanStdPooling():
            return pooling.MeanStd(width)
        case AttentionPooling():
            return pooling.Attention(width, settings.hidden)
        case AttentiveStatisticsPooling():
            return pooling.AttentiveStatistics(width, settings.hidden)
    with explain_errors(settings.kind):
        made: pooling.Pooling = settings.build(width)
        fits = isinstance(made, nn.Module) and isinstance(getattr(made, "out_width", None), int)
        check_made(f"{settings.kind}.build", made, fits, "a torch module whose `out_width` is the width of what it makes")
        return made
