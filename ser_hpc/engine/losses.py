"""Losses per clip. A step's loss is the sum over its clips of weight times loss, divided by the sum of their weights.

The weights of a step are known before it starts, on every rank, so no rank has to wait for another's to scale its gradients.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ser_hpc.models.packed import to_device


def clip_losses(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of each clip, (B,) float32."""
    logits = outputs["emotion"]
    return F.cross_entropy(logits.float(), to_device(targets["emotion"], logits.device), reduction="none")


def class_weights(targets: np.ndarray, num_classes: int, kind: str) -> np.ndarray:
    """Weight of each class, (num_classes,) float32. `balanced`: all clips / (classes x clips of the class)."""
    if kind == "none":
        return np.ones(num_classes, dtype=np.float32)
    counts = np.bincount(targets, minlength=num_classes)
    return (len(targets) / (num_classes * np.maximum(counts, 1))).astype(np.float32)
