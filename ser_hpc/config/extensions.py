"""Find what stands outside the package: `module:Class` in a setting, importable from the working folder or installed.

    model: {head: {kind: my_head:GatedHead, width: 64}}      my_head.py lies in the folder where the command is started

A run keeps a copy of these sources (RUN/code/extensions), and its jobs and reports import that copy. Where such a part can
change a result, a digest of its sources is a part of the run's identity. Which files belong to it is read from its import
statements: the module, the whole package that it is in, and whatever of the same folder they import.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from ser_hpc.config.extension_errors import describe_error
from ser_hpc.core.errors import UserError, listed

OUTSIDE = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")
_T = TypeVar("_T")
_LIBRARIES = {Path(path) for name, path in sysconfig.get_paths().items() if name in ("purelib", "platlib")}
_copies: list[Path] = []  # the folders of runs whose settings are being read, the innermost last


def is_outside(kind: object) -> bool:
    """Tell whether a kind is written as `module:Class`."""
    return isinstance(kind, str) and OUTSIDE.fullmatch(kind) is not None


@contextmanager
def import_from(folder: Path) -> Iterator[None]:
    """Import from a run's copy of the sources first, within the block; a folder that is not there changes nothing."""
    _copies.append(folder)
    try:
        yield
    finally:
        _copies.pop()


def import_outside(reference: str, base: type[_T]) -> type[_T]:
    """Import the class that `module:Class` names. Raises ValueError, in words: no such module or class, none of `base`, or one
    that does not say how its part is made."""
    match = OUTSIDE.fullmatch(reference)
    assert match is not None
    module = import_module(match["module"])
    found = getattr(module, match["name"], None)
    classes = [name for name, each in vars(module).items() if isinstance(each, type) and each.__module__ == module.__name__]
    if not isinstance(found, type):
        raise ValueError(f"{_file(module)} has no class {match['name']!r}; it has {listed(classes) or 'none'}")
    if not issubclass(found, base):
        raise ValueError(
            f"{reference} ({_file(module)}) must be a class derived from {base.__module__}.{base.__name__}, "
            f"and derives from {listed([each.__name__ for each in found.__bases__])}"
        )
    if packaged := [each for each in found.__mro__ if _is_kind_of_the_package(each, base)]:  # whose builder would be asked
        raise ValueError(
            f"{reference} ({_file(module)}) derives from {packaged[0].__name__}, a kind of the package's own: derive it from "
            f"{base.__name__}, and let its `build` make what it needs"
        )
    if lacking := [name for name in ("build", "divide") if getattr(found, name, 0) is getattr(base, name, 1)]:
        raise ValueError(f"{reference} ({_file(module)}) has no method {lacking[0]!r} of its own; see {base.__name__}")
    return found


def _is_kind_of_the_package(found: type, base: type) -> bool:
    """Tell whether a class is settings that one of the package's builders takes, and not only data or a base."""
    kind = getattr(found, "model_fields", {}).get("kind")
    return issubclass(found, base) and found.__module__.startswith("ser_hpc.") and kind is not None and kind.default != ""


def import_module(name: str) -> ModuleType:
    """Import a module from outside the package. Raises ValueError, in words and with file and line of what is wrong in it."""
    copies, before, here = [str(folder) for folder in reversed(_copies) if folder.is_dir()], list(sys.path), str(Path.cwd())
    sys.path[:] = [*copies, *sys.path, here]
    try:
        _forget_other_copies(name)
        module = importlib.import_module(name)
        # What it imports later, within its functions, is looked for there too; so do processes that this one starts. A run's
        # copies stay first: the folder that a job is started in may hold the same files, edited since.
        before[:] = [*copies, *(place for place in before if place not in copies)]
        before += [here] if here not in before else []
        return module
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ValueError(f"there is no module {name!r}, neither in {(copies or [here])[0]} nor installed") from None
        raise ValueError(f"module {name!r} cannot be imported: {describe_error(error)}") from error
    except (Exception, SystemExit) as error:  # whatever stands there
        raise ValueError(f"module {name!r} cannot be imported: {describe_error(error)}") from error
    finally:
        sys.path[:] = before


def _forget_other_copies(name: str) -> None:
    """Leave out of sys.modules what was imported from elsewhere with another content: another run's copy, an edited file."""
    root = name.partition(".")[0]
    if (loaded := sys.modules.get(root)) is None:
        return
    importlib.invalidate_caches()
    spec = PathFinder.find_spec(root)
    here, there = getattr(loaded, "__file__", None), getattr(spec, "origin", None)
    if here == there or here is None or there is None or not Path(here).is_file():
        return
    loaded_sources: dict[str, bytes] = {}
    sources: dict[str, bytes] = {}
    for file, found in ((Path(here), loaded_sources), (Path(there), sources)):
        _collect(_root(file), root, found)
    if loaded_sources == sources:
        return
    stale = {str(_root(Path(here)) / path) for path in loaded_sources}  # with what it imports beside it
    for each in [each for each, module in sys.modules.items() if getattr(module, "__file__", None) in stale]:
        del sys.modules[each]


def _root(file: Path) -> Path:
    """Return the folder that a first name's module, or package by its __init__.py, is imported from."""
    return file.parents[file.name == "__init__.py"]


def _file(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or module.__name__


def sources_of(references: Iterable[str]) -> dict[str, bytes]:
    """Read the sources behind `module:Class` references: each file's path below its import root, and its content.

    Raises UserError where there are none: compiled code can be neither copied nor compared.
    """
    found: dict[str, bytes] = {}
    for reference in references:
        module = sys.modules[reference.partition(":")[0]]
        file = Path(_file(module)).absolute()  # a link stays one: what it is imported by is its name, and what lies beside it
        root = file.parents[module.__name__.count(".") + (file.name == "__init__.py")]
        _collect(root, module.__name__.partition(".")[0], found)
        if file.suffix != ".py" or file.relative_to(root).as_posix() not in found:
            raise UserError(f"{reference}: {file} is no Python source, so nothing says which code the run was made with")
    return dict(sorted(found.items()))


def _collect(root: Path, name: str, found: dict[str, bytes]) -> None:
    """Add the module or package `name` of folder `root`, and those beside it that it imports."""
    single, package = root / f"{name}.py", root / name
    files = [single] if single.is_file() else sorted(package.rglob("*.py")) if package.is_dir() else []
    for file in files:
        path = file.relative_to(root).as_posix()
        if path in found:
            continue
        found[path] = file.read_bytes()
        for other in () if root in _LIBRARIES else _imported(found[path], path):
            _collect(root, other, found)


def _imported(source: bytes, path: str) -> set[str]:
    """List the first names of all modules that a source imports but Python's own and this package, which are what they are
    wherever they lie. Relative imports are left out: its package is taken whole; so is what cannot be imported at all."""
    names: set[str] = set()
    try:
        tree = ast.parse(source, path)
    except (SyntaxError, ValueError):  # a file of the package that nobody imports, or tries to and goes on without
        return names
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {__name__.partition(".")[0]}


def sources_digest(sources: Mapping[str, bytes]) -> str:
    """Hash paths and contents, SHA-256 in hex; "" if there are none."""
    if not sources:
        return ""
    digests = (f"{path} {hashlib.sha256(content).hexdigest()}" for path, content in sorted(sources.items()))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
