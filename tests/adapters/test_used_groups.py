"""Which fused projections the adapters of a library change: exactly those that their weights are for."""

from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.adapters import used_groups
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.peft_config import PeftConfig
from caraserve_cli.adapters.summary import inspect_adapter
from caraserve_cli.adapters.used_groups import find_used_groups
from caraserve_cli.core import FUSED_MODULES
from tests.adapters.bad_adapters import write_bad_adapters
from tests.adapters.bases import shape_of, tiny_llama
from tests.adapters.peft_variants import VARIANTS, Variant, write_variant, write_variants

SHAPE = shape_of(tiny_llama())


def find(root: Path) -> frozenset[int]:
    return find_used_groups(AdapterLibrary.scan([root]), SHAPE)


def test_of_every_variant(tmp_path: Path) -> None:
    write_variants(tmp_path, tiny_llama, seed=1)
    assert find(tmp_path) == frozenset(range(len(FUSED_MODULES)))
    for variant in VARIANTS:
        modules = set(inspect_adapter("", tmp_path / variant.name).modules)
        changed = {i for i, group in enumerate(FUSED_MODULES) if modules.intersection(group)}
        assert find(tmp_path / variant.name) == changed


def test_no_adapters_change_nothing(tmp_path: Path) -> None:
    assert find(tmp_path) == frozenset()


def test_unreadable_configs_are_passed_over(tmp_path: Path) -> None:
    write_bad_adapters(tmp_path / "bad", tiny_llama)
    write_variant(tmp_path, Variant("good", {"r": 2, "target_modules": ["o_proj"]}), tiny_llama, seed=1)
    assert 1 in find(tmp_path)


def test_configs_that_select_the_same_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        config = {"r": 2 + number, "target_modules": ["q_proj"]}
        write_variant(tmp_path, Variant(f"a{number}", config), tiny_llama, seed=1)
    looked: list[PeftConfig] = []
    original = used_groups._groups_of
    monkeypatch.setattr(
        used_groups, "_groups_of", lambda config, shape: looked.append(config) or original(config, shape)
    )
    assert find(tmp_path) == {0}
    assert len(looked) == 1
