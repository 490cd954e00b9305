"""The check of a node stops a trial that cannot train there, says why, and says nothing where all is well."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from ser_hpc.core.errors import UserError
from ser_hpc.engine.fault import node_check
from ser_hpc.engine.fault.node_check import Gpu, check, gpus, runs_on

TWO = "0, NVIDIA H100 80GB HBM3, 580.65.06, 0\n1, NVIDIA H100 80GB HBM3, 580.65.06, 3\n"
CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


def node(
    monkeypatch: pytest.MonkeyPatch, folder: Path, smi: str | None, *, cuda: str | None = "13.0", sees: str | None = None
) -> None:
    """A node whose nvidia-smi prints `smi` (none: it has none), with a PyTorch for `cuda` that `sees` a GPU by that name."""
    capability = {"H100": (9, 0), "RTX 6000": (7, 5), "V100": (7, 0), "B200": (10, 0)}
    (folder / "bin").mkdir()
    if smi is not None:
        (folder / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{smi}END\n")
        (folder / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: sees)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: capability[sees or ""])
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CUDA_13)


def test_what_nvidia_smi_prints() -> None:
    assert gpus(TWO)[1] == Gpu("1", "NVIDIA H100 80GB HBM3", "580.65.06", 3)
    assert gpus("0, Tesla T4, 470.42.01, [N/A]\n") == [Gpu("0", "Tesla T4", "470.42.01", None)]
    assert gpus("0, NVIDIA RTX 6000, 535.1, [Not Supported]\n")[0].ecc_errors is None
    assert gpus("No devices were found\n") == [] == gpus("")


def test_a_node_without_gpus_asks_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node(monkeypatch, tmp_path, None)
    monkeypatch.setattr(node_check.subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    assert check("fp32", tmp_path, 1.0) == []


@pytest.mark.parametrize(
    ("smi", "cuda", "words"),
    [
        (TWO.replace("580.65.06", "535.183.01"), "13.0", "driver 535.183.01 is older than series 580"),
        (TWO.replace("580.65.06", "470.82"), "12.6", "older than series 525"),
        (TWO, None, "is built for the CPU alone"),
        (TWO, "13.0", "leave this node out"),
    ],
)
def test_gpus_that_pytorch_does_not_see(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smi: str, cuda: str | None, words: str
) -> None:
    """Training there would go on for days on a CPU; on purpose it may."""
    node(monkeypatch, tmp_path, smi, cuda=cuda)
    with pytest.raises(UserError, match=words) as caught:
        check("fp32", tmp_path, 1.0)
    assert socket.gethostname() in str(caught.value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check("fp32", tmp_path, 1.0)


def test_bf16_where_the_gpu_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node(monkeypatch, tmp_path, None, sees="RTX 6000")
    assert check("fp16", tmp_path, 1.0) == []
    with pytest.raises(UserError, match=r"RTX 6000 has no bf16.*cluster\.gpu_type.*train\.precision") as caught:
        check("bf16", tmp_path, 1.0)
    assert str(caught.value).count("bf16:") == 1  # two alike are one problem


def test_a_gpu_that_this_pytorch_has_no_code_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node(monkeypatch, tmp_path, None, sees="V100")
    with pytest.raises(UserError, match=r"V100 has compute capability 7\.0, for which this PyTorch"):
        check("fp32", tmp_path, 1.0)


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 0), False),
        ((7, 5), True),
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 3), True),
        ((12, 1), True),
        ((13, 0), True),
    ],
)
def test_where_code_runs(capability: tuple[int, int], runs: bool) -> None:
    """Within its major version from its minor on; beyond the newest by the driver's compiler alone."""
    assert runs_on(capability, CUDA_13) == runs
    assert not runs_on((13, 0), CUDA_13[:-1]) and not runs_on((11, 0), ["sm_100a"]) and runs_on((9, 0), ["sm_90a"])


def test_memory_errors_warn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node(monkeypatch, tmp_path, TWO, sees="H100")
    (warning,) = check("bf16", tmp_path, 1.0)
    assert (
        "GPU 1 (NVIDIA H100 80GB HBM3) has counted 3 uncorrected" in warning
        and f"cluster.exclude={socket.gethostname()}" in warning
    )


def test_no_room_for_a_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node(monkeypatch, tmp_path, None)
    with pytest.raises(UserError, match="GB free, and a checkpoint takes about"):
        check("fp32", tmp_path, 1e18)
