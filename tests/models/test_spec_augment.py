"""SpecAugment for pretrained encoders: real frames only, about as many as told, in training only, every parameter in use."""

from __future__ import annotations

import pytest
import torch
from models.tiny import ENCODERS, batch, clips

from ser_hpc.config.settings import SpecAugmentSettings
from ser_hpc.models.classifier import build_classifier
from ser_hpc.models.encoders.spec_augment import SpecAugment

MASKS = SpecAugmentSettings(time_prob=0.4, time_frames=3, feature_prob=0.3, feature_width=4)


def test_about_the_part_told_is_masked_in_whole_stretches_of_real_frames() -> None:
    lengths, rooms = [400, 7, 250, 2], [404, 11, 254, 6]
    masked = [torch.zeros(length) for length in lengths]
    for seed in range(60):
        torch.manual_seed(seed)
        rows = SpecAugment(SpecAugmentSettings(time_prob=0.2, time_frames=5))(torch.ones(sum(rooms), 3), lengths, rooms)
        for clip, own, count in zip(torch.split(rows, rooms), lengths, masked, strict=True):
            assert bool((clip == clip[:, :1]).all()) and bool((clip[own:] == 1).all())
            assert int((clip[:, 0] == 0).sum()) in range(own // 5 * 5 + 1)
            count += (clip[:own, 0] == 0).float()
    parts = [float(count.mean() / 60) for count in masked]
    assert all(0.1 < part < 0.25 for part in parts[:3])  # less than told, where stretches overlap
    assert parts[3] == 0.0, "a clip shorter than a stretch is left whole"


def test_features_are_masked_clip_by_clip_and_nothing_at_0() -> None:
    torch.manual_seed(0)
    masks = SpecAugment(SpecAugmentSettings(feature_prob=0.3, feature_width=4))
    rows = masks(torch.ones(30, 40), [10, 20])
    first, second = rows[:10], rows[10:]
    assert bool((first == first[0]).all()) and bool((second == second[0]).all())
    assert not torch.equal(first[0], second[0])
    state = torch.get_rng_state()
    assert bool((SpecAugment(SpecAugmentSettings())(torch.ones(30, 40), [10, 20]) == 1).all())
    assert torch.equal(torch.get_rng_state(), state), "no number is drawn when it is off"


@pytest.mark.parametrize("name", ENCODERS)
def test_only_training_is_masked_by_its_seed_and_every_parameter_stays_in_use(name: str) -> None:
    samples, offsets = batch(clips(9000, 4000, 12_000))
    plain = build_classifier(ENCODERS[name], 3, seed=1)
    masked = build_classifier(ENCODERS[name].model_copy(update={"spec_augment": MASKS}), 3, seed=1)

    def logits(model: torch.nn.Module, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(samples, offsets)["emotion"].detach()  # type: ignore[no-any-return]

    assert torch.equal(logits(masked.eval(), 0), logits(plain.eval(), 0))
    masked.train()
    assert torch.equal(logits(masked, 0), logits(masked, 0))
    assert not torch.equal(logits(masked, 0), logits(masked, 1))
    assert not torch.equal(logits(masked, 0), logits(plain.train(), 0))
    assert set(dict(masked.named_parameters())) == set(dict(plain.named_parameters()))
    masked(samples, offsets)["emotion"].square().sum().backward()
    assert not [parameter for parameter, value in masked.named_parameters() if value.requires_grad and value.grad is None]
