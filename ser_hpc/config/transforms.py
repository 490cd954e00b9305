"""Define the settings of augmentation: a chain of the audiomentations package's transforms, by name with their arguments.

    data:
      augment: noise_pitch_stretch                                   # a preset, or
      augment: {preset: noise_background_mask, sounds_path: /noise}  # one with arguments of its transforms changed, or
      augment:                                                       # any chain
        - {name: AddGaussianNoise, p: 0.5, min_amplitude: 0.001, max_amplitude: 0.015}
        - {name: RoomResponse, p: 0.3, rt60_s: [0.1, 0.5]}             # of this package
        - {name: OneOf, transforms: [{name: Gain}, {name: PolarityInversion}]}

Pitch, tempo and loudness carry emotion: every range is a setting, and the plan shows the whole chain.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from ser_hpc.config.extensions import import_outside, is_outside
from ser_hpc.config.section import Fraction, PositiveFloat, Section
from ser_hpc.core.home import expand_home

# What the field publishes again and again. The first is the example of audiomentations' own documentation (its ranges are the
# package's defaults) less `Shift`, which moves speech out of the clip; a stretched clip keeps all its sound, and so another
# length. The second keeps pitch and tempo: noise of two kinds, a masked stretch, and a gain, as in robust fine-tuning of
# wav2vec2; its noise (MUSAN, ESC-50, DEMAND ...) is the user's: `sounds_path` must be given.
PRESETS: dict[str, tuple[dict[str, Any], ...]] = {
    "noise_pitch_stretch": (
        {"name": "AddGaussianNoise", "p": 0.5, "min_amplitude": 0.001, "max_amplitude": 0.015},
        {"name": "PitchShift", "p": 0.5, "min_semitones": -4.0, "max_semitones": 4.0},
        {"name": "TimeStretch", "p": 0.5, "min_rate": 0.8, "max_rate": 1.25, "leave_length_unchanged": False},
    ),
    "noise_background_mask": (
        {"name": "AddGaussianNoise", "p": 0.5, "min_amplitude": 0.001, "max_amplitude": 0.015},
        {"name": "AddBackgroundNoise", "p": 0.5, "sounds_path": None, "min_snr_db": 3.0, "max_snr_db": 30.0},
        {"name": "TimeMask", "p": 0.5, "min_band_part": 0.01, "max_band_part": 0.1, "fade_duration": 0.005},
        {"name": "Gain", "p": 0.5, "min_gain_db": -12.0, "max_gain_db": 12.0},
    ),
}


class TransformSettings(Section):
    """A transform from outside the package: derive from this, add settings, and write `build`."""

    p: Fraction = 1.0
    """A clip is changed with this probability."""

    def build(self) -> Callable[..., Any]:
        """Make a function of samples, float32 (num_samples,), 1 being full scale, and the sample rate in Hz, that returns such
        samples, of any length. What it draws it draws from numpy.random or random, which are seeded for each clip."""
        raise NotImplementedError


class RoomResponseSettings(TransformSettings):
    """A synthetic room around the speaker, drawn anew for each clip."""

    rt60_s: tuple[PositiveFloat, PositiveFloat] = (0.1, 0.6)
    """Reverberation time, from and to, in seconds: in it the room's response falls by 60 dB."""
    direct_to_reverberant_db: tuple[float, float] = (0.0, 15.0)
    """How much stronger the direct sound is than the room's, from and to."""


OWN_TRANSFORMS: dict[str, type[TransformSettings]] = {"RoomResponse": RoomResponseSettings}


def settings_class(name: str) -> type[TransformSettings] | None:
    """Return the settings of a transform of this package, or from outside of it; None: it is audiomentations'.

    Raises ValueError for a class from outside that there is not.
    """
    return import_outside(name, TransformSettings) if is_outside(name) else OWN_TRANSFORMS.get(name)


class Transform(BaseModel):
    """`name` of an audiomentations transform, or `module:Class` from outside the package; every other field is an argument of
    it. Folders (`..._path`) become absolute."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @model_validator(mode="before")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        return _with_paths(value, lambda path: str(expand_home(path).absolute()))

    @model_validator(mode="after")
    def _from_outside(self) -> Self:
        if (kind := settings_class(self.name)) is not None:
            kind.model_validate(self.arguments)
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def strip_paths(transforms: list[dict[str, Any]]) -> Any:
    """Return what of a chain changes the result, besides what lies in the folders that it names."""
    return _with_paths(transforms, lambda _: "")


def named_paths(transforms: tuple[Transform, ...]) -> list[Path]:
    """List every folder or file that a chain names."""
    found: list[Path] = []

    def take(path: str) -> str:
        found.append(Path(path))
        return path

    _with_paths([transform.model_dump() for transform in transforms], take)
    return found


def _with_paths(value: Any, change: Any) -> Any:
    """Return the tree with its paths changed: the values of names that end in `_path`."""
    if isinstance(value, dict):
        return {name: (_each if name.endswith("_path") else _with_paths)(inner, change) for name, inner in value.items()}
    return [_with_paths(inner, change) for inner in value] if isinstance(value, list | tuple) else value


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_each(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def _chain(value: Any) -> Any:
    """Expand a preset's name to its transforms, with the arguments given beside it in every transform that has them."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = {"preset": value}
    if not isinstance(value, dict) or "preset" not in value:
        return value
    changes = {name: argument for name, argument in value.items() if name != "preset"}
    preset = value["preset"]
    if preset not in PRESETS:
        near = difflib.get_close_matches(str(preset), PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else "give a list of transforms ({name: ..., ...})"
        raise ValueError(f"there is no preset {preset!r}, only {' and '.join(PRESETS)}; {hint}")
    known = {name for transform in PRESETS[preset] for name in transform}
    if unknown := [name for name in changes if name not in known - {"name"}]:
        raise ValueError(f"no transform of {preset} has {unknown[0]!r}; they have {', '.join(sorted(known - {'name'}))}")
    chain = [
        transform | {name: argument for name, argument in changes.items() if name in transform} for transform in PRESETS[preset]
    ]
    if missing := [name for transform in chain for name, argument in transform.items() if argument is None]:
        raise ValueError(f"{preset} needs {missing[0]}: write data.augment={{preset: {preset}, {missing[0]}: FOLDER}}")
    return tuple(chain)


Chain = Annotated[tuple[Transform, ...], BeforeValidator(_chain)]
