"""Load a corpus's parser from outside the package: `my_corpus:parse`, a function of a module of one's own.

The module is found in the folder where the command is started, or wherever Python finds modules (installed, PYTHONPATH). What
goes wrong in it is told with its own file and line.
"""

from __future__ import annotations

import functools
from pathlib import Path

from ser_hpc.config.extension_errors import explain_errors
from ser_hpc.config.extensions import OUTSIDE, import_module
from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.parse_result import Parser, ParseResult


def load_parser(name: str) -> Parser:
    """Return the parser `module:function`, which raises UserError, with file and line, for every mistake in it.

    Raises UserError where there is no such module or function, or importing it fails.
    """
    match = OUTSIDE.fullmatch(name)
    if match is None:
        raise UserError(f"{name!r} names no parser; write MODULE:FUNCTION, as my_corpus:parse for def parse in my_corpus.py")
    try:
        module = import_module(match["module"])
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    function = getattr(module, match["name"], None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and value.__module__ == module.__name__]
        there = f"it has {listed(own)}" if own else "it has no function"
        raise UserError(f"{name}: {module.__file__} has no function {match['name']!r}; {there}")

    @functools.wraps(function)
    def parse(root: Path) -> ParseResult:
        with explain_errors(name):
            result = function(root)
        if not isinstance(result, ParseResult):
            raise UserError(
                f"{name}: it returned {type(result).__name__}, not a ParseResult; end it with "
                "`return make_result(root, LAYOUT, clips, skipped)` of ser_hpc.corpora.parse_result"
            )
        return result

    return parse
