"""The links of the pages that users read lead somewhere, and their contents name every section."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "recipes" / "README.md", ROOT / "recipes" / "MEASURED.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_contents_are_the_sections(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^##+ (.+)$", without_code, flags=re.MULTILINE)
    # As GitHub makes them: lower case, hyphens for spaces, no punctuation.
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert list(dict.fromkeys(re.findall(r"\]\(#([^)]+)\)", text))) == anchors


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!#|https?:)([^)]+)\)", text)
    assert links
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []
