"""COMMANDS.md against what the program prints."""

from __future__ import annotations

import pytest

from caraserve_cli.cli.commands_page import PAGE, REMAKE, commands_page
from tests.cli.command import ROOT
from tests.cli.conftest import Caraserve


def test_the_page_is_what_the_help_says() -> None:
    is_as_made = PAGE.read_text(encoding="utf-8") == commands_page()
    assert is_as_made, f"help texts have changed; make {PAGE.relative_to(ROOT)} again: {REMAKE}"


@pytest.mark.parametrize("command", ["", "run", "bench", "profile", "adapters", "report"])
def test_each_help_stands_in_it(command: str, caraserve: Caraserve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = caraserve(*command.split(), "--help").stdout
    assert f"\n```text\n{told.rstrip()}\n```\n" in PAGE.read_text(encoding="utf-8")


def test_the_readme_leads_there() -> None:
    assert f"]({PAGE.relative_to(ROOT)})" in (ROOT / "README.md").read_text(encoding="utf-8")
