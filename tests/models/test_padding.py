"""Promise 5, the score of a clip does not depend on what it was batched with; for every family and number format."""

from __future__ import annotations

import pytest
import torch
from models.tiny import MODELS, batch, clips
from torch import nn

from ser_hpc.models.classifier import Classifier, build_classifier

# Odd and even lengths, one below every receptive field, one empty (an unreadable clip), one beyond the tiny Whisper's 2 s.
LENGTHS = (12_001, 300, 16_000, 8_123, 0, 40_000)


@pytest.fixture(params=MODELS, ids=str)
def classifier(request: pytest.FixtureRequest) -> Classifier:
    model = build_classifier(MODELS[request.param], num_classes=4, seed=1)
    for parameter in model.head.parameters():  # logits of about 1, which differ from clip to clip
        nn.init.normal_(parameter, std=0.15)
    if request.param.startswith("acrnn"):
        for parameter in model.encoder.parameters():
            parameter.data.mul_(2)
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_logits_of_a_clip_do_not_depend_on_its_batch(classifier: Classifier, dtype: torch.dtype, tolerance: float) -> None:
    model, waves = classifier.to(dtype).eval(), clips(*LENGTHS)
    with torch.no_grad():
        together = model(*batch(waves))["emotion"]
        alone = torch.cat([model(*batch([wave]))["emotion"] for wave in waves])
        reversed_ = model(*batch(waves[::-1]))["emotion"].flip(0)
    assert (alone[0] - alone[3]).abs().max() > 2e-3, "all clips alike: the comparison would show nothing"
    torch.testing.assert_close(together, alone, rtol=0, atol=tolerance)
    torch.testing.assert_close(reversed_, alone, rtol=0, atol=tolerance)


def test_gradients_of_a_batch_are_the_sum_of_its_clips(classifier: Classifier) -> None:
    """Training too: what is masked on the way forward must not come back on the way backward."""
    if any(isinstance(module, nn.BatchNorm1d) for module in classifier.modules()):
        pytest.skip("batch normalisation ties the clips of a batch together in training, by design")
    model, waves = classifier.double().train(), clips(*LENGTHS)
    weights = torch.arange(4.0, dtype=torch.float64)

    def gradients(batches: list[list[torch.Tensor]]) -> list[torch.Tensor]:
        model.zero_grad()
        for part in batches:
            (model(*batch(part))["emotion"].softmax(-1) @ weights).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for together, alone in zip(gradients([waves]), gradients([[wave] for wave in waves]), strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-10)


def test_every_trainable_parameter_takes_part(classifier: Classifier) -> None:
    """Plain data parallelism refuses a parameter that gets no gradient (the mask embedding, layerdrop)."""
    model = classifier.train()
    model(*batch(clips(9000, 7000)))["emotion"].sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_bfloat16_parameters_and_autocast_give_float32_logits_near_the_exact_ones(classifier: Classifier) -> None:
    """DeepSpeed casts the module; features, statistics and logits must survive it."""
    model, given = classifier.eval(), batch(clips(12_001, 16_000, 8_123))
    with torch.no_grad():
        exact = model(*given)["emotion"]
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model(*given)["emotion"]
        cast = model.bfloat16()(*given)["emotion"]
    assert autocast.dtype == cast.dtype == torch.float32
    torch.testing.assert_close(autocast, exact, rtol=0.05, atol=0.1)
    torch.testing.assert_close(cast, exact, rtol=0.05, atol=0.1)


def test_int16_is_the_same_as_its_float_value(classifier: Classifier) -> None:
    """Augmented batches are float32 in [-1, 1], others int16: one scale for both."""
    model = classifier.eval()
    samples, offsets = batch(clips(12_001, 9_000))
    with torch.no_grad():
        assert torch.equal(model(samples, offsets)["emotion"], model(samples.float() / 32768, offsets)["emotion"])


def test_same_seed_same_weights_and_the_global_generator_is_untouched() -> None:
    """Ranks build the model each for itself; the data order of a caller must not shift by it."""
    for settings in MODELS.values():
        torch.manual_seed(5)
        state = torch.get_rng_state()
        first = build_classifier(settings, 4, seed=3)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(6)
        second, other = build_classifier(settings, 4, seed=3), build_classifier(settings, 4, seed=4)
        assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
