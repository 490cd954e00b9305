"""Build the classifier, clips in, each task's outputs out: an encoder with the front that feeds it, and a head for each task.

    front     int16 clips -> what the encoder takes, on the encoder's device, in its dtype; has no parameters
    encoder   -> frames and how many each clip has: transformers' encoders pack all clips' frames one after another, (T, D);
              the recurrent one pads them, (B, T, D)
    layer sum -> of the frames of all its layers one, where the heads are not to see the last layer alone
    heads     -> of each task (B, width), float32: logits, or numbers

A clip's outputs do not change with what it is batched with, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from ser_hpc.config.extension_errors import check_made, explain_errors
from ser_hpc.config.extensions import is_outside
from ser_hpc.config.heads import HeadSettings, MeanPoolSettings, ProbeSettings, norm_group_of
from ser_hpc.config.settings import AcrnnModel, CnnModel, EncoderModel, ModelSettings
from ser_hpc.config.tasks import MAIN
from ser_hpc.core.errors import shared_by_all_trials
from ser_hpc.models import adapters
from ser_hpc.models.frontend import Frontend, PooledFeatureFrontend
from ser_hpc.models.heads.attention_pool import AttentionPool
from ser_hpc.models.heads.build import build_head
from ser_hpc.models.heads.linear_probe import LinearProbe
from ser_hpc.models.initial import InitialWeights
from ser_hpc.models.layer_sum import LayerSum
from ser_hpc.tasks.task import Task


class LayeredFrontend(Frontend, Protocol):
    """A front whose encoder is a stack of layers, and which hands out the frames of each."""

    def hidden_states(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Iterator[Tensor], Tensor]:
        """Yield the frames of every layer, (T, width) each, and the number of each clip's, (B,) int64 on the CPU.

        They are those of transformers' `output_hidden_states`: what enters the first layer, what leaves each. But the last is
        always what calling the front returns, after the encoder's last norm if it has one (where it norms first, transformers
        leaves that out). Each is computed as it is asked for: whoever keeps none needs no more memory than a call.
        """


class Classifier(nn.Module):
    """`max_seconds` is the longest clip that the encoder can take (Whisper: 30; longer ones are cut), or None.

    `head` is the main task's; `task_heads` those of others, by name, with an underscore behind it in the module;
    `reversals`: of those whose gradient is reversed below their head, how many times it is taken.
    """

    def __init__(
        self,
        frontend: Frontend,
        encoder: nn.Module,
        head: nn.Module,
        task_heads: Mapping[str, nn.Module] | None = None,
        freeze_encoder: bool = False,
        layer_sum: LayerSum | None = None,
        reversals: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.frontend = frontend
        self.encoder = encoder
        self.layer_sum = layer_sum
        self.head = head
        # With a mark: a module may not be named as what every module has, which a task may be (`type`, `values`).
        self.task_heads = nn.ModuleDict({f"{name}_": each for name, each in (task_heads or {}).items()})
        self.reversals = dict(reversals or {})
        self.freeze_encoder = freeze_encoder
        self.max_seconds = frontend.max_seconds
        if freeze_encoder:
            encoder.requires_grad_(False).eval()

    def forward(self, samples: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """Classify `samples` (total,): all clips one after another, int16 or float32 in [-1, 1]; `offsets` (B + 1,): int64, on
        the CPU.

        Returns by task (B, width) float32 (float64 where the parameters are).
        """
        if isinstance(self.head, LinearProbe):
            with torch.no_grad():
                states, lengths = frames_of_layers(self.frontend, self.encoder, samples, offsets, self.head.layers)
                return {MAIN: self.head(states, lengths)}
        frames, lengths = self._frames(samples, offsets)
        outputs = {MAIN: self.head(frames, lengths)}
        for marked, head in self.task_heads.items():
            name = marked.removesuffix("_")
            outputs[name] = head(_reversed(frames, self.reversals.get(name, 0.0)), lengths)
        return outputs

    def _frames(self, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the heads see: frames (T, width), and the number of each clip's, (B,) on the CPU."""
        if self.layer_sum is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
                return self.frontend(self.encoder, samples, offsets)
        # A frozen encoder's parameters need no gradient, so none of its layers is kept for one.
        states, lengths = frames_of_layers(self.frontend, self.encoder, samples, offsets, self.layer_sum.layers)
        return self.layer_sum(states), lengths

    def train(self, mode: bool = True) -> Self:
        """Leave a frozen encoder in evaluation mode: without dropout its frames are the same in every epoch."""
        super().train(mode)
        if self.freeze_encoder:
            self.encoder.eval()
        return self


def _reversed(frames: Tensor, times: float) -> Tensor:
    """Leave frames as they are, and turn their gradient round, so many times (Ganin & Lempitsky 2015); 0: leave that too."""
    if not times:
        return frames
    turned: Tensor = _Reversed.apply(frames, times)  # type: ignore[no-untyped-call]
    return turned


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, frames: Tensor, times: float) -> Tensor:
        ctx.times = times
        return frames.view_as(frames)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * -ctx.times, None


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


@shared_by_all_trials()
def build_classifier(
    settings: ModelSettings,
    num_classes: int,
    seed: int,
    *,
    head: HeadSettings | None = None,
    others: Sequence[Task] = (),
    pooled_width: int | None = None,
    initial: InitialWeights | None = None,
) -> Classifier:
    """Build the classifier on the CPU, in float32: the same weights for the same seed; the global random state is left alone.

    `num_classes`: of the main task, `head`: its own settings of a head; `others`: tasks beside it. `pooled_width`: the width of
    the encoder's frames, for the same heads without the encoder, over `PooledFeatureFrontend`. `initial`: trained weights for
    the encoder. Raises UserError where pretrained weights cannot be loaded or a configuration is not an encoder's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        reversals = {task.name: task.reversal for task in others}
        if isinstance(settings, AcrnnModel):
            from ser_hpc.models.encoders import acrnn  # torchaudio, which no other encoder needs

            network = acrnn.Acrnn(settings)
            widths = [num_classes, *(task.target.width for task in others)]
            main, *rest = (AttentionPool(settings, network.width, width) for width in widths)
            named = {task.name: each for task, each in zip(others, rest, strict=True)}
            return Classifier(acrnn.MelFrontend(settings), network, main, named, reversals=reversals)
        front, model, width, frozen = _encoder(settings, pooled_width, initial)
        layer_sum = None
        if isinstance(settings, EncoderModel) and settings.layers == "weighted":
            layer_sum = LayerSum(_num_states(front, model), normalised=pooled_width is not None)
        torch.default_generator.manual_seed(seed)  # the head's weights, whatever loading the encoder drew
        chosen: HeadSettings = getattr(settings, "head", MeanPoolSettings())
        main_head = _probe_or_head(head or chosen, width, num_classes, model)
        heads = {task.name: build_head(task.head or chosen, width, task.target.width) for task in others}
        groups = [front.group, *(norm_group_of(each) for each in (head or chosen, *(task.head or chosen for task in others)))]
        front.group = min((group for group in groups if group is not None), default=None)
        return Classifier(front, model, main_head, heads, freeze_encoder=frozen, layer_sum=layer_sum, reversals=reversals)


def build_for_tasks(
    settings: ModelSettings,
    tasks: Sequence[Task],
    seed: int,
    pooled_width: int | None = None,
    initial: InitialWeights | None = None,
) -> Classifier:
    """Build the classifier of a run's tasks, the main one first, as `build_classifier` does. `initial`: trained weights for
    all of it that they fit."""
    main, *others = tasks
    width = main.target.width
    model = build_classifier(settings, width, seed, head=main.head, others=others, pooled_width=pooled_width, initial=initial)
    if initial is not None:
        heads = {main.name: model.head} | {task.name: model.task_heads[f"{task.name}_"] for task in others}
        initial.put_rest(model.layer_sum, heads, tasks)
    return model


def _probe_or_head(settings: HeadSettings, width: int, num_classes: int, encoder: nn.Module) -> nn.Module:
    if not isinstance(settings, ProbeSettings):
        return build_head(settings, width, num_classes)
    from ser_hpc.models.encoders.configuration import num_layers

    return LinearProbe(settings, width, num_layers(encoder.config), num_classes)


def _num_states(front: Frontend, encoder: nn.Module) -> int:
    """Count what `LayeredFrontend.hidden_states` yields: one more than the encoder has layers."""
    from ser_hpc.models.encoders.configuration import num_layers

    return front.states if isinstance(front, PooledFeatureFrontend) else num_layers(encoder.config) + 1


def _encoder(
    settings: ModelSettings, pooled_width: int | None, initial: InitialWeights | None
) -> tuple[Frontend, nn.Module, int, bool]:
    """Return front, encoder, the width of its frames, and whether the settings freeze it whole."""
    frozen = isinstance(settings, EncoderModel) and settings.freeze == "encoder"
    if pooled_width is not None:
        assert isinstance(settings, EncoderModel)
        states = 1
        if settings.layers == "weighted":
            from ser_hpc.models.encoders.configuration import num_layers, read_configuration

            states = num_layers(read_configuration(settings)) + 1
        pooled = PooledFeatureFrontend(pooled_width, states)
        return pooled, nn.Identity(), pooled.width, frozen
    if isinstance(settings, EncoderModel):
        from ser_hpc.models.encoders import pretrained  # transformers takes seconds to import

        front, model, width = pretrained.load_encoder(settings)
        if initial is not None:
            initial.put_encoder(model)
        adapters.apply_adapter(settings.adapter, model)
        return front, model, width, frozen
    if isinstance(settings, CnnModel):
        from ser_hpc.models.encoders import cnn  # torchaudio, which no transformer needs

        return cnn.MelFrontend(settings), cnn.Cnn(settings), settings.channels[-1], False
    assert is_outside(settings.kind)
    with explain_errors(settings.kind):
        made: Any = settings.build()
    kinds = (Frontend, nn.Module, int)
    fits = isinstance(made, tuple) and len(made) == len(kinds) and all(map(isinstance, made, kinds))
    check_made(f"{settings.kind}.build", made, fits, "a front (derived from Frontend), a torch module, and its frames' width")
    return *made, frozen
