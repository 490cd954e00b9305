"""Calibration: the temperature that it claims, from dev alone; an ensemble is the mean of calibrated probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ser_hpc.inference.calibration import calibrate, fit_temperature
from ser_hpc.inference.ensemble import Ensemble, Heads
from ser_hpc.run.predictions import Prediction
from ser_hpc.tasks.reliability import expected_calibration_error
from ser_hpc.tasks.targets import ClassTarget, NumbersTarget, softmax


def drawn(seed: int, clips: int, classes: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose true probabilities are their softmax at that temperature, and classes drawn of it."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((clips, classes)) * 3
    return logits, np.array([rng.choice(classes, p=p) for p in softmax(logits / temperature)])


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(2, 6), st.floats(0.3, 4))
def test_the_temperature_of_drawn_clips_is_found(seed: int, classes: int, temperature: float) -> None:
    logits, truth = drawn(seed, 3000, classes, temperature)
    assert fit_temperature(logits, truth) == pytest.approx(temperature, rel=0.25)


@given(st.integers(0, 99), st.floats(0.2, 5))
def test_logits_on_another_scale_end_in_the_same_probabilities(seed: int, scale: float) -> None:
    logits, truth = drawn(seed, 60, 4, 1.0)
    assert fit_temperature(scale * logits, truth) == pytest.approx(scale * fit_temperature(logits, truth), rel=2e-3)


@pytest.mark.parametrize("clips", [1, 5, 200])
def test_a_dev_part_without_a_mistake_promises_no_certainty(clips: int) -> None:
    truth = np.arange(clips) % 3
    temperature = fit_temperature(np.eye(3)[truth] * 9, truth)
    confidence = float(softmax(np.eye(3)[:1] * 9 / temperature).max())
    assert confidence == pytest.approx(1 - 2 / 3 / (clips + 2), abs=1e-3)


def test_the_calibration_error_is_the_gap_by_bins() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert expected_calibration_error(probabilities, np.array([0, 1, 0, 1])) == pytest.approx((0.8 + 0.8) / 4)


def test_it_reads_what_trials_save_of_every_task_of_classes() -> None:
    logits, truth = drawn(1, 400, 3, 2.0)
    classes, genders = ("a", "b", "c"), ("f", "m")
    dev = [
        Prediction(
            "c", str(i), "s", "dev", classes[t], classes[int(row.argmax())],
            {name: round(p, 6) for name, p in zip(classes, softmax(row), strict=True)},
            {
                "gender": {"truth": genders[i % 2] if i % 5 else None, "prediction": {"f": 0.7, "m": 0.3}},
                "age": {"truth": {"years": 3.0}, "prediction": {"years": 4.0}},
            },
        )
        for i, (row, t) in enumerate(zip(logits, truth, strict=True))
    ]  # fmt: skip
    targets = {"emotion": ClassTarget(classes), "gender": ClassTarget(genders), "age": NumbersTarget(("years",), 0, 9)}
    found = calibrate(dev, targets)
    assert found.keys() == {"emotion", "gender"}
    assert found["emotion"].temperature == pytest.approx(fit_temperature(logits, truth), rel=1e-2)
    assert found["emotion"].ece_after < found["emotion"].ece_before
    assert (found["emotion"].num_clips, found["gender"].num_clips) == (400, 320)


class Scaled(nn.Module):
    """A head that returns fixed multiples of a clip's first sample."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(factors))

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return frames[:, :1] * self.factors


class Front:
    """Each clip is one frame, its first sample."""

    max_seconds, padded, group = None, False, None

    def __call__(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        return samples[offsets[:-1], None], torch.ones(len(offsets) - 1, dtype=torch.int64)


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.2, 5)), min_size=1, max_size=5))
def test_an_ensemble_is_the_mean_of_calibrated_probabilities(members: list[tuple[float, float, float]]) -> None:
    """And the mean of numbers."""
    heads = [Heads(0, {"emotion": Scaled([a, b]), "arousal": Scaled([a])}) for a, b, _ in members]
    targets = {"emotion": ClassTarget(("x", "y")), "arousal": NumbersTarget(("arousal",), 1, 5)}
    temperatures = [{"emotion": t} for *_, t in members]
    model = Ensemble([(Front(), nn.Identity())], heads, targets, temperatures)  # type: ignore[list-item]
    outputs = model(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0, 1, 3]))
    clips = np.array([1.0, 0.5])
    each = [softmax(np.outer(clips, [a, b]) / t) for a, b, t in members]
    assert softmax(outputs["emotion"].numpy()) == pytest.approx(np.mean(each, axis=0), abs=1e-5)
    assert outputs["arousal"].numpy()[:, 0] == pytest.approx(clips * np.mean([a for a, *_ in members]), abs=1e-5)
