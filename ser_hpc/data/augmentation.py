"""Change clips at random for training, by audiomentations, exactly the same ones whenever and wherever they are drawn again.

audiomentations draws from the global `random` and `numpy.random`. Both are seeded anew for each clip, from (seed, epoch, clip,
repetition), and afterwards put back as they were: nothing else that draws from them notices, and neither workers, ranks nor a
resume can change what a clip becomes.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ser_hpc.config.extension_errors import check_made, explain_errors
from ser_hpc.config.transforms import (
    OWN_TRANSFORMS,
    RoomResponseSettings,
    Transform,
    TransformSettings,
    named_paths,
    settings_class,
)
from ser_hpc.core.errors import UserError
from ser_hpc.data.room_response import RoomResponse
from ser_hpc.shards import RATE

_SOUNDS = ("sound_file_paths", "ir_files")  # audiomentations lists folders as the file system does: another order on each node
_NOT_FROM_SETTINGS = ("Lambda", "SpecCompose")  # takes a function; is not for sound


class Augmentation:
    """The chain that settings describe. Raises UserError for a transform or an argument that there is not.

    Travels to other processes as its settings.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)
        self._chain = [_built(transform.name, transform.arguments) for transform in transforms]

    def __call__(self, samples: np.ndarray, seed: int) -> np.ndarray:
        """Change `samples`, int16 (num_samples,) at 16 kHz -> float32 (any number,), 1 being int16's full scale.

        Noise may bring it above 1. Raises UserError where nothing is left, or what is left is not finite.
        """
        sound = samples.astype(np.float32) / 32768
        with _seeded(seed):
            for transform in self._chain:
                sound = transform(sound, RATE)
        if not len(sound) or not np.isfinite(sound).all():
            what = "no samples" if not len(sound) else "samples that are not finite"
            raise UserError(
                f"data.augment leaves {what} of a clip of {len(samples) / RATE:.2f} s: milder ranges? {self.descriptions()}"
            )
        return np.asarray(sound, dtype=np.float32)

    def __reduce__(self) -> tuple[type[Augmentation], tuple[tuple[Transform, ...]]]:
        return Augmentation, (self.transforms,)

    def descriptions(self) -> list[str]:
        """Describe each transform with all its arguments, defaults as well."""
        with warnings.catch_warnings(action="ignore"):  # about arguments that audiomentations itself forgot
            return [repr(transform) for transform in self._chain]


def check_augmentation(transforms: Sequence[Transform]) -> list[str]:
    """Build the chain, try each transform once, and describe them, before anything is submitted. Raises UserError."""
    descriptions = Augmentation(transforms).descriptions()
    noise = (np.random.default_rng(0).standard_normal(RATE) * 3000).astype(np.int16)
    for transform in transforms:
        try:
            Augmentation([transform.model_copy(update={"p": 1.0})])(noise, seed=0)
        except UserError:
            raise
        except Exception as error:  # whatever a transform may raise, such as the name of a package that it lacks
            raise UserError(f"data.augment: {transform.name} fails on a second of noise: {_describe(error)}") from error
    return descriptions


def sounds_digest(transforms: Sequence[Transform]) -> str:
    """Hash the names and sizes of all sounds in the folders that a chain names, wherever those lie; "" if it names none."""
    listing = []
    for path in named_paths(tuple(transforms)):
        files = [path] if path.is_file() else sorted(inner for inner in path.rglob("*") if inner.is_file())
        listing += [f"{file.relative_to(path) if file != path else path.name} {file.stat().st_size}" for file in files]
    return hashlib.sha256("\n".join(listing).encode()).hexdigest() if listing else ""


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


def _built(name: str, arguments: dict[str, Any]) -> Callable[..., np.ndarray]:
    with explain_errors(f"data.augment: {name}"):
        if (settings := settings_class(name)) is not None:
            return _WithSettings(name, settings.model_validate(arguments))
    import audiomentations  # a second, for SciPy
    from audiomentations.core.composition import BaseCompose
    from audiomentations.core.transforms_interface import BaseWaveformTransform

    kinds = (BaseWaveformTransform, BaseCompose)
    everything = vars(audiomentations).items()
    known = sorted(each for each, made in everything if inspect.isclass(made) and issubclass(made, kinds))
    known = [*(each for each in known if each not in _NOT_FROM_SETTINGS), *OWN_TRANSFORMS]
    if name not in known:
        raise UserError(f"data.augment: audiomentations has no transform {name!r}; {_near(name, known)}")
    kind = getattr(audiomentations, name)
    allowed = [
        each for each, parameter in inspect.signature(kind).parameters.items() if parameter.kind != parameter.VAR_KEYWORD
    ]
    if unknown := [each for each in arguments if each not in allowed]:
        raise UserError(f"data.augment: {name} has no argument {unknown[0]!r}; {_near(unknown[0], allowed)}")
    for path in named_paths((Transform(name=name, **arguments),)):
        if not path.exists():
            raise UserError(f"data.augment: {name}: there is no {path}")
    try:
        made: Callable[..., np.ndarray] = kind(**{each: _nested(argument) for each, argument in arguments.items()})
    except UserError:
        raise
    except Exception as error:  # assertions, mostly
        raise UserError(f"data.augment: {name} refuses {arguments or 'to have no arguments'}: {_describe(error)}") from error
    for each in _SOUNDS:
        if files := getattr(made, each, None):
            files.sort()
    return made


class _WithSettings:
    """A transform of this package or from outside of it, applied with the probability that its settings say."""

    def __init__(self, name: str, settings: TransformSettings) -> None:
        self._name, self._settings = name, settings
        with explain_errors(f"data.augment: {name}"):
            self._change = RoomResponse(settings) if isinstance(settings, RoomResponseSettings) else settings.build()
        check_made(f"{name}.build", self._change, callable(self._change), "a function of sound and rate")

    def __call__(self, sound: np.ndarray, rate: int) -> np.ndarray:
        if np.random.random() >= self._settings.p:
            return sound
        with explain_errors(self._name):
            made = self._change(sound, rate)
        fits = isinstance(made, np.ndarray) and made.ndim == 1 and np.issubdtype(made.dtype, np.floating)
        check_made(self._name, made, fits, "an array (samples,) of floats, 1 being full scale")
        return np.asarray(made, dtype=np.float32)

    def __repr__(self) -> str:
        return f"{self._name}({self._settings!r})"


def _nested(argument: Any) -> Any:
    """Build transforms among a transform's arguments, as in OneOf."""
    if isinstance(argument, dict) and "name" in argument:
        return _built(argument["name"], {name: value for name, value in argument.items() if name != "name"})
    return [_nested(inner) for inner in argument] if isinstance(argument, list | tuple) else argument


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def _describe(error: Exception) -> str:
    return str(error) or f"{type(error).__name__} (a value out of its range, or no sounds in a folder)"
