from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.bench.facts import code_commit, installed_versions, write_json
from caraserve_cli.errors import OutputError


def test_only_what_is_installed_has_a_version() -> None:
    assert list(installed_versions(("torch", "no-such-package"))) == ["torch"]


def test_the_environment_tells_the_commit_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARASERVE_COMMIT", "abc123")
    assert code_commit() == "abc123"


def test_without_git_no_commit_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CARASERVE_COMMIT", raising=False)
    monkeypatch.setenv("PATH", "")
    assert code_commit() is None


def test_a_result_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"--json: .* cannot be written: No such file"):
        write_json(tmp_path / "none" / "result.json", {})
