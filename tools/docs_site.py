"""Make a site of the manual: a hook of mkdocs.yml. Run `mkdocs build --strict` after pip install -e '.[docs]'.

The pages of docs/ are taken as they are, and link to files beside docs/. Those come into the site too: the README as its first
page, other Markdown as pages, YAML and code as pages that show them, folders as lists, measurements as they are. What GitHub
takes for Markdown and Python-Markdown does not is put right.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHOWN = {".yaml": "yaml", ".py": "python"}  # files that get a page, by suffix: the language of their code
_FENCE = re.compile(r"(?ms)(^```.*?^```$)")
_LINK = re.compile(r"\]\((?![a-z]+:)([^)\s#]+)(#[^)\s]*)?\)")
_LIST_AFTER_TEXT = re.compile(r"(?m)^( *)(?![-|>#]|\d+\. )(\S.*)\n(?=\1- )")


def site_uri(path: Path) -> str:
    """Return where the site has a file or a folder of the repository, as the source that mkdocs knows it by."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        return f"{name}/index.md"
    return "index.md" if name == "README.md" else name.removeprefix("docs/") + (".md" if path.suffix in SHOWN else "")


def linked(path: Path) -> Iterator[Path]:
    """Yield the files and folders that a page links to, or that a folder holds."""
    if path.is_dir():
        yield from (each for each in sorted(path.iterdir()) if each.is_file())
    elif path.suffix == ".md":
        for target, _ in _LINK.findall(_FENCE.sub("", path.read_text(encoding="utf-8"))):
            yield (path.parent / target).resolve()


def all_files() -> list[Path]:
    """Return what the site is made of: the README, docs/, and what can be reached from there."""
    found, todo = {}, [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    while todo:
        path = todo.pop(0)
        if path not in found:
            found[path] = None
            todo += linked(path)
    return [*found]


def page_text(path: Path) -> str:
    """Return a page's Markdown for mkdocs: of a page, of code to be shown, or of a folder."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        return f"# {name}\n\n" + "".join(f"- [{each.name}]({each.name})\n" for each in linked(path))
    text = path.read_text(encoding="utf-8")
    return f"# {name}\n\n```{SHOWN[path.suffix]}\n{text}```\n" if path.suffix in SHOWN else text


def for_python_markdown(text: str, path: Path) -> str:
    """Point links into the site, and put lists as Python-Markdown wants them; blocks of code are left alone."""
    here, page = path if path.is_dir() else path.parent, Path(site_uri(path))

    def point(match: re.Match[str]) -> str:
        target = site_uri((here / match[1]).resolve())
        return f"]({os.path.relpath(target, page.parent)}{match[2] or ''})"

    parts = _FENCE.split(text)  # text, code, text, ...
    parts[::2] = [_LIST_AFTER_TEXT.sub(r"\1\2\n\n", _LINK.sub(point, _indent_lists(part))) for part in parts[::2]]
    return "".join(parts)


def _indent_lists(text: str) -> str:
    """Indent what belongs to an item of a numbered list by four spaces instead of three."""
    lines, inside = text.split("\n"), False
    for number, line in enumerate(lines):
        inside = bool(re.match(r"\d+\. ", line)) or (inside and (not line or line.startswith("   ")))
        lines[number] = f" {line}" if inside and line.startswith("   ") else line
    return "\n".join(lines)


def on_files(files: Any, *, config: Any) -> Any:
    """Add what is beside docs/ (called by mkdocs)."""
    from mkdocs.structure.files import File, InclusionLevel

    for path in all_files():
        if path.parent == ROOT / "docs" and path.suffix == ".md":
            continue
        if path.suffix in (".md", *SHOWN) or path.is_dir():
            nav = InclusionLevel.INCLUDED if path.suffix == ".md" else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, site_uri(path), content=page_text(path), inclusion=nav))
        else:
            files.append(File.generated(config, site_uri(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Prepare a page (called by mkdocs)."""
    (path,) = (path for path in all_files() if site_uri(path) == page.file.src_uri)
    return for_python_markdown(markdown, path)
