"""What a call measures, the most telling first: what is left when time is up is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu.call import Part

# In order of importance; useful audio-seconds a second aimed at on a GPU whose products reach GOAL_PEAK TFLOP/s.
GOALS = {"wav2vec2-large": 3900, "whisper-large-v3": 2200, "wavlm-large": 3100, "wav2vec2-base": 8400}
GOAL_PEAK, GOAL_RATIO = 790.0, 1.5
FIRST = "wav2vec2-large"
OURS = ("pydantic", "soundfile", "soxr")
TRAINER, SPEECHBRAIN, ZERO = (*OURS, "accelerate"), (*OURS, "speechbrain"), (*OURS, "deepspeed")
# Ours with other settings, on the first family: what each costs, or gains.
VARIANTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "dropout": (("--dropout", "0.1"), OURS),
    "deterministic": (("--train", "deterministic=true"), OURS),
    "zero1": (("--train", "strategy=zero1"), ZERO),
    "zero2": (("--train", "strategy=zero2"), ZERO),
    "zero3": (("--train", "strategy=zero3"), ZERO),
    "fp32": (("--precision", "fp32"), OURS),
    "compile": (("--train", "compile=true"), OURS),
}
MACHINE = Part("machine", "gpu.machine", ("--out", "{out}"), 240, 5)  # with all imports, from a disk that is cold


@dataclass(frozen=True, slots=True)
class Sizes:
    """What changes where there is no GPU."""

    device: str
    encoders: str
    clips: int
    mean_s: float
    update: int
    whisper_update: int
    round_s: float
    repeats: int
    times_s: float

    @property
    def tiny(self) -> bool:
        return self.encoders == "tiny"


GPU = Sizes("cuda", "real", 1024, 4.5, 64, 32, 2.0, 3, 1.0)
CPU = Sizes("cpu", "tiny", 16, 1.5, 8, 8, 0.5, 1, 1.2)


@dataclass(frozen=True, slots=True)
class Given:
    """`drawn`: a folder for prepare.py; `shards`, `model`: what travelled, or None; `train`: settings of ours for all of it."""

    gpus: int
    peak_tflops: float | None
    drawn: Path
    shards: Path | None
    model: Path | None
    train: Sequence[str]

    @property
    def sizes(self) -> Sizes:
        return GPU if self.gpus else CPU


def prepare(given: Given) -> Part:
    """Runs beside the others."""
    sizes = given.sizes
    told = (
        "--folder",
        str(given.drawn),
        "--size",
        sizes.encoders,
        "--clips",
        str(sizes.clips),
        "--mean",
        str(sizes.mean_s),
        "--families",
        *GOALS,
    )
    return Part("prepare", "gpu.prepare", (*told, "--out", "{out}"), 300, 20, OURS)


def groups(given: Given) -> Iterator[tuple[Part, ...]]:
    """Parts of a group run side by side, which harms no timing: there is none in them. Groups run one after another."""
    yield (checks(given),)
    for family in GOALS:
        yield (speed(given, "ours", family, "--profile", limit_s=45),)
    for family in GOALS:
        yield (speed(given, "C", family, limit_s=50),)
    yield tuple(trials(given))
    for name, (how, needs) in VARIANTS.items():
        yield (speed(given, "ours", FIRST, *how, name=name, needs=needs, limit_s=60 if name == "compile" else 35),)
    yield (memory(given),)
    if given.gpus > 1:
        ranks = ("--ranks", "1", "2", "--out", "{out}")
        yield (Part("ranks", "scaling", ranks, 90, 45, OURS),)
    yield (speed(given, "C", FIRST, "--dropout", "0.1", name="dropout", limit_s=50),)
    for family in GOALS:
        yield (speed(given, "A", family, limit_s=35),)
    for family in (FIRST, "wav2vec2-base"):
        yield (speed(given, "E", family, limit_s=35),)
    yield (speed(given, "C-compiled", FIRST, limit_s=120),)


def checks(given: Given) -> Part:
    """Is it right? Alone: it looks at the GPU's memory, too."""
    sizes = given.sizes
    size = ("--size", sizes.encoders) if sizes.tiny else ()
    # What is deterministic is checked last, and torch looks at this with its first product.
    env = (("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),)
    return Part("checks", "gpu_checks", (*size, "--out", "{out}"), 120 * sizes.times_s, 20, OURS, env)


def trials(given: Given) -> Iterator[Part]:
    """Whole trials on what travelled, where something did."""
    sizes = given.sizes
    if given.shards is None:
        return
    encoders = ("--size", sizes.encoders, *(("--model", str(given.model)) if given.model and not sizes.tiny else ()))
    told = ("--shards", str(given.shards), "--precision", "fp32" if sizes.tiny else "bf16")
    for name, more in (("resume", ()), ("resume:deterministic", ("--train", "deterministic=true"))):
        yield Part(name, "gpu.resume", (*told, *encoders, *more, "--out", "{out}"), 90 * sizes.times_s, 20, OURS)
    if given.model is not None:
        short = ("--epochs", "1", "--trials", "1", "--cut", "0.25") if sizes.tiny else ()
        limits = ("--seconds", "{seconds}", "--out", "{out}")
        model = ("--model", str(given.model))
        yield Part("finetune", "gpu.finetune", (*told, *model, *short, *limits), 100 * sizes.times_s, 20, OURS)


def speed(
    given: Given, contender: str, family: str, *more: str, limit_s: float, name: str = "", needs: tuple[str, ...] = ()
) -> Part:
    sizes, whisper = given.sizes, family.startswith("whisper")
    told = ["--family", family, "--contender", contender, "--drawn", str(given.drawn), "--device", sizes.device]
    told += ["--update", str(sizes.whisper_update if whisper else sizes.update), "--round", str(sizes.round_s)]
    told += ["--repeats", str(sizes.repeats), *more]
    if given.peak_tflops:
        told += ["--peak-tflops", f"{given.peak_tflops:.3f}"]
    if contender == "ours":
        auto = () if "--precision" in more else ("precision=auto",)
        told = with_settings(told, (*auto, *given.train))
    elif sizes.tiny:
        told += ["--precision", "fp32"]
    needs = needs or {"ours": OURS, "E": SPEECHBRAIN}.get(contender, TRAINER)
    whole = ":".join(filter(None, (contender, family, name)))
    return Part(whole, "gpu.speed", (*told, "--seconds", "{seconds}", "--out", "{out}"), limit_s * sizes.times_s, 20, needs)


def with_settings(told: list[str], train: Sequence[str]) -> list[str]:
    """Also these settings of ours: argparse takes the last list of a name, so there is one."""
    if "--train" in told:
        at = told.index("--train") + 1
        return [*told[:at], *train, *told[at:]]
    return [*told, "--train", *train] if train else told


def memory(given: Given) -> Part:
    """Measured against stated."""
    sizes = given.sizes
    true = ("--models", "wav2vec2-large", "whisper-large-v3", "--weights", str(given.drawn / "weights"))
    some = ("--models", "scaled down") if sizes.tiny else true
    how = ("--precisions", "fp32", "--small-seconds", "10") if sizes.tiny else ("--precisions", "bf16")
    return Part("memory", "memory", (*some, *how, "--out", "{out}"), 60 * sizes.times_s, 20, OURS)
