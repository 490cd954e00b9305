"""Define the settings of adapters: few parameters are trained in the place of the whole encoder.

From outside the package: derive from `AdapterSettings`, add settings, and write `build`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from ser_hpc.config.choice import Choice
from ser_hpc.config.section import Positive, PositiveFloat, Probability, Section, Strings


class AdapterSettings(Section):
    """What is trained of an encoder, or put into it."""

    kind: str = ""

    def build(self, encoder: Any) -> None:
        """Change the encoder in place: add modules to it, and say with `requires_grad_` what is trained. It comes as the
        settings froze it; random weights are drawn from torch's CPU generator."""
        raise NotImplementedError


class BitFitSettings(AdapterSettings):
    """Of the encoder only the biases are trained (BitFit, Ben Zaken et al. 2022); all its matrices stay as they were."""

    kind: Literal["bitfit"] = "bitfit"


class LowRankSettings(AdapterSettings):
    """Thin matrices beside the encoder's own: what `lora` and `qlora` have in common."""

    rank: Positive = 8
    """Width of the thin matrices."""
    alpha: PositiveFloat = 16.0
    """Their product is added `alpha / rank` times."""
    dropout: Probability = 0.0
    """Dropout before them."""
    dora: bool = False
    """Train each row's length on its own, too (DoRA, Liu et al. 2024)."""
    targets: Strings = ()
    """Linear layers of the encoder that get them, by the end of their names, where `*` stands for anything (`[q_proj,
    "layers.1?.*.v_proj"]`); none: the attention's four and the feed-forward layers'."""


class LoraSettings(LowRankSettings):
    """Beside each chosen matrix of the encoder, which stays as it was, the product of two thin ones is trained (LoRA, Hu et al.
    2021, by the PEFT package: pip install 'ser_hpc[adapters]')."""

    kind: Literal["lora"] = "lora"


class QloraSettings(LowRankSettings):
    """As `lora`, over an encoder whose layers' matrices are kept in four bits: NF4 with double quantisation (QLoRA, Dettmers et
    al. 2023, by the bitsandbytes package: pip install 'ser_hpc[qlora]'). It saves memory, not time; not under zero3."""

    kind: Literal["qlora"] = "qlora"


Adapter = Annotated[AdapterSettings | None, Choice(AdapterSettings, BitFitSettings, LoraSettings, QloraSettings, optional=True)]
