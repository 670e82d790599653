"""The store keeps what was used last within its bytes, and never reads a refused adapter twice."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.packing import LoraForm, Packer, PaddedForm, UnpaddedForm, fused_groups
from caraserve_cli.adapters.peft_config import PeftConfig
from caraserve_cli.adapters.peft_weights import read_layout
from caraserve_cli.adapters.weight_file import open_weight_file
from caraserve_cli.adapters.weights import AdapterWeights, LoraPair
from caraserve_cli.core import BaseShape
from caraserve_cli.errors import AdapterError
from caraserve_kernels.lora_layout import AdapterLayout
from tests.adapters.bad_adapters import edit_tensors
from tests.adapters.bases import shape_of, tiny_llama
from tests.adapters.peft_variants import VARIANTS, Variant, write_variant, write_variants

SHAPE = shape_of(tiny_llama())
SMALL = ("a", "b", "c", "d")
# Rank 2 on q_proj of two layers of 32 x 32, in float32.
SMALL_BYTES = 2 * 2 * (32 + 32) * 4


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four adapters of equal size, and a large one."""
    for seed, name in enumerate(SMALL):
        config = {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
        write_variant(tmp_path, Variant(name, config), tiny_llama, seed)
    large = Variant("large", {"r": 32, "lora_alpha": 2, "target_modules": ["q_proj"]})
    write_variant(tmp_path, large, tiny_llama, seed=9)
    return tmp_path


def make_store(root: Path, capacity_bytes: int) -> HostStore:
    return HostStore(AdapterLibrary.scan([root]), SHAPE, torch.float32, capacity_bytes)


def test_least_recently_used_leaves_first(root: Path) -> None:
    store = make_store(root, 3 * SMALL_BYTES)
    for name in ("a", "b", "c", "a", "d"):
        assert store.fetch(name).name == name
        store.check_integrity()
    assert store.kept_names == ("c", "a", "d")
    assert store.kept_bytes == 3 * SMALL_BYTES
    assert (store.counters.hits, store.counters.misses) == (1, 4)
    assert store.counters.loaded_bytes == 4 * SMALL_BYTES
    assert store.counters.load_ms > 0


def test_a_hit_is_the_same_object(root: Path) -> None:
    store = make_store(root, 3 * SMALL_BYTES)
    assert store.fetch("a") is store.fetch("a")


def test_an_adapter_larger_than_the_store_is_served_and_drops_nothing(root: Path) -> None:
    store = make_store(root, 2 * SMALL_BYTES)
    store.fetch("a")
    assert store.fetch("large").lora_rank == 32
    assert store.kept_names == ("a",)
    store.check_integrity()


def test_infos_outlive_the_weights(root: Path) -> None:
    store = make_store(root, SMALL_BYTES)
    info = store.info("a")
    store.fetch("b")
    shutil.rmtree(root / "a")
    assert store.info("a") == info
    assert (info.num_bytes, info.lora_rank) == (SMALL_BYTES, 2)


def test_a_refused_adapter_is_never_read_again(root: Path) -> None:
    good = (root / "a" / "adapter_config.json").read_bytes()
    (root / "a" / "adapter_config.json").write_text("{")
    store = make_store(root, 10 * SMALL_BYTES)
    with pytest.raises(AdapterError, match="not valid JSON") as first:
        store.fetch("a")
    (root / "a" / "adapter_config.json").write_bytes(good)
    for again in (store.fetch, store.info):
        with pytest.raises(AdapterError) as caught:
            again("a")
        assert str(caught.value) == str(first.value)
    assert store.counters.misses == 1
    assert store.kept_names == ()
    store.check_integrity()


def test_an_unknown_adapter_is_an_adapter_error(root: Path) -> None:
    with pytest.raises(AdapterError, match="no such adapter; did you mean 'large'"):
        make_store(root, SMALL_BYTES).fetch("larg")


def test_an_adapter_that_changes_during_the_run_is_refused(root: Path) -> None:
    """Prefixes cached with the old weights must not meet the new ones."""
    store = make_store(root, SMALL_BYTES)
    store.fetch("a")
    store.fetch("b")
    edit_tensors(root / "a", lambda tensors: next(iter(tensors.values())).mul_(2))
    for _ in range(2):
        with pytest.raises(AdapterError, match="files changed during the run"):
            store.fetch("a")
        store.check_integrity()
    with pytest.raises(AdapterError, match="files changed during the run"):
        store.info("a")


def test_an_adapter_that_vanishes_during_the_run_is_refused(root: Path) -> None:
    store = make_store(root, SMALL_BYTES)
    store.fetch("a")
    store.fetch("b")
    shutil.rmtree(root / "a")
    for again in (store.fetch, store.info):
        with pytest.raises(AdapterError, match=r"adapter_config.json cannot be read"):
            again("a")
        store.check_integrity()


def test_any_order_of_fetches_keeps_the_books(root: Path) -> None:
    store = make_store(root, 2 * SMALL_BYTES + 7)
    choice = random.Random(4)
    order: list[str] = []
    for _ in range(200):
        name = choice.choice([*SMALL, "large"])
        store.fetch(name)
        if name in SMALL:
            order = [other for other in order if other != name] + [name]
        assert store.kept_names == tuple(order[-2:])
        store.check_integrity()


def made(name: str, folder: Path, shape: BaseShape, dtype: torch.dtype) -> AdapterWeights:
    """Weights of rank 2 on q_proj, of no file."""
    if name == "bad":
        raise AdapterError(name, f"{folder} is bad")
    in_width, out_width = shape.module_shape("q_proj")
    a, b_rows = torch.ones(2, in_width, dtype=dtype), torch.full((2, out_width), len(name), dtype=dtype)
    return AdapterWeights(name, {(0, "q_proj"): LoraPair(a, b_rows)})


@pytest.mark.parametrize(
    "packer", [None, Packer(SHAPE, UnpaddedForm(), pinned=False)], ids=["plain", "packed"]
)
def test_weights_come_from_the_loader_that_is_given(packer: Packer | None) -> None:
    library = AdapterLibrary({"good": Path("nowhere"), "bad": Path("nowhere/bad")})
    store = HostStore(library, SHAPE, torch.bfloat16, 10 * SMALL_BYTES, packer, load=made)
    weights = store.fetch("good")
    assert store.fetch("good") is weights
    assert weights.pairs[0, "q_proj"].b_rows.dtype == torch.bfloat16
    assert weights.pairs[0, "q_proj"].b_rows.unique().tolist() == [4.0]
    assert (weights.packed is None) == (packer is None)
    info = store.info("good")
    assert (info.lora_rank, info.num_bytes) == (2, weights.num_bytes)
    assert info.content_hash == weights.content_hash, "packing changes no content"
    with pytest.raises(AdapterError, match="nowhere/bad is bad"):
        store.fetch("bad")
    store.check_integrity()


@pytest.mark.parametrize("form", [UnpaddedForm(), PaddedForm(64), PaddedForm(100)], ids=str)
def test_the_size_that_is_planned_with_is_what_the_headers_tell(tmp_path: Path, form: LoraForm) -> None:
    """Of every kind of adapter, before it is in the store, in it, and once it has been dropped."""
    write_variants(tmp_path, tiny_llama, seed=1)
    store = HostStore(AdapterLibrary.scan([tmp_path]), SHAPE, torch.bfloat16, 0, Packer(SHAPE, form, False))
    padded_rank = form.padded_rank if isinstance(form, PaddedForm) else None
    for variant in VARIANTS:
        told = _bytes_by_headers(tmp_path / variant.name, padded_rank)
        assert store.info(variant.name).num_bytes == told
        weights = store.fetch(variant.name)
        assert weights.packed is not None
        assert told == weights.num_bytes == weights.packed.blob.nbytes
        assert store.kept_names == ()
        assert store.info(variant.name).num_bytes == told


def _bytes_by_headers(folder: Path, padded_rank: int | None) -> int:
    with open_weight_file("", folder, headers_only=True) as file:
        sources = read_layout("", PeftConfig.read("", folder), file.headers, SHAPE)
    lora_ranks = {key: source.lora_rank for key, source in sources.items()}
    biased = [key for key, source in sources.items() if source.bias_name is not None]
    layout = AdapterLayout.build(fused_groups(SHAPE), SHAPE.num_layers, lora_ranks, biased, padded_rank)
    return layout.num_elements * torch.bfloat16.itemsize


def test_an_adapter_that_outgrew_the_padded_pool_is_refused(root: Path) -> None:
    """Its files were others when the pool's rank was chosen."""
    store = HostStore(
        AdapterLibrary.scan([root]), SHAPE, torch.float32, 10**9, Packer(SHAPE, PaddedForm(2), pinned=False)
    )
    assert store.info("a").lora_rank == 2
    with pytest.raises(AdapterError, match=r"'large': has rank 32.* no adapter had more than 2.* run again"):
        store.fetch("large")
    store.check_integrity()
