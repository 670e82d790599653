"""The largest rank that a padded pool must have room for: of what can be served, and of nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from caraserve_cli.adapters import largest_rank
from caraserve_cli.adapters.largest_rank import find_largest_rank
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.summary import AdapterSummary, inspect_adapter
from caraserve_cli.core import BaseShape
from tests.adapters.bad_adapters import edit_config, edit_tensors, write_bad_adapters
from tests.adapters.bases import shape_of, tiny_llama
from tests.adapters.peft_variants import VARIANTS, Variant, write_variant, write_variants

SHAPE = shape_of(tiny_llama())


def find(root: Path, limit: int = 512) -> int:
    return find_largest_rank(AdapterLibrary.scan([root]), SHAPE, limit)


def write(root: Path, name: str, lora_rank: int, rank_pattern: dict[str, int] | None = None) -> Path:
    """An adapter of q_proj and v_proj."""
    config = {"r": lora_rank, "target_modules": ["q_proj", "v_proj"], "rank_pattern": rank_pattern or {}}
    write_variant(root, Variant(name, config), tiny_llama, seed=1)
    return root / name


def test_of_every_variant(tmp_path: Path) -> None:
    write_variants(tmp_path, tiny_llama, seed=1)
    assert find(tmp_path) == 64
    for variant in VARIANTS:
        largest = max(*(inspect_adapter("", tmp_path / variant.name).lora_ranks or ()), 0)
        assert find(tmp_path / variant.name) == largest > 0


def test_no_adapters_no_rank(tmp_path: Path) -> None:
    assert find(tmp_path) == 0


@pytest.mark.parametrize(
    ("rank_pattern", "largest"),
    [
        ({"v_proj": 21}, 21),
        ({"q_proj": 2, "v_proj": 3}, 3),  # no module has the rank of the config itself
        ({"down_proj": 40}, 8),  # matches no module of the adapter
        ({r".*\.1\.self_attn\.q_proj": 13}, 13),
    ],
    ids=str,
)
def test_rank_patterns(tmp_path: Path, rank_pattern: dict[str, int], largest: int) -> None:
    write(tmp_path, "a", 8, rank_pattern)
    assert find(tmp_path) == largest
    write(tmp_path, "b", 5)
    assert find(tmp_path) == max(largest, 5)


def test_what_is_refused_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, "good", 3)
    write_bad_adapters(tmp_path / "bad", tiny_llama)
    shutil.rmtree(tmp_path / "bad-good")  # what they were made from
    for name in ("nan", "infinite"):  # only their weights tell
        assert find(tmp_path / "bad" / name) == 4
        shutil.rmtree(tmp_path / "bad" / name)
    assert find(tmp_path) == 3
    edit_config(write(tmp_path, "dora", 60), {"use_dora": True})
    edit_config(write(tmp_path, "at odds", 50), {"r": 49})
    edit_tensors(write(tmp_path, "without a tensor", 40), lambda tensors: tensors.popitem())
    (write(tmp_path, "without weights", 30) / "adapter_model.safetensors").unlink()
    (write(tmp_path, "no json", 20) / "adapter_config.json").write_text("{")
    assert find(tmp_path) == 3
    write(tmp_path, "also good", 10)
    assert find(tmp_path) == 10


def test_an_adapter_above_the_limit_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, "a", 8)
    write(tmp_path, "b", 4, {"v_proj": 17})
    assert find(tmp_path, limit=17) == 17
    assert find(tmp_path, limit=16) == 8


def test_headers_are_read_only_at_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for lora_rank in (3, 9, 7, 9):
        write(tmp_path, f"{len(list(tmp_path.iterdir()))}", lora_rank)
    edit_config(write(tmp_path, "broken", 11), {"r": 10})
    inspected: list[str] = []

    def inspect(name: str, folder: Path, shape: BaseShape | None = None) -> AdapterSummary:
        inspected.append(name)
        return inspect_adapter(name, folder, shape)

    monkeypatch.setattr(largest_rank, "inspect_adapter", inspect)
    assert find(tmp_path) == 9
    assert inspected == ["broken", "3"]
