"""The convolutional recurrent network: its features, its masks, its shape."""

from __future__ import annotations

import pytest
import torch
from models.tiny import ACRNN, batch, clips
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from ser_hpc.config.settings import AcrnnModel
from ser_hpc.models.classifier import build_classifier
from ser_hpc.models.encoders.acrnn import Acrnn, MelFrontend, with_deltas


def test_features_do_not_change_with_loudness() -> None:
    """Each clip is normalised by its own statistics: no gain of a recording, and nothing of other clips, enters."""
    (wave,) = clips(16_000)
    front = MelFrontend(ACRNN)
    quiet, loud = (with_deltas(front.log_mel(gain * wave / 32768)) for gain in (0.5, 1.0))
    assert loud.shape == ((16_000 - 512) // 160 + 1, 3, ACRNN.mels)
    torch.testing.assert_close(loud.mean((0, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(quiet, loud, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "augmented", [{"filter_db": 6.0, "time_warp": 0.2, "mel_warp": 0.2}, {"time_mask_s": 0.3, "mel_mask": 5}]
)
def test_augmentation_is_drawn_in_training_only_and_from_torchs_generator(augmented: dict[str, float]) -> None:
    """Same random state, same masks and warps: a resumed step sees what the first one saw. Evaluation is plain."""
    bare = ACRNN.model_copy(update={"norm": "none"})
    model, plain = build_classifier(bare.model_copy(update=augmented), 4, 0), build_classifier(bare, 4, 0)
    given = batch(clips(16_000, 12_000))

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.train()(*given)["emotion"]

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    assert torch.equal(model.eval()(*given)["emotion"], plain.eval()(*given)["emotion"])


def test_a_group_normalises_itself_alike_in_any_order() -> None:
    """In training too, clips of any lengths touch each other by the group's statistics alone."""
    model, waves = build_classifier(ACRNN, 4, 0).double().train(), clips(9000, 700, 12_001, 5160, 300)
    logits, turned = (model(*batch(given))["emotion"] for given in (waves, waves[::-1]))
    torch.testing.assert_close(turned.flip(0), logits, rtol=0, atol=1e-12)
    assert (model(*batch(waves[1:]))["emotion"] - logits[1:]).abs().max() > 1e-4, "they do touch each other"


def test_warping_keeps_its_bounds() -> None:
    """The bands stay as many; the frames change by no more than asked for."""
    front = MelFrontend(ACRNN.model_copy(update={"time_warp": 0.2, "mel_warp": 0.1}))
    torch.manual_seed(0)
    shapes = [front.warped(torch.randn(ACRNN.mels, 100)).shape for _ in range(100)]
    assert {bands for bands, _ in shapes} == {ACRNN.mels}
    assert 80 <= min(frames for _, frames in shapes) < 90 and 110 < max(frames for _, frames in shapes) <= 120


def test_masks_keep_their_bounds() -> None:
    """At most two stretches of each kind, none longer than asked for, never the whole clip."""
    front = MelFrontend(ACRNN.model_copy(update={"time_mask_s": 0.1, "mel_mask": 3}))
    torch.manual_seed(0)
    most_frames = most_bands = 0
    for _ in range(200):
        kept = front.masked(torch.ones(60, 3, ACRNN.mels))[:, 0]
        frames, bands = int((kept.sum(1) == 0).sum()), int((kept.sum(0) == 0).sum())
        assert frames <= 20 and bands <= 6
        most_frames, most_bands = max(most_frames, frames), max(most_bands, bands)
    assert most_frames > 10 and most_bands > 3


def test_the_papers_width_is_the_default() -> None:
    """128 and five times 256 kernels of 5 x 3, linear 768, 128 cells each way, 64 hidden."""
    model = build_classifier(AcrnnModel(), 7, 0)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1}
    assert shapes["encoder.convolutions.0.weight"] == (128, 3, 5, 3)
    assert shapes["encoder.convolutions.5.weight"] == (256, 256, 5, 3)
    assert shapes["encoder.linear.weight"] == (768, 256 * 10)
    assert shapes["encoder.backwards.weight_hh_l0"] == (4 * 128, 128)
    assert shapes["head.hidden.weight"] == (64, 256) and shapes["head.classifier.weight"] == (7, 64)


def test_the_two_directions_are_a_bidirectional_lstm() -> None:
    """Turning clips round instead of packing them computes what torch's packed bidirectional LSTM computes."""
    network = Acrnn(ACRNN).double()
    reference = nn.LSTM(ACRNN.linear, ACRNN.cells, batch_first=True, bidirectional=True).double()
    state = {
        f"{k}{end}": v
        for part, end in ((network.forwards, ""), (network.backwards, "_reverse"))
        for k, v in part.state_dict().items()
    }
    reference.load_state_dict(state)
    seen: list[Tensor] = []
    network.linear.register_forward_hook(lambda module, inputs, output: seen.append(F.leaky_relu(output, 0.01)))
    lengths = torch.tensor([20, 7, 13])
    frames, halved = network(torch.randn(40, 3, ACRNN.mels, dtype=torch.float64), lengths)
    inputs = pad_sequence(torch.split(seen[0], halved.tolist()), batch_first=True)
    packed = pack_padded_sequence(inputs, halved, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(reference(packed)[0], batch_first=True)
    for row, theirs, length in zip(frames, expected, halved, strict=True):
        torch.testing.assert_close(row[:length], theirs[:length], rtol=0, atol=1e-12)
