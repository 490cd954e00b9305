"""Define every setting of an experiment: typed, frozen, each with its meaning below it; unknown keys are refused.

The defaults fine-tune wav2vec2-base on one corpus. `model`, and whatever can be chosen by name, is a small tagged class
(`kind: ...`) with one builder in its own room. What of it changes the result, and so names a run: `config.schema`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ser_hpc.config.adapters import Adapter, QloraSettings
from ser_hpc.config.choice import Choice
from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.config.extensions import is_outside
from ser_hpc.config.heads import (
    Head,
    HeadSettings,
    MeanPooling,
    MeanPoolSettings,
    MlpSettings,
    NetworkHead,
    ProbeSettings,
    norm_group_of,
)
from ser_hpc.config.mixup import Mixup
from ser_hpc.config.protocols import Protocol
from ser_hpc.config.section import Fraction, Positive, PositiveFloat, Probability, Section, Strings
from ser_hpc.config.tasks import MAIN, EmotionSettings, TaskChoice, with_emotion
from ser_hpc.config.trackers import Tracker
from ser_hpc.config.transforms import Chain

_MOST_IN_TURN = 32  # trials of a job that are trained one after another


def _seeds(value: Any) -> Any:
    """Expand `3` to seeds 0, 1 and 2; `[5, 6]` means just those."""
    count = int(value) if isinstance(value, str) and value.isdigit() else value
    return tuple(range(count)) if isinstance(count, int) and not isinstance(count, bool) else value


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) != len(seeds):
        raise ValueError("a seed stands here twice")
    return seeds


Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_seeds), Field(min_length=1), AfterValidator(_distinct)
]


class RunSettings(Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")] = "ser"
    """First part of the run directory's name."""
    root: Path = Path("runs")
    """Folder that holds the run directories."""


class DataSettings(Section):
    shards: Strings = ()
    """Folder of packed shards (tools/build_shards.py makes it), or a list of them, one a corpus; each may be a URL that fsspec
    knows (`s3://...`, `https://...`), read clip by clip; or `demo`: built-in synthetic speech, made when first used."""
    labels: str = "as_annotated"
    """Label set: a name under configs/labels, a YAML file, or `as_annotated` (every annotated emotion is a class)."""
    max_seconds: PositiveFloat | None = None
    """Longer clips are cut to `max_seconds`, in training and evaluation alike; none: whole clips."""
    crop: Literal["start", "center"] = "start"
    """What a clip that is cut keeps: its first `max_seconds`, or those around its center."""
    balance: Literal["none", "class", "corpus", "speaker"] = "none"
    """What counts alike in an epoch of training: clips of the smaller classes, corpora or speakers come again, so that each has
    as many as the largest; an epoch is longer then."""

    order: Literal["random", "shards"] = "random"
    """Of an epoch's clips. `shards`, for parallel file systems and object stores: blocks of 16 MB of the shards are shuffled
    and read in sequence, and clips are shuffled within a window of blocks. Dev and test parts are read in sequence, too."""
    window_mb: Annotated[float, Field(ge=0.1, le=1 << 20)] = 1024.0
    """For `order=shards`: about so many MB of packed clips are a window, which all ranks together keep in memory. A training
    part that is no larger comes as in the random order."""
    augment: Chain = ()
    """Training only, drawn anew for each clip and epoch: a preset (`noise_pitch_stretch`, `noise_background_mask`), one with
    changes (`{preset: noise_background_mask, sounds_path: FOLDER}`), or a list of transforms, each with its arguments
    (`[{name: Gain, p: 0.5, min_gain_db: -6}]`): audiomentations' own, `RoomResponse` (a synthetic room), or `module:Class` from
    outside the package. Memory budgets count clips as long as they were before."""
    mixup: Mixup = None
    """Training only: each clip is mixed with another one of its step, its target too (Zhang et al. 2018); not with tasks of
    numbers. Clips are augmented first. None: no clip is mixed."""
    max_corrupt: Fraction = 0.001
    """Training ends when more than this part of its clips is damaged; up to then they weigh nothing, and are counted. A damaged
    clip of a dev or test part always ends it."""
    workers: Annotated[int, Field(ge=0, le=64)] | None = None
    """Processes per rank that read, decode and augment; 0: one thread. None: 0, or with augmentation what the cores allow."""
    prefetch_mb: Annotated[float, Field(ge=0, le=1024)] = 0.0
    """For parallel file systems: clips are asked for in windows of so many MB, and those that lie near each other in a shard
    come with one read; 0: micro-batch by micro-batch, clip by clip."""
    cache_gb: Annotated[float, Field(ge=0)] | None = None
    """Decoded clips that each rank keeps in memory at most, in GB (an hour of speech takes 0.115), so that they are read and
    decoded once. None: a quarter of the memory that it may use; 0: none. Only with `workers` 0."""

    @model_validator(mode="after")
    def _length_of_a_crop(self) -> Self:
        if self.crop != "start" and self.max_seconds is None:
            raise ValueError(f"data.crop={self.crop} cuts clips to data.max_seconds: set that too, as data.max_seconds=8")
        return self

    @model_validator(mode="after")
    def _one_way_of_reading(self) -> Self:
        if self.order == "random" and self.window_mb != type(self).model_fields["window_mb"].default:
            raise ValueError(f"data.window_mb={self.window_mb:g} is of data.order=shards: set that too, or leave this out")
        if self.order == "shards" and self.prefetch_mb:
            raise ValueError(
                "data.prefetch_mb is of data.order=random: with order=shards, whole windows (data.window_mb) are read"
            )
        return self

    @property
    def window_bytes(self) -> int:
        """Return the bytes of a window of `order=shards`, else 0."""
        return round(self.window_mb * 1e6) if self.order == "shards" else 0


class FoldSettings(Section):
    protocol: Protocol = "leave_one_session_out"
    """How speakers are divided over train, dev and test (docs/protocols.md): leave_one_session_out, leave_one_speaker_out,
    speaker_groups, leave_one_corpus_out, cross_corpus, given_split, iemocap_ses01 or superb; or a class from outside the
    package, with settings of its own ({kind: module:Class, ...})."""
    count: Positive | None = None
    """Number of folds; none: what the protocol says (sessions, speakers, corpora, 5 groups, 1 fixed split)."""
    test_corpora: Strings = ()
    """For `cross_corpus`: the names of the corpora that are tested."""
    train_corpora: Strings = ()
    """For `cross_corpus`: the names of those that train and choose; none: all others."""
    max_per_class: Positive | None = None
    """At most so many clips of each class train in a fold, always the same ones; dev and test parts stay whole."""
    speaker_aliases: dict[str, str | None] = Field(default={})
    """Speakers who are one person under two names, within a corpus or in two: `{savee/DC: esd/0011}`; `{savee/DC: null}`: this
    one is nobody else, however much another name is like it."""
    harmless_pairs: Strings = ()
    """Near-duplicates (docs/protocols.md) that may stand on two sides, or under two speakers or classes: `CORPUS/ID=CORPUS/ID`,
    or files of such lines."""

    @model_validator(mode="after")
    def _people(self) -> Self:
        names = [*self.speaker_aliases, *(name for name in self.speaker_aliases.values() if name is not None)]
        if wrong := [name for name in names if not all(name.partition("/")[::2])]:
            raise ValueError(f"folds.speaker_aliases: {wrong[0]!r} is no speaker; write CORPUS/NAME")
        if chained := [name for name, other in self.speaker_aliases.items() if other in self.speaker_aliases]:
            somebody = self.speaker_aliases[chained[0]]
            raise ValueError(f"folds.speaker_aliases: {somebody!r} is somebody else too: name one person")
        return self


class SpecAugmentSettings(Section):
    """Training only: stretches of frames, and of features, of each clip become zero (SpecAugment, Park et al. 2019), as wav2vec
    2.0 was fine-tuned: of the projected features before the transformer (20 ms a frame); of Whisper's log-Mel spectrogram
    (10 ms a frame). Not with a frozen encoder."""

    time_prob: Probability = 0.0
    """About this part of a clip's real frames is masked (less where stretches overlap); wav2vec 2.0: 0.05."""
    time_frames: Positive = 10
    """Frames in a stretch."""
    feature_prob: Probability = 0.0
    """About this part of the features (Whisper: of the Mel bands) is masked."""
    feature_width: Positive = 10
    """Features in a stretch."""


class ModelSettings(Section):
    """What turns clips into a task's outputs.

    From outside the package: derive from this, add settings (`head: Head = MeanPoolSettings()` for a choice of heads), and
    write `build`.
    """

    kind: str = ""

    def build(self) -> tuple[Any, Any, int]:
        """Make an encoder, on the CPU: a front (`ser_hpc.models.frontend`) that runs it on clips, the encoder with all that is
        trained, and the width of its frames. Random weights are drawn from torch's CPU generator."""
        raise NotImplementedError


class EncoderModel(ModelSettings):
    """An audio encoder of the transformers library under a classifier head: Wav2Vec2 (and MMS, XLS-R), HuBERT, WavLM, Whisper,
    which run packed, without padding; or data2vec, SEW, UniSpeech, Wav2Vec2-BERT, Wav2Vec2-Conformer, by their own forward."""

    kind: Literal["encoder"] = "encoder"
    weights: str | None = "facebook/wav2vec2-base"
    """A local folder or a name on the Hugging Face hub; none: random weights of the shape in `config`."""
    init_from: str | None = None
    """A trained model that trials start from: a run (of its folds the one that has heard none of the trial's dev and test
    speakers), one trial of it (RUN/seed_0/fold_2), a folder that `export` wrote, or a checkpoint of transformers' for audio
    classification. Encoder, sum of layers and heads are taken over where they fit, a classifier where its classes are there.
    Without `weights` and `config` the encoder is the source's."""
    config: dict[str, Any] | None = None
    """transformers' configuration for random weights (`model_type` and whatever differs from its defaults)."""
    dropout: Probability | None = None
    """Sets every dropout of the encoder; none: as its own configuration says."""
    freeze: Literal["none", "feature_encoder", "encoder"] = "none"
    """What is not trained: `none`, the convolutional `feature_encoder`, or the whole `encoder`."""
    freeze_layers: Annotated[int, Field(ge=0)] = 0
    """The lowest so many transformer layers are not trained, nor is anything below them."""
    num_layers: Positive | None = None
    """The encoder ends after so many transformer layers, and those above are not loaded; none: all are there."""
    layers: Literal["last", "weighted"] = "last"
    """What heads see: the frames of the `last` layer, or a sum of all layers' frames, each normalised, `weighted` by what is
    learnt (not with the head `probe`, which has `layers` of its own)."""
    whisper_pad_to_30s: bool = False
    """Whisper only: every clip is padded with silence to 30 s, as Whisper was trained, at 7 times the work for clips of 4.5 s;
    else its encoder runs on the real frames alone, which pre-training has not shown it. Pooled are the real frames anyway."""
    normalize: bool | None = None
    """Zero mean and unit variance per clip; none: as the weights' own preprocessor says (random weights: yes)."""
    spec_augment: SpecAugmentSettings = SpecAugmentSettings()
    head: Head = MeanPoolSettings()
    """What turns its frames into a task's outputs."""
    adapter: Adapter = None
    """What is trained in the place of the whole encoder; none: all that is not frozen."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.weights is None) == (self.config is None):
            raise ValueError("give either `weights` (a folder or hub name) or `config` (random weights, with `weights: null`)")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config.model_type is missing; use wav2vec2, hubert, wavlm, whisper or another (docs/training.md)")
        if self.adapter is not None and self.freeze == "encoder":
            raise ValueError("freeze=encoder trains nothing of the encoder, its adapter included: leave one of the two out")
        if self.layers != "last" and isinstance(self.head, ProbeSettings):
            raise ValueError("layers=weighted learns a sum of layers, and a probe sees them side by side: use head.layers")
        if self.init_from is not None and isinstance(self.head, ProbeSettings):
            raise ValueError("init_from is for what is trained step by step: for a probe, export the model, as weights")
        return self


class AcrnnModel(ModelSettings):
    """3-D convolutional recurrent network on log-Mel and deltas (Chen et al. 2018, doi 10.1109/LSP.2018.2860246)."""

    kind: Literal["acrnn"] = "acrnn"
    first_channels: Positive = 128
    """Channels of the first convolution."""
    channels: Positive = 256
    """Channels of the further convolutions."""
    layers: Positive = 6
    """Number of convolutions."""
    linear: Positive = 768
    """Width of the linear layer before the recurrent one."""
    cells: Positive = 128
    """LSTM cells in each direction."""
    hidden: Positive = 64
    """Width of the layer after attention."""
    mels: Annotated[int, Field(ge=4)] = 40
    """Mel bands."""
    norm: Literal["batch", "none"] = "batch"
    """Normalisation of the convolutions. `batch` takes its statistics, in training, over groups of clips; evaluation is clip by
    clip."""
    norm_group: Positive = 32
    """Clips of such a group, at most: a step, in its order, is divided into as few groups as that allows, as equal as can be.
    A group is one micro-batch: ranks, accumulation and budget never divide it. So it must fit on a GPU, and ranks beyond a
    step's groups are idle."""
    dropout: Probability = 0.5
    """Dropout after attention."""
    time_warp: Probability = 0.0
    """Training only: a clip is played up to this part faster or slower (without a change of pitch)."""
    mel_warp: Probability = 0.0
    """Training only: its spectrum is stretched by up to this part, as by another vocal tract (Jaitly & Hinton 2013)."""
    filter_db: Annotated[float, Field(ge=0)] = 0.0
    """Training only: a smooth random gain over frequency of up to so many dB (FilterAugment, Nam et al. 2022)."""
    time_mask_s: Annotated[float, Field(ge=0)] = 0.0
    """Training only: up to this many seconds are masked, twice a clip (SpecAugment, Park et al. 2019)."""
    mel_mask: Annotated[int, Field(ge=0)] = 0
    """Training only: up to this many Mel bands are masked, twice a clip."""


class CnnModel(ModelSettings):
    """Convolutional network on log-Mel frames: in each block a 3 x 3 convolution, normalisation, ReLU and 2 x 2 max-pooling;
    then the mean over Mel bands, as in Kong et al. 2020 (doi 10.1109/TASLP.2020.3030497), and a head."""

    kind: Literal["cnn"] = "cnn"
    channels: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=6)] = (32, 64, 128, 256)
    """Channels of each block."""
    mels: Annotated[int, Field(ge=4)] = 64
    """Mel bands."""
    norm: Literal["batch", "none"] = "batch"
    """Normalisation of the convolutions. `batch` takes its statistics, in training, over groups of clips; evaluation is clip by
    clip."""
    norm_group: Positive = 32
    """Clips of such a group, at most: as that of the acrnn."""
    head: NetworkHead = MlpSettings()
    """What turns frames into a task's outputs: the kinds of the encoder's but the probe, `mlp` the default."""

    @model_validator(mode="after")
    def _a_band_is_left(self) -> Self:
        if self.mels < (least := 1 << len(self.channels)):
            raise ValueError(f"mels={self.mels}: {len(self.channels)} blocks halve the bands as often; give {least} at least")
        return self


Model = Annotated[ModelSettings, Choice(ModelSettings, EncoderModel, AcrnnModel, CnnModel)]


Tasks = Annotated[dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,23}$")], TaskChoice], BeforeValidator(with_emotion)]


class TrainSettings(Section):
    epochs: Positive = 30
    """Passes over the training part."""
    eval_steps: Positive | None = None
    """Dev is scored every so many optimizer steps, and after the last one, and each time the weights may prove the best so far;
    none: after each epoch."""
    patience: Positive | None = None
    """Stop after this many evaluations of dev (epochs, unless `eval_steps` says otherwise) without a better score; none: never
    early."""
    global_batch: Positive = 32
    """Clips per optimizer step, over all ranks and accumulation steps."""
    select_by: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)?$")] = MAIN
    """The task whose dev score chooses the epoch (of classes UAR, of numbers the concordance), or one of its scores by name, as
    `gender.uar`."""
    accumulation: Positive | None = None
    """Micro-batches per rank and step; none: as many as `budget_seconds` asks for. Not with `model.norm=batch`: its groups are
    its micro-batches."""
    budget_seconds: PositiveFloat | None = None
    """Memory budget of a micro-batch: seconds of audio per GPU; encoders pad nothing, the acrnn counts as padded to the longest
    clip. None: found on a GPU, by what the model needs and what is free there, as much as a step can use; 80 on a CPU."""
    activation_checkpointing: Literal["auto", "always", "never"] = "auto"
    """Layers keep their inputs alone and are run again in the backward pass: a third more work, far less memory, the same
    gradients. `auto`: where the budget is found and the longest clip would not fit otherwise."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """`adam`: its weight decay is part of the gradient."""
    lr: PositiveFloat = 3e-5
    """Peak learning rate."""
    head_lr: PositiveFloat | None = None
    """That of all outside the encoder: heads, and the weights of layers; none: `lr`."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A transformer layer has the learning rate of the one above times so much; the highest has `lr`, and what lies below the
    layers counts as one more."""
    freeze_epochs: Annotated[int, Field(ge=0)] = 0
    """For so many epochs the encoder is frozen, as by `model.freeze=encoder`, while the head learns; then what `model` leaves
    to be trained of it is released: at once, or as `unfreeze_layers` says."""
    unfreeze_layers: Positive | None = None
    """Gradual unfreezing (Howard & Ruder 2018): after `freeze_epochs`, so many more transformer layers are trained in each
    epoch, from the highest down; what lies below the layers counts as one more. None: the whole encoder at once."""
    warmup: Fraction = 0.1
    """Part of all steps in which the learning rate rises linearly from zero."""
    decay: Literal["cosine", "linear", "constant"] = "linear"
    """How it falls to zero afterwards."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Not applied to biases and normalisation."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """Decay of the optimizer's averages of the gradient and of its square, per step."""
    eps: PositiveFloat = 1e-8
    """The optimizer's term that keeps its division from zero."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest norm of the gradient over all parameters; none: no clipping."""
    ema_decay: Probability = 0.0
    """Decay, per step, of a moving average of the weights, which is then what is evaluated and kept; 0: none. 0.99 averages
    over about the last 100 steps. Not under zero3."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: a clip weighs as much as its class is rare in the training part."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """What the layers compute in; the weights that are updated, the optimizer's averages and the loss stay fp32. fp16 scales
    the loss. `auto`: bf16 on GPUs that have it (compute capability 8.0 and newer), and TF32 for what is left of fp32 there;
    else fp32. A run's first trial fixes it for all of them."""
    compile: bool = False
    """Compile the encoder's layers with torch.compile: fewer and larger GPU kernels, for a minute or so at each start."""
    deterministic: bool = False
    """The same bits from the same start on the same kind of GPU, with slower kernels; refused where a layer has none. (On a CPU
    it is so anyway.)"""
    strategy: Literal["ddp", "zero1", "zero2", "zero3"] = "ddp"
    """How ranks share the work: plain data parallelism, or DeepSpeed ZeRO with its stage."""
    checkpoint_minutes: PositiveFloat = 10.0
    """A checkpoint is written this often, and after every epoch."""
    hang_minutes: PositiveFloat = 30.0
    """A rank that comes to no step (or no end of an evaluation) for so long prints its stacks, ends, and is started again."""

    @model_validator(mode="after")
    def _ema_of_whole_weights(self) -> Self:
        if self.ema_decay and self.strategy == "zero3":
            raise ValueError(
                "train.ema_decay needs whole weights on every rank: use strategy ddp, zero1 or zero2, or set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _released_before_the_end(self) -> Self:
        if self.freeze_epochs and self.freeze_epochs >= self.epochs:
            raise ValueError(
                f"train.freeze_epochs={self.freeze_epochs} of train.epochs={self.epochs} would never train the encoder: freeze "
                "for fewer epochs, or for good, by model.freeze=encoder"
            )
        return self

    @property
    def releases_encoder(self) -> bool:
        """Tell whether the encoder, or a part of it, is trained only later."""
        return self.freeze_epochs > 0 or self.unfreeze_layers is not None


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str | dict) else value


class Settings(Section):
    run: RunSettings = RunSettings()
    data: DataSettings = DataSettings()
    folds: FoldSettings = FoldSettings()
    model: Model = EncoderModel()
    tasks: Tasks = {MAIN: EmotionSettings()}  # noqa: RUF012  # frozen, as all sections are
    """What is learnt: `emotion`, the classes of `data.labels`, and others beside it, by a name of their own."""
    train: TrainSettings = TrainSettings()
    seeds: Seeds = (0,)
    """A count, or a list of seeds; each is a full cross-validation."""
    trackers: Annotated[tuple[Tracker, ...], BeforeValidator(_one_or_more)] = ()
    """Where trials' numbers go while they train, besides their own files: `[tensorboard]`."""
    cluster: ClusterSettings = ClusterSettings()

    @model_validator(mode="after")
    def _compiled_layers(self) -> Self:
        if self.train.compile and self.model.kind != "encoder":
            raise ValueError("train.compile compiles transformer layers, which this model does not have: set it to false")
        return self

    @model_validator(mode="after")
    def _tasks_that_there_are(self) -> Self:
        if not isinstance(self.tasks[MAIN], EmotionSettings):
            raise ValueError(f"tasks.{MAIN} is the classes of data.labels: give the task of another kind another name")
        if others := [name for name, task in self.tasks.items() if name != MAIN and isinstance(task, EmotionSettings)]:
            raise ValueError(f"tasks.{others[0]}.kind: only tasks.{MAIN} is of the kind emotion; use classification")
        if self.train.select_by.partition(".")[0] not in self.tasks:
            raise ValueError(f"train.select_by={self.train.select_by} names no task; there are {', '.join(self.tasks)}")
        if probes := [name for name, task in self.tasks.items() if isinstance(task.head, ProbeSettings)]:
            raise ValueError(f"tasks.{probes[0]}.head: a probe is no task's own head; set model.head.kind=probe")
        if headed := [
            name for name, task in self.tasks.items() if task.head is not None and isinstance(self.model, AcrnnModel)
        ]:
            raise ValueError(f"tasks.{headed[0]}.head: model.kind=acrnn has its own attention under every task: leave it out")
        selects = self.train.select_by.partition(".")[0]
        if adversaries := [name for name, task in self.tasks.items() if task.reversal and name in (MAIN, selects)]:
            raise ValueError(
                f"tasks.{adversaries[0]}.reversal makes it a task to unlearn: not emotion, nor what train.select_by chooses by"
            )
        model = self.model
        nothing_below = isinstance(model, EncoderModel) and model.freeze == "encoder" and model.layers == "last"
        if nothing_below and (adversaries := [name for name, task in self.tasks.items() if task.reversal]):
            raise ValueError(f"tasks.{adversaries[0]}.reversal: model.freeze=encoder leaves nothing below its head to unlearn")
        if not any(task.weight for task in self.tasks.values()):
            raise ValueError("every task has weight 0: nothing would be learnt")
        return self

    @model_validator(mode="after")
    def _four_bits_in_one_piece(self) -> Self:
        if isinstance(getattr(self.model, "adapter", None), QloraSettings) and self.train.strategy == "zero3":
            raise ValueError(
                "train.strategy=zero3 splits weights over ranks, and those of model.adapter=qlora are packed with their scales:"
                " use ddp, zero1 or zero2, under which each rank has a copy in four bits, or model.adapter.kind=lora"
            )
        return self

    @model_validator(mode="after")
    def _layers_that_decay(self) -> Self:
        if self.train.layer_decay != 1 and not isinstance(self.model, EncoderModel):
            raise ValueError("train.layer_decay is of transformer layers, which this model does not have: leave it out")
        return self

    @model_validator(mode="after")
    def _encoder_that_is_released(self) -> Self:
        name = "freeze_epochs" if self.train.freeze_epochs else "unfreeze_layers"
        if not self.train.releases_encoder:
            return self
        if isinstance(self.model, AcrnnModel | CnnModel):
            raise ValueError(
                f"train.{name} is of a pre-trained encoder, and model.kind={self.model.kind} learns from nothing: leave it out"
            )
        if self.train.unfreeze_layers is not None and not isinstance(self.model, EncoderModel):
            raise ValueError("train.unfreeze_layers is of transformer layers, which this model does not have: leave it out")
        if isinstance(self.model, EncoderModel) and self.model.freeze == "encoder":
            raise ValueError(f"train.{name} releases the encoder, which model.freeze=encoder freezes for good: leave out one")
        return self

    @model_validator(mode="after")
    def _groups_as_micro_batches(self) -> Self:
        if self.train.accumulation is not None and self.norm_group is not None:
            norm, group = self.norm_group
            raise ValueError(
                f"train.accumulation would divide clips that {norm}=batch normalises by each other: leave it out "
                f"(micro-batches are groups of {norm}_group={group} clips), or use another {norm}"
            )
        return self

    @model_validator(mode="after")
    def _probe_of_what_is_frozen(self) -> Self:
        if isinstance(getattr(self.model, "head", None), ProbeSettings) and not isinstance(self.model, EncoderModel):
            raise ValueError("model.head.kind=probe fits to what an encoder of transformers' makes: use model.kind=encoder")
        if not self.is_probe:
            return self
        assert isinstance(self.model, EncoderModel)
        if self.model.freeze != "encoder":
            raise ValueError("model.head.kind=probe fits to what a frozen encoder makes of each clip: add model.freeze=encoder")
        if self.data.augment or self.data.balance != "none":
            raise ValueError(
                "model.head.kind=probe sees each clip once, as it is: leave out data.augment and data.balance (so that rare "
                "classes count as much: train.class_weights=balanced)"
            )
        if len(self.tasks) > 1 or self.tasks[MAIN] != EmotionSettings():
            raise ValueError("model.head.kind=probe is fitted to the classes of data.labels alone: leave out `tasks`")
        return self

    @model_validator(mode="after")
    def _targets_that_mix(self) -> Self:
        if self.data.mixup is None:
            return self
        for name, task in self.tasks.items():
            if task.target == "numbers" or task.chosen_loss.over_step:
                raise ValueError(
                    f"data.mixup mixes classes and distributions, and tasks.{name} learns {task.target} by "
                    f"{task.chosen_loss.kind}: leave one of the two out"
                )
        if self.is_probe:
            raise ValueError("model.head.kind=probe sees each clip once, as it is: leave out data.mixup")
        if self.data.mixup.of_states and not self.uses_feature_cache:
            raise ValueError(
                f"data.mixup.kind={self.data.mixup.kind} mixes the pooled states of a frozen encoder, which are kept with "
                "model.freeze=encoder, a head on means and no data.augment alone: set these, or use kind=waveform"
            )
        return self

    @property
    def heads(self) -> dict[str, HeadSettings]:
        """Return the heads of a model that lets them be chosen, by their settings' paths."""
        chosen = getattr(self.model, "head", None)
        found = {"model.head": chosen} if chosen is not None else {}
        return found | {f"tasks.{name}.head": task.head for name, task in self.tasks.items() if task.head is not None}

    @property
    def norm_group(self) -> tuple[str, int] | None:
        """Return the setting of a batch normalisation, and how many clips it normalises by each other, where there is one: of
        several the smallest."""
        found = [(f"{path}.norm", group) for path, head in self.heads.items() if (group := norm_group_of(head)) is not None]
        if isinstance(self.model, AcrnnModel | CnnModel) and self.model.norm == "batch":
            found.append(("model.norm", self.model.norm_group))
        return min(found, key=lambda each: each[1], default=None)

    @property
    def is_probe(self) -> bool:
        """Tell whether a probe is fitted (engine/probe.py), in place of the training loop."""
        return isinstance(self.model, EncoderModel) and isinstance(self.model.head, ProbeSettings)

    @property
    def speaker_normalization(self) -> str | None:
        """Return how a probe's features are normalised by speaker, as `model.head.normalization` calls it; None: they are
        not."""
        head = getattr(self.model, "head", None)
        if not isinstance(head, ProbeSettings) or head.normalization not in ("train_speakers", "transductive"):
            return None
        return head.normalization

    @property
    def uses_feature_cache(self) -> bool:
        """Tell whether a head learns the same from each clip's mean frame, computed once, as through its frozen encoder:
        nothing is drawn anew before the pooling."""
        model = self.model
        if not isinstance(model, EncoderModel) or model.freeze != "encoder" or model.init_from is not None:
            return False  # trials that start from several models have several encoders
        mixes_sound = self.data.mixup is not None and not self.data.mixup.of_states
        return self.is_probe or (self._heads_take_means and not self.data.augment and not mixes_sound)

    @property
    def trains_in_turn(self) -> bool:
        """Tell whether one process trains several trials, one after another: each takes seconds, and to load the libraries, the
        index and the encoder takes as long."""
        shares_a_process = self.train.strategy == "ddp"  # DeepSpeed keeps its state in globals
        return self.uses_feature_cache and shares_a_process and self.cluster.nodes == 1 and self.cluster.trials_per_job != 1

    @property
    def trials_per_job(self) -> int:
        """Return how many trials share a job, at most: one after another, or at the same time."""
        if not self.trains_in_turn:
            return self.cluster.trials_per_gpu
        return max(self.cluster.trials_per_job or _MOST_IN_TURN, self.cluster.trials_per_gpu)

    @property
    def _heads_take_means(self) -> bool:
        return all(
            (isinstance(head, MeanPoolSettings) and not head.dropout)
            or (isinstance(head, MlpSettings) and isinstance(head.pooling, MeanPooling))
            for head in self.heads.values()
        )

    def outsiders(self) -> tuple[str, ...]:
        """Return every `module:Class` that these settings choose, each once."""
        return _outsiders(self.model_dump(mode="json"))

    def outsiders_in_results(self) -> tuple[str, ...]:
        """Return those that can change a result: all but what starts trials and what follows them."""
        return _outsiders(self.model_dump(mode="json", exclude={"cluster", "trackers"}))


def _outsiders(tree: Any) -> tuple[str, ...]:
    return tuple(sorted({kind for kind in _kinds(tree) if is_outside(kind)}))


def _kinds(tree: Any) -> Iterator[Any]:
    """Yield the kind of every section, and the name of every transform, of a tree of settings."""
    if isinstance(tree, dict):
        yield from (value for key, value in tree.items() if key in ("kind", "name"))
    if isinstance(tree, dict | list | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _kinds(value)
