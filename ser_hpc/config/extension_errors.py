"""Tell mistakes in code from outside the package: with its own file and line, and once, where each further start would repeat
them. The rooms that build such parts, and the trial that runs them, call it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ser_hpc.core.errors import UserError

_HERE = str(Path(__file__).parent)  # the importer and what reads settings: never the place of a mistake


def describe_error(error: BaseException) -> str:
    """Describe an error by its kind, its words, and the file and line where it arose."""
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return f"{message} ({error.filename}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    return f"{message} ({frames[-1].filename}:{frames[-1].lineno})" if frames else message


def _is_machinery(filename: str) -> bool:
    return filename.startswith(("<", _HERE)) or "importlib" in filename


@contextmanager
def explain_errors(reference: str) -> Iterator[None]:
    """Raise whatever the outsider's code raises as a UserError that names its file and line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{reference}: {_where(error, reference)}") from error


def check_made(reference: str, made: object, fits: bool, wanted: str) -> None:
    """Raise UserError where what an outsider's code returned is not what is wanted of it."""
    if not fits:
        raise UserError(f"{reference}: it returned {_shown(made)}, and must return {wanted}")


def _shown(made: object) -> str:
    """Describe a value by its type; of an array or tensor also by shape and dtype."""
    shape = getattr(made, "shape", None)
    described = f" of shape {tuple(shape)}, {getattr(made, 'dtype', '')}" if isinstance(shape, tuple) else ""
    return "None" if made is None else f"{type(made).__name__}{described}"


def _where(error: BaseException, reference: str) -> str:
    """Describe an error by the last line of the outsider's own file that it passed."""
    module = sys.modules.get(reference.partition(":")[0])
    own = getattr(module, "__file__", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    if not frames:
        return describe_error(error)
    return f"{type(error).__name__}: {error} ({frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name})"


_MISTAKES = (
    TypeError,
    ValueError,
    LookupError,
    NameError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    NotImplementedError,
)


_NOT_ITS_FAULT = ("memory", "cuda", "cufft", "cublas", "cudnn", "nccl", "gloo", "connection")


def _is_of_shapes(error: BaseException) -> bool:
    """Tell whether torch refuses an operation, as for the shapes or dtypes that it was given: nothing that may pass."""
    return type(error) is RuntimeError and not any(word in str(error).lower() for word in _NOT_ITS_FAULT)


def outsiders_mistake(error: BaseException, references: Iterable[str]) -> str | None:
    """Say which outsider's line made a mistake that each further start would repeat; None: it is no such mistake.

    What passes through its code without being its fault (memory that ran out, a lost rank) is left to others.
    """
    if isinstance(error, UserError) or not (isinstance(error, _MISTAKES) or _is_of_shapes(error)):
        return None
    for reference in references:
        own = getattr(sys.modules.get(reference.partition(":")[0]), "__file__", None)
        if own and any(frame.filename == own for frame in traceback.extract_tb(error.__traceback__)):
            return f"{reference}: {_where(error, reference)}"
    return None
