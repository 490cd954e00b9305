"""The house keeps its shape: imports point one way, login nodes need no torch, and the maps of README and docs are true."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ser_hpc"
# Each room may import from itself and from those before it.
ROOMS = (
    *("core", "config", "corpora", "protocols", "shards", "tasks", "data", "run", "results", "models", "inference"),
    *("engine", "launchers", "monitor", "entry"),
)
WITHOUT_TORCH = ("core", "config", "corpora", "protocols", "shards", "tasks", "run", "results", "launchers", "monitor")


def room(module: str) -> str:
    """The room of a dotted module name below ser_hpc."""
    first = module.split(".")[0]
    return first if first in ROOMS else "entry"


def imports(path: Path, typing: bool = True) -> list[str]:
    """The dotted names that a file imports; not `typing`: without those that only a type checker reads."""
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    left_out = set() if typing else {id(node) for block in blocks for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def modules() -> list[tuple[str, str]]:
    """(room, imported name) of every import of the package."""
    return [
        (room(".".join(path.relative_to(PACKAGE).with_suffix("").parts)), name)
        for path in PACKAGE.rglob("*.py")
        for name in imports(path)
    ]


def test_imports_point_one_way() -> None:
    down = [
        (here, name)
        for here, name in modules()
        if name.startswith("ser_hpc.") and ROOMS.index(room(name.removeprefix("ser_hpc."))) > ROOMS.index(here)
    ]
    assert not down


def test_no_files_import_each_other_in_a_circle() -> None:
    """Late imports, within functions, counted too; those for type checkers alone are not."""
    files = {f"ser_hpc.{'.'.join(path.relative_to(PACKAGE).with_suffix('').parts)}": path for path in PACKAGE.rglob("*.py")}
    wanted = {
        file: {module for name in imports(path, typing=False) for module in (name, name.rpartition(".")[0]) if module in files}
        for file, path in files.items()
    }
    order = list(graphlib.TopologicalSorter(wanted).static_order())  # raises CycleError, which names the circle
    assert order.index("ser_hpc.core.errors") < order.index("ser_hpc.launch")


def test_rooms_of_login_nodes_never_import_torch() -> None:
    heavy = ("torch", "transformers", "deepspeed", "torchaudio")
    assert not [(here, name) for here, name in modules() if here in WITHOUT_TORCH and name.split(".")[0] in heavy]


def test_only_one_importer_of_deepspeed() -> None:
    importers = {path.name for path in PACKAGE.rglob("*.py") if any(n.split(".")[0] == "deepspeed" for n in imports(path))}
    assert importers == {"zero.py"}


@pytest.mark.parametrize("entry", ["launch", "report", "status", "track", "pack", "predict", "export", "sweep", "web"])
def test_entry_points_import_without_torch(entry: str) -> None:
    code = f"import sys, ser_hpc.{entry}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_planning_needs_no_torch(tmp_path: Path) -> None:
    """A dry run of the whole launcher, as on a login node."""
    code = (
        "import sys; from ser_hpc.launch import main; "
        f"main(['--dry-run', '--cluster', 'local', 'run.root={tmp_path}']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


OTHER_DOTS = {"train", "folds", "model", "data", "json", "md", "html", "py", "yaml"}  # settings, and files' endings


def test_names_in_docstrings_exist() -> None:
    """`module.name` in a docstring, where `module` is a module of the package: a reader looks for it."""
    names: dict[str, set[str]] = {}
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    for path, tree in trees.items():
        kinds = (ast.FunctionDef, ast.ClassDef)
        targets = [
            node.targets[0] if isinstance(node, ast.Assign) else node.target
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AnnAssign)
        ]
        defined = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
        names.setdefault(path.stem, set()).update(defined, {node.id for node in targets if isinstance(node, ast.Name)})
    documented = (ast.AsyncFunctionDef, ast.FunctionDef, ast.ClassDef, ast.Module)
    dead = [
        f"{path.relative_to(ROOT)}: {module}.{name}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, documented)
        for module, name in re.findall(r"`(?:[a-z_]+\.)*([a-z_]+)\.([A-Za-z_]+)[`(]", ast.get_docstring(node) or "")
        if module in names and name not in names[module] and name not in names and not {module, name} & OTHER_DOTS
    ]
    assert not dead


def module_map() -> str:
    """Every module of the package, room by room, with how its docstring begins: a sentence, or the clauses that fit a line."""
    lines = []
    for folder in (PACKAGE, *sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)):
        lines.append(f"{folder.relative_to(ROOT).as_posix()}/")
        for path in sorted(set(folder.glob("*.py")) - {folder / "__init__.py"}):
            paragraph = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
            clauses = re.split(r"(?<=[:;,.])\s(?![^(]*\))", paragraph.replace("\n", " "))
            said = clauses.pop(0)
            while clauses and not said.endswith(".") and len(said) + len(clauses[0]) < 103:
                said += " " + clauses.pop(0)
            lines.append(f"  {path.name:<24} {said.rstrip('.:;,')}")
    return "\n".join(lines) + "\n"


def test_readme_names_every_room() -> None:
    """The README's map: each folder of the package stands in it, and each path in it exists."""
    tree = re.search(r"```text\n(ser_hpc/.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert tree, "README.md has a map that begins with ser_hpc/"
    named = {line.split()[0] for line in tree[1].splitlines()}
    assert not [path for path in named if not (ROOT / path).exists()]
    rooms = {f"ser_hpc/{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert rooms | {"ser_hpc/"} == {path for path in named if path.startswith("ser_hpc/")}


def test_the_map_of_modules_is_true() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert f"```text\n{module_map()}```" in page, "print it anew: python tests/test_house.py"


if __name__ == "__main__":
    print(module_map(), end="")
