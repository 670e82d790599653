"""`caraserve adapters`: the table, JSON, search, order, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.bad_adapters import edit_config
from tests.cli.command import SAMPLE, assert_refused, user_environment
from tests.cli.conftest import Caraserve

ADAPTERS, BASE = SAMPLE / "adapters", SAMPLE / "base"


def listed(ended: subprocess.CompletedProcess[str]) -> list[Any]:
    return list(json.loads(ended.stdout))


def test_the_sample_fits_its_base(caraserve: Caraserve) -> None:
    ended = caraserve("adapters", ADAPTERS, "--base", BASE)
    assert ended.returncode == 0, ended.stderr
    head, *lines = ended.stdout.splitlines()
    assert head.split() == ["adapter", "rank", "alpha", "modules", "dtype", "size", "fits", "the", "base"]
    assert len(lines) == 13
    by_name = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert by_name["team/roman"] == "4-24 16-32 q, k, v, o, down bfloat16 584 KiB yes"
    assert by_name["sort"] == "16 32 all bfloat16 851 KiB yes"
    assert list(by_name) == sorted(by_name)
    assert ended.stderr == "13 adapters, 0 refused.\n"


def test_another_base_and_a_refused_field(caraserve: Caraserve, tmp_path: Path) -> None:
    """What cannot be served stays in the list, with the reason."""
    for name in ("upper", "sort"):
        shutil.copytree(ADAPTERS / name, tmp_path / name)
    edit_config(tmp_path / "sort", {"use_dora": True})
    ended = caraserve("adapters", tmp_path, "--sort", "problem")
    assert ended.returncode == 3
    _, first, second = ended.stdout.splitlines()
    assert first.startswith("sort")
    assert "use_dora is true" in first
    assert second.startswith("upper")
    assert second.endswith("yes")
    assert ended.stderr == "2 adapters, 1 refused.\n"
    ended = caraserve("adapters", tmp_path / "upper", "--base", "llama2-7b", "--json")
    assert ended.returncode == 3
    (row,) = listed(ended)
    assert (row["name"], row["lora_ranks"]) == ("upper", [2, 2])
    assert "model.layers.6.self_attn.q_proj" in row["problem"]


def test_search_and_order(caraserve: Caraserve) -> None:
    rows = listed(caraserve("adapters", ADAPTERS, "--json", "--search", "TEAM/", "--search", "down_proj"))
    assert [row["name"] for row in rows] == ["team/pig-latin", "team/roman"]
    assert [row["lora_alphas"] for row in rows] == [[40, 40], [16, 32]]
    by_alpha = listed(caraserve("adapters", ADAPTERS, "--json", "--sort", "alpha"))
    assert by_alpha == sorted(by_alpha, key=lambda row: -row["lora_alphas"][1])
    by_rank = listed(caraserve("adapters", ADAPTERS, "--json", "--sort", "rank"))
    ranks = [tuple(reversed(row["lora_ranks"])) for row in by_rank]
    assert ranks == sorted(ranks, reverse=True)
    by_size = listed(caraserve("adapters", ADAPTERS, "--json", "--sort", "size"))
    assert [row["name"] for row in by_size][:2] == ["spell", "sort"]
    assert by_size[0]["file_bytes"] == (ADAPTERS / "spell" / "adapter_model.safetensors").stat().st_size
    ended = caraserve("adapters", ADAPTERS, "--search", "roman")
    assert ended.stderr == "1 of 13 adapters, 0 refused.\n"


def test_what_is_refused(caraserve: Caraserve, tmp_path: Path) -> None:
    assert_refused(caraserve("adapters", tmp_path / "none"), 2, "DIR: ", "none does not exist")
    assert_refused(caraserve("adapters", tmp_path), 1, "no adapters below", "adapter_config.json")
    assert_refused(caraserve("adapters", ""), 2, "DIR: it is empty")
    assert_refused(caraserve("adapters", ADAPTERS, "--base", "llama2-8b"), 1, "did you mean", "llama2-7b")
    assert_refused(caraserve("adapters"), 2, "DIR")


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--sort", "size"]], ids=str)
def test_without_a_base_no_torch_is_imported(arguments: list[str]) -> None:
    """Its import takes longer than the headers of thousands of adapters."""
    code = (
        "import sys\n"
        f"sys.argv = ['caraserve', 'adapters', {str(ADAPTERS)!r}, *{arguments!r}]\n"
        "from caraserve_cli.cli.main import main\n"
        "try:\n    main()\n"
        "finally:\n    print('HEAVY', [n for n in ('torch', 'datasets') if n in sys.modules])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=user_environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "HEAVY []"
