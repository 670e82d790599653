"""The README's links within itself lead somewhere, and its contents name every section."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_contents_are_the_sections() -> None:
    without_code = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^##+ (.+)$", without_code, flags=re.MULTILINE)
    # As GitHub makes them: lower case, hyphens for spaces, no punctuation.
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert list(dict.fromkeys(re.findall(r"\]\(#([^)]+)\)", README))) == anchors
