"""Settle what torch leaves open on a GPU: how much memory libraries keep to themselves, what their lack of it looks like, and
whether kernels may add up in any order."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ser_hpc.core.errors import UserError

# cuFFT's plans (models/packed.py, fft_rows), about half a megabyte each; torch would keep 4,096.
PLANS = 128
# Memory that a library wanted from the driver itself, past torch's allocator: a plain RuntimeError. cuFFT also calls it an
# internal error (pytorch issue 119420).
_RAN_OUT = re.compile(
    r"CUFFT_ALLOC_FAILED|CUFFT_INTERNAL_ERROR|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_(?:HOST|DEVICE)_ALLOCATION_FAILED|CUDA(?: driver)? error: out of memory"
)


def set_up_gpu(device: torch.device) -> None:
    """Choose `device`, a GPU with its index, before anything is computed."""
    torch.cuda.set_device(device)
    torch.backends.cuda.cufft_plan_cache.max_size = PLANS


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether it says that the GPU's memory does not suffice, in torch's words or in a library's."""
    return isinstance(error, torch.OutOfMemoryError) or _RAN_OUT.search(str(error)) is not None


def release_cached_memory(device: torch.device) -> None:
    """Give back what is kept for later: for other libraries, other processes, other sizes."""
    if device.type == "cuda":
        torch.backends.cuda.cufft_plan_cache.clear()  # the current device's, as `set_up_gpu` made it
        torch.cuda.empty_cache()


def set_deterministic(enabled: bool) -> None:
    """Allow, before anything is computed, only kernels that give the same bits every time, or any."""
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it with its first product
    torch.use_deterministic_algorithms(enabled)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing of ours reads it


@contextmanager
def explain_missing_kernels() -> Iterator[None]:
    """Raise a UserError for a layer that has no such kernel."""
    try:
        yield
    except RuntimeError as error:
        name, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise UserError(
            f"train.deterministic=true, but torch has no deterministic {name} here, which this model needs: set it to false"
        ) from error
