"""The site of the manual (mkdocs.yml): its navigation has every page, and links stay within it. mkdocs is not needed here."""

from __future__ import annotations

import re
from pathlib import Path

import docs_site
import pytest
import yaml
from documents import PAGES, ROOT

NAV = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
FILES = docs_site.all_files()


def test_the_navigation_names_every_page_once() -> None:
    entries = [page for group in NAV for found in group.values() for page in ([found] if isinstance(found, str) else found)]
    expected = {docs_site.site_uri(path) for path in FILES if path.suffix == ".md"}
    assert sorted(entries) == sorted(expected) and {docs_site.site_uri(page) for page in PAGES} <= expected


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".md"], ids=docs_site.site_uri)
def test_links_stay_within_the_site(path: Path) -> None:
    """Each is a file of the site, wherever in the repository its page and its target lie."""
    sources = {docs_site.site_uri(each) for each in FILES}
    here = (ROOT / "site" / docs_site.site_uri(path)).parent
    shown = re.sub(r"(?ms)^```.*?^```$", "", docs_site.for_python_markdown(docs_site.page_text(path), path))
    for target in re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", shown):
        assert (here / target).resolve().relative_to(ROOT / "site").as_posix() in sources, target


def test_markdown_is_put_as_python_markdown_wants_it() -> None:
    code = "```text\na:\n- b\n```\n"
    given = "Said:\n- one\n  goes on\n- two\n\n1. First:\n\n   ```bash\n   x\n   ```\n\n   More:\n   - three\n\n"
    expected = "Said:\n\n- one\n  goes on\n- two\n\n1. First:\n\n    ```bash\n    x\n    ```\n\n    More:\n\n    - three\n\n"
    assert docs_site.for_python_markdown(given + code, ROOT / "docs" / "data.md") == expected + code
