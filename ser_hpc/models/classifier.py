"""Build the classifier, clips in, logits out: an encoder with the front that feeds it, and a head.

    front     int16 clips -> what the encoder takes, on the encoder's device, in its dtype; has no parameters
    encoder   -> frames and how many each clip has: transformers' encoders pack all clips' frames one after another, (T, D);
              the recurrent one pads them, (B, T, D)
    head      -> logits (B, num_classes), float32

A clip's logits do not change with what it is batched with, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from ser_hpc.config.settings import AcrnnModel, Model, ProbeSettings
from ser_hpc.core.errors import shared_by_all_trials
from ser_hpc.models.encoders import acrnn
from ser_hpc.models.heads import mean_pool
from ser_hpc.models.heads.attention_pool import AttentionPool
from ser_hpc.models.heads.linear_probe import LinearProbe


class Frontend(Protocol):
    """The front that feeds an encoder: it has no parameters, so nothing of it is trained, cast or saved.

    `group`: clips that normalise each other in training, and so make up a micro-batch; None: any cut of a step will do.
    """

    max_seconds: float | None
    padded: bool
    group: int | None

    def costs(self, samples: np.ndarray) -> np.ndarray:
        """Count samples that clips of so many take in a micro-batch, int64; if `padded`, with those of its longest."""

    def __call__(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames, as the head takes them, and the number of each clip's, (B,) int64 on the CPU."""


class LayeredFrontend(Frontend, Protocol):
    """A front whose encoder is a stack of layers, and which hands out the frames of each."""

    def hidden_states(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Iterator[Tensor], Tensor]:
        """Yield the frames of every layer, (T, width) each, and the number of each clip's, (B,) int64 on the CPU.

        They are those of transformers' `output_hidden_states`: what enters the first layer, what leaves each. But the last is
        always what calling the front returns, after the encoder's last norm if it has one (where it norms first, transformers
        leaves that out). Each is computed as it is asked for: whoever keeps none needs no more memory than a call.
        """


class Classifier(nn.Module):
    """`max_seconds` is the longest clip that the encoder can take (Whisper: 30; longer ones are cut), or None."""

    def __init__(self, frontend: Frontend, encoder: nn.Module, head: nn.Module, freeze_encoder: bool = False) -> None:
        super().__init__()
        self.frontend = frontend
        self.encoder = encoder
        self.head = head
        self.freeze_encoder = freeze_encoder
        self.max_seconds = frontend.max_seconds
        if freeze_encoder:
            encoder.requires_grad_(False).eval()

    def forward(self, samples: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """Classify `samples` (total,): all clips one after another, int16 or float32 in [-1, 1]; `offsets` (B + 1,): int64, on
        the CPU.

        Returns {"emotion": (B, num_classes) float32 logits} (float64 where the parameters are).
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            if isinstance(self.head, LinearProbe):
                states, lengths = frames_of_layers(self.frontend, self.encoder, samples, offsets, self.head.layers)
                return {"emotion": self.head(states, lengths)}
            frames, lengths = self.frontend(self.encoder, samples, offsets)
        return {"emotion": self.head(frames, lengths)}

    def train(self, mode: bool = True) -> Self:
        """Leave a frozen encoder in evaluation mode: without dropout its frames are the same in every epoch."""
        super().train(mode)
        if self.freeze_encoder:
            self.encoder.eval()
        return self


def frames_of_layers(
    front: Frontend, encoder: nn.Module, samples: Tensor, offsets: Tensor, layers: Sequence[int] | None
) -> tuple[Iterable[Tensor], Tensor]:
    """Yield the frames of these layers of an encoder, (T, width) each, computed as they are asked for (None: only what calling
    `front` returns), and the number of each clip's, (B,) int64 on the CPU."""
    if layers is None:
        frames, lengths = front(encoder, samples, offsets)
        return [frames], lengths
    layered: LayeredFrontend = front  # type: ignore[assignment]  # configuration.py has refused layers of any other
    states, lengths = layered.hidden_states(encoder, samples, offsets)
    return (state for number, state in enumerate(states) if number in layers), lengths


class PooledFeatureFrontend:
    """The front of a head alone. What goes in is each clip's mean frame, float (B, width), in the place of its samples: to the
    head, a clip of one frame."""

    max_seconds: float | None = None
    padded = False
    group: int | None = None

    def __init__(self, width: int) -> None:
        self.width = width

    def costs(self, samples: np.ndarray) -> np.ndarray:
        """Count as many samples as a state has numbers."""
        return np.full_like(samples, self.width)

    def __call__(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        return samples, offsets.diff()


@shared_by_all_trials()
def build_classifier(settings: Model, num_classes: int, seed: int, pooled_width: int | None = None) -> Classifier:
    """Build the classifier on the CPU, in float32: the same weights for the same seed; the global random state is left alone.

    `pooled_width`: the width of the encoder's frames, for the same head without the encoder, over `PooledFeatureFrontend`.
    Raises UserError where pretrained weights cannot be loaded or a configuration is not an encoder's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if isinstance(settings, AcrnnModel):
            network = acrnn.Acrnn(settings)
            return Classifier(acrnn.MelFrontend(settings), network, AttentionPool(settings, network.width, num_classes))
        front: Frontend
        if pooled_width is None:
            from ser_hpc.models.encoders import pretrained  # transformers takes seconds to import

            front, model, width = pretrained.load_encoder(settings)
        else:
            front, model, width = PooledFeatureFrontend(pooled_width), nn.Identity(), pooled_width
        torch.default_generator.manual_seed(seed)  # the head's weights, whatever loading the encoder drew
        head: nn.Module
        if isinstance(settings.head, ProbeSettings):
            from ser_hpc.models.encoders.configuration import num_layers

            head = LinearProbe(settings.head, width, num_layers(model.config), num_classes)
        else:
            head = mean_pool.MeanPool(settings.head, width, num_classes)
        return Classifier(front, model, head, freeze_encoder=settings.freeze == "encoder")
