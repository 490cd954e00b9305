"""The checks for a GPU run on a CPU as far as they can, tell a fault from none, and go on after one that breaks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu_checks
import pytest
import torch


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> tuple[int, dict[str, Any]]:
    tiny = ("--size", "tiny", "--device", "cpu", "--out", str(out))
    monkeypatch.setattr(sys, "argv", ["gpu_checks.py", *tiny, *more])
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    code = gpu_checks.main()
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32
    return code, json.loads(out.read_text())


def test_they_run_where_they_can(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every layer's gradient is looked at, not their sum alone."""
    code, report = run(monkeypatch, tmp_path / "checks.json", "--only", "ddp", "--families", "whisper-large-v3")
    assert code == 0 and report["checks"]["ddp"]["ok"]
    found = report["families"]["whisper-large-v3"]
    assert found["exact"] and not found["inexact_layers"] and len(found["worst_layers"]) == 3


def test_a_fault_shows_and_ends_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sums in bf16 (as of atomics), and a check that raises."""

    def in_bf16(self: Any, x: torch.Tensor) -> torch.Tensor:
        total = []
        for part in x.bfloat16().split(self.lengths):
            total.append(part[0].clone())
            for row in part[1:]:
                total[-1] += row
        return torch.stack(total)

    monkeypatch.setattr(gpu_checks.Packing, "sum", in_bf16)
    monkeypatch.setattr(gpu_checks, "packed_attention", lambda *_: 1 / 0)
    names = ("attention_dropout", "filter_gradients", "precision_auto")
    code, report = run(monkeypatch, tmp_path / "checks.json", "--only", *names, "--families")
    found = {name: check["ok"] for name, check in report["checks"].items()}
    assert code == 1 and found == dict(zip(names, (False, False, True), strict=True))
    assert "ZeroDivisionError" in report["checks"]["attention_dropout"]["error"]
