"""What is told to torch for a GPU, as far as it shows without one; tools/bench/gpu_checks.py looks at the rest."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ser_hpc.engine import gpu


@pytest.mark.parametrize(
    "words",
    [
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "cuFFT error: CUFFT_INTERNAL_ERROR",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA driver error: out of memory",
    ],
)
def test_libraries_that_find_no_memory_have_run_out_of_it(words: str) -> None:
    assert gpu.ran_out(RuntimeError(words)) and gpu.ran_out(torch.OutOfMemoryError())


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: an illegal memory access was encountered",
        "cuFFT error: CUFFT_INVALID_SIZE",
        "CUDNN_STATUS_BAD_PARAM",
        "NCCL error",
    ],
)
def test_other_errors_have_not(words: str) -> None:
    assert not gpu.ran_out(RuntimeError(words))


def test_few_plans_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, current = SimpleNamespace(max_size=4096), []
    monkeypatch.setattr(torch.backends.cuda, "cufft_plan_cache", cache)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    gpu.set_up(torch.device("cuda", 1))
    assert cache.max_size <= 256 and current == [torch.device("cuda", 1)]
