"""Define the settings of adapters: few parameters are trained in the place of the whole encoder.

From outside the package: derive from `AdapterSettings`, add settings, and write `build`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from ser_hpc.config.choice import Choice
from ser_hpc.config.section import Section


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


Adapter = Annotated[AdapterSettings | None, Choice(AdapterSettings, BitFitSettings, optional=True)]
