"""What is told to torch for a GPU, as far as it shows without one; tools/bench/gpu_checks.py looks at the rest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small import packed_tones, planned, train_on_ranks

from ser_hpc.core.errors import UserError
from ser_hpc.engine import gpu
from ser_hpc.run.rank import prepare_allocator
from ser_hpc.run.run_dir import Trial


@pytest.fixture
def as_it_was() -> Iterator[None]:
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


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
    assert gpu.is_out_of_memory(RuntimeError(words)) and gpu.is_out_of_memory(torch.OutOfMemoryError())


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
    assert not gpu.is_out_of_memory(RuntimeError(words))


def test_few_plans_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, current = SimpleNamespace(max_size=4096), []
    monkeypatch.setattr(torch.backends.cuda, "cufft_plan_cache", cache)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    gpu.set_up_gpu(torch.device("cuda", 1))
    assert cache.max_size <= 256 and current == [torch.device("cuda", 1)]


def test_memory_grows_in_one_piece_unless_the_user_said_otherwise() -> None:
    ours: dict[str, str] = {}
    prepare_allocator(ours)
    assert ours == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        theirs = {name: "max_split_size_mb:128"}
        prepare_allocator(theirs)
        assert theirs == {name: "max_split_size_mb:128"}


def test_the_allocator_is_told_before_torch_is_there() -> None:
    code = "import sys, ser_hpc.train; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reproducible_training_trains_the_same(tmp_path: Path) -> None:
    """On a CPU, where it is reproducible anyway: every kernel has what is asked for, and no bit is another."""
    shards, common = packed_tones(tmp_path), ("train.epochs=1", "model.dropout=0.1")
    runs = [planned(tmp_path / name, shards, *common, f"train.deterministic={name}") for name in ("false", "true")]
    train_on_ranks(runs, ranks=1)
    plain, wanted = (run.trial(Trial(0, 0)).weights.read_bytes() for run in runs)
    assert plain == wanted


def test_a_layer_without_a_reproducible_kernel_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, as_it_was: None) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    gpu.set_deterministic(True)
    assert torch.are_deterministic_algorithms_enabled()
    pool = torch.nn.MaxUnpool1d(2)  # has none on a CPU either
    with (
        pytest.raises(UserError, match=r"train\.deterministic=true.*max_unpooling2d.*set it to false"),
        gpu.explain_missing_kernels(),
    ):
        pool(torch.ones(1, 1, 2), torch.tensor([[[0, 2]]]))
    with pytest.raises(RuntimeError, match="something else"), gpu.explain_missing_kernels():
        raise RuntimeError("something else")
    gpu.set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()
