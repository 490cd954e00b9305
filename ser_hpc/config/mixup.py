"""Define the settings of mixup: in training each clip of a step is mixed with another of its clips, and so are their targets
(Zhang et al. 2018).

    data:
      mixup: {kind: waveform, alpha: 0.3}

From outside the package: derive from `MixupSettings`, add settings, and write `build`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ser_hpc.config.choice import Choice
from ser_hpc.config.section import Fraction, Section


class MixupSettings(Section):
    """How two clips become one. `of_states`: it mixes what a frozen encoder made of them, pooled, rather than their sound."""

    kind: str = ""
    of_states: ClassVar[bool] = False
    alpha: Annotated[float, Field(ge=0.01, le=100)] = 0.3
    """A clip's share of the mixture is drawn from Beta(alpha, alpha): the smaller, the nearer to all or nothing."""
    p: Fraction = 1.0
    """A clip is mixed with this probability."""

    def build(self) -> Callable[..., Any]:
        """Make a function of a clip and its partner, float32 (num_samples,) each, 1 being full scale, or pooled states
        (width,), and the clip's share, 0 to 1, that returns their mixture, as long as the clip. It draws nothing."""
        raise NotImplementedError


class WaveformMixupSettings(MixupSettings):
    """The weighted sum of two waveforms, after their augmentation. A clip keeps its length: of a longer partner the beginning
    is heard, after a shorter one silence (as in AST, Gong et al. 2021); the share drawn holds for targets all the same."""

    kind: Literal["waveform"] = "waveform"


class PooledMixupSettings(MixupSettings):
    """The weighted sum of two clips' pooled states (manifold mixup, Verma et al. 2019), where a frozen encoder's are kept and a
    head is trained on them."""

    kind: Literal["pooled"] = "pooled"
    of_states: ClassVar[bool] = True


Mixup = Annotated[MixupSettings | None, Choice(MixupSettings, WaveformMixupSettings, PooledMixupSettings, optional=True)]
