"""Load a corpus's parser from outside the package: `my_corpus:parse`, a function of a module of one's own.

The module is found in the folder where the command is started, or wherever Python finds modules (installed, PYTHONPATH). What
goes wrong in it is told with its own file and line.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.parse_result import Parser, ParseResult

_NAME = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<function>[A-Za-z_]\w*)")
_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = {Path(path).resolve() for name, path in sysconfig.get_paths().items() if name in ("stdlib", "purelib", "platlib")}


def load_parser(name: str) -> Parser:
    """Return the parser `module:function`, which raises UserError, with file and line, for every mistake in it.

    Raises UserError where there is no such module or function, or importing it fails.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name!r} names no parser; write MODULE:FUNCTION, as my_corpus:parse for def parse in my_corpus.py")
    module = _import(name, match["module"])
    function = getattr(module, match["function"], None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and value.__module__ == module.__name__]
        there = f"it has {listed(own)}" if own else "it has no function"
        raise UserError(f"{name}: {module.__file__} has no function {match['function']!r}; {there}")

    @functools.wraps(function)
    def parse(root: Path) -> ParseResult:
        try:
            result = function(root)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{name}: {_place(error, Path(str(module.__file__)))}: {type(error).__name__}: {error}") from error
        if not isinstance(result, ParseResult):
            raise UserError(
                f"{name}: it returned {type(result).__name__}, not a ParseResult; end it with "
                "`return make_result(root, LAYOUT, clips, skipped)` of ser_hpc.corpora.parse_result"
            )
        return result

    return parse


def _import(name: str, module: str) -> ModuleType:
    here = os.getcwd()  # noqa: PTH109 - entries of sys.path are texts
    if not {here, ""} & {*sys.path}:
        sys.path.append(here)  # behind all others: a file of the user's never takes the place of an installed module
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                f"{name}: there is no module {error.name!r}, neither in {here} nor installed; start the command in the folder "
                "of its file, or put that into PYTHONPATH"
            ) from error
        raise UserError(f"{name}: {_place(error)}: {error}; install it") from error
    except SyntaxError as error:
        raise UserError(f"{name}: {error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}") from error
    except Exception as error:
        raise UserError(f"{name}: {_place(error)}: {type(error).__name__}: {error}") from error


def _place(error: Exception, file: Path | None = None) -> str:
    """Return file, line and text of the last place in the outside code, not in what it called; `file`: of its module."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    outside = [frame for frame in frames if not _is_within(frame.filename, _PACKAGE)]
    own = [frame for frame in outside if not any(_is_within(frame.filename, library) for library in _LIBRARIES)]
    if file is not None:
        own = own or [frame for frame in outside if Path(frame.filename) == file]  # of an installed module
    if not (own or outside):  # it could not even be called
        return str(file)
    last = (own or outside)[-1]
    return f"{last.filename}, line {last.lineno} ({last.line})"


def _is_within(file: str, folder: Path) -> bool:
    return Path(file).resolve().is_relative_to(folder)
