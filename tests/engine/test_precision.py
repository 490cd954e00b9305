"""`train.precision: auto`: what the first trial finds is what all of a run's trials compute in, or they are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small import packed_tones, planned, run_here

from ser_hpc.config.settings import Settings
from ser_hpc.core.atomic_io import read_json
from ser_hpc.core.errors import UserError
from ser_hpc.engine import precision as settling
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.precision import choose_precision
from ser_hpc.report import write_report
from ser_hpc.run import chosen_precision
from ser_hpc.run.run_dir import RunDir, Trial

CPU, GPU = (World(0, 1, 0, 1, torch.device(*where)) for where in (("cpu",), ("cuda", 0)))
V100, A100, H100 = (7, 0), (8, 0), (9, 0)


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Settles settings on a GPU of a compute capability, without having one: (precision, torch's for products of float32)."""
    monkeypatch.setattr(World, "min_over_ranks", lambda self, number: number)
    monkeypatch.setattr(World, "broadcast_numbers", lambda self, *numbers: numbers)

    def settled(run: Path, capability: tuple[int, int] | None, asked: str = "auto") -> tuple[str, str]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(settling, "device_name", lambda device: f"a GPU of {capability}")
        settings = Settings.model_validate({"train": {"precision": asked}})
        found = choose_precision(settings, RunDir(run), GPU if capability else CPU).train.precision
        return found, torch.get_float32_matmul_precision()

    return settled


def test_the_first_trial_decides_for_all(on: Any, tmp_path: Path) -> None:
    """Newer hardware later changes nothing: neither the layers' precision nor that of other products."""
    for name, first, found in (
        ("new", A100, ("bf16", "high")),
        ("old", V100, ("fp32", "highest")),
        ("cpu", None, ("fp32", "highest")),
    ):
        (tmp_path / name).mkdir()
        assert on(tmp_path / name, first) == on(tmp_path / name, H100) == found
    assert on(tmp_path / "new", None)[0] == "bf16"  # a CPU can, too


def test_what_a_gpu_has_not_is_refused_in_words(on: Any, tmp_path: Path) -> None:
    on(tmp_path, H100)
    with pytest.raises(UserError, match=r"has no bf16, in which this run computes since .*9, 0.*cluster\.gpu_type.*fp32"):
        on(tmp_path, V100)
    with pytest.raises(UserError, match=r"has no bf16: .*train\.precision=fp16 or fp32"):
        on(tmp_path, V100, "bf16")


def test_what_is_asked_for_by_name_is_taken(on: Any, tmp_path: Path) -> None:
    """Old runs, whose settings name it, keep what they were: float32 is float32."""
    for asked in ("fp32", "bf16", "fp16"):
        assert on(tmp_path, H100, asked) == (asked, "highest")
    assert not RunDir(tmp_path).precision.exists()


def test_a_damaged_file_is_told(on: Any, tmp_path: Path) -> None:
    RunDir(tmp_path).precision.write_text("{")
    with pytest.raises(UserError, match=r"precision\.json is damaged"):
        on(tmp_path, H100)


def test_plan_trials_and_report_say_it(tmp_path: Path) -> None:
    run = planned(tmp_path / "runs", packed_tones(tmp_path), "train.epochs=1", "folds.count=4")
    assert "the first trial to start fixes it" in chosen_precision.precision_note(run, "auto")
    assert run_here(run, Trial(0, 0)) == {Trial(0, 0): 0}
    assert read_json(run.trial(Trial(0, 0)).done)["precision"] == read_json(run.precision)["precision"] == "fp32"
    said = "Computed in fp32 (train.precision=auto), as the first trial found it right on CPU."
    assert chosen_precision.precision_note(run, "auto") == said
    write_report(run)
    assert said in run.report_md.read_text() and said in read_json(run.report_json)["notes"]
