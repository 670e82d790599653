"""The store keeps what was used last within its bytes, reads nothing that it need not, and never reads a
refused adapter twice."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from caraserve_cli.adapters.host_arena import ALIGNMENT_BYTES as PAGE
from caraserve_cli.adapters.host_store import HostStore, LoadAdapter
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.loader import load_adapter
from caraserve_cli.adapters.module_key import ModuleKey
from caraserve_cli.adapters.packing import LoraForm, Packer, PaddedForm, UnpaddedForm, fused_groups
from caraserve_cli.adapters.peft_config import PeftConfig
from caraserve_cli.adapters.peft_weights import read_layout
from caraserve_cli.adapters.weight_file import open_weight_file
from caraserve_cli.adapters.weights import AdapterOutline, AdapterWeights, LoraPair
from caraserve_cli.core import BaseShape
from caraserve_cli.errors import AdapterError
from caraserve_kernels.lora_layout import A_OFFSET, AdapterLayout
from tests.adapters.bad_adapters import edit_config, edit_tensors
from tests.adapters.bases import shape_of, tiny_llama
from tests.adapters.contents import content_of
from tests.adapters.peft_variants import VARIANTS, Variant, write_variant, write_variants

Pairs = Mapping[ModuleKey, LoraPair]

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


def make_packed_store(root: Path, num_small: float, load: LoadAdapter = load_adapter) -> HostStore:
    """With room for so many small adapters, each of which takes a page."""
    packer = Packer(SHAPE, UnpaddedForm(), pinned=False)
    library = AdapterLibrary.scan([root])
    return HostStore(library, SHAPE, torch.float32, int(num_small * PAGE), packer, load)


def use(store: HostStore, name: str) -> AdapterWeights:
    weights = store.acquire(name)
    store.release(name)
    return weights


def test_least_recently_used_leaves_first(root: Path) -> None:
    store = make_store(root, 3 * SMALL_BYTES)
    for name in ("a", "b", "c", "a", "d"):
        assert use(store, name).name == name
        store.check_integrity()
    assert store.kept_names == ("c", "a", "d")
    assert store.kept_bytes == 3 * SMALL_BYTES
    assert (store.counters.hits, store.counters.misses) == (1, 4)
    assert store.counters.loaded_bytes == 4 * SMALL_BYTES
    assert store.counters.load_ms > 0


def test_a_hit_is_the_same_object(root: Path) -> None:
    store = make_store(root, 3 * SMALL_BYTES)
    assert use(store, "a") is use(store, "a")


def test_what_is_acquired_stays_where_it_is_until_all_have_released_it(root: Path) -> None:
    store = make_packed_store(root, num_small=2)
    weights = store.acquire("a")
    assert store.acquire("a") is weights
    before = content_of(weights)
    for _ in range(2):
        use(store, "b")
        use(store, "c")
        assert store.kept_names == ("a", "c")
        store.release("a")
    assert content_of(weights) == before
    use(store, "b")
    assert store.kept_names == ("c", "b")
    with pytest.raises(KeyError):
        store.release("c")
    with pytest.raises(KeyError):
        store.release("a")
    store.check_integrity()


def test_packed_weights_lie_in_the_arena_where_they_say(root: Path) -> None:
    store = make_packed_store(root, num_small=3)
    assert store.arena is not None
    use(store, "b")
    weights = use(store, "a")
    assert weights.packed is not None
    assert weights.packed.arena_offset_bytes is not None
    with mmap.mmap(store.arena.fd, store.arena.capacity_bytes) as memory:
        mapped = torch.frombuffer(bytearray(memory), dtype=torch.float32)
    table = weights.packed.layout.placed(weights.packed.arena_offset_bytes // 4)
    first = int(table[0, 0, A_OFFSET])
    assert torch.equal(mapped[first : first + 64].view(2, 32), weights.pairs[0, "q_proj"].a)
    assert content_of(weights) == content_of(load_adapter("a", root / "a", SHAPE, torch.float32))
    assert (weights.host_bytes, store.kept_bytes) == (PAGE, 2 * PAGE)


@pytest.mark.parametrize("form", [UnpaddedForm(), PaddedForm(40)], ids=str)
def test_what_lay_there_before_is_gone(root: Path, form: LoraForm) -> None:
    """In the padding, which is multiplied."""
    packer = Packer(SHAPE, form, pinned=False)
    fresh = packer.pack(load_adapter("a", root / "a", SHAPE, torch.float32)).packed
    assert fresh is not None
    store = HostStore(AdapterLibrary.scan([root]), SHAPE, torch.float32, 10 * PAGE, packer)
    assert store.arena is not None
    extent = store.arena.allocate(10 * PAGE)
    assert extent is not None
    store.arena.tensor(extent, torch.float32).fill_(float("nan"))
    store.arena.free(extent)
    packed = use(store, "a").packed
    assert packed is not None
    assert packed.arena_offset_bytes == 0
    assert torch.equal(packed.blob, fresh.blob)


def test_an_adapter_larger_than_the_store_is_served_and_drops_nothing(root: Path) -> None:
    for store in (make_store(root, 2 * SMALL_BYTES), make_packed_store(root, num_small=2)):
        use(store, "a")
        weights = store.acquire("large")
        assert weights.lora_rank == 32
        assert store.acquire("large") is weights
        assert not store.is_shared("large")
        assert weights.packed is None or weights.packed.arena_offset_bytes is None
        store.release("large")
        assert store.is_ready("large")
        store.check_integrity()
        store.release("large")
        assert not store.is_ready("large")
        assert store.kept_names == ("a",)
        store.check_integrity()


def test_beside_pinned_ones_an_adapter_gets_memory_of_its_own(root: Path) -> None:
    store = make_packed_store(root, num_small=2)
    store.acquire("a")
    store.acquire("b")
    weights = store.acquire("c")
    assert weights.packed is not None
    assert weights.packed.arena_offset_bytes is None
    assert [store.is_shared(name) for name in ("a", "b", "c", "d")] == [True, True, False, False]
    store.check_integrity()
    store.release("c")
    store.release("a")
    assert use(store, "c").packed is not weights.packed
    assert store.kept_names == ("b", "c")
    store.check_integrity()


def test_nobody_leaves_for_what_has_no_room_all_the_same(root: Path) -> None:
    store = make_packed_store(root, num_small=5)
    store.acquire("a")
    store.acquire("b")
    use(store, "c")
    use(store, "large")  # four pages
    assert list(store.kept_names) == ["a", "b", "c"]
    store.release("b")
    use(store, "large")
    assert list(store.kept_names) == ["a", "large"]
    store.check_integrity()


def test_descriptions_outlive_the_weights(root: Path) -> None:
    store = make_store(root, SMALL_BYTES)
    info = store.describe("a")
    assert store.counters.misses == 0
    use(store, "a")
    use(store, "b")
    shutil.rmtree(root / "a")
    assert store.describe("a") == info
    assert (info.num_bytes, info.lora_rank) == (SMALL_BYTES, 2)
    assert len({store.describe(name).identity for name in SMALL}) == 4


def test_thousands_are_described_without_their_weights(root: Path) -> None:
    """Ten adapters of a gigabyte each, in files that are all hole, under 2,000 names: reading them would take
    hours."""
    shape = dataclasses.replace(SHAPE, hidden_size=2**26)
    header: dict[str, object] = {}
    end = 0
    for layer in range(2):
        for half, size in (("lora_A", (2, 2**26)), ("lora_B", (32, 2))):
            start, end = end, end + 4 * size[0] * size[1]
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.{half}.weight"
            header[name] = {"dtype": "F32", "shape": size, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    library: dict[str, Path] = {}
    for number in range(10):
        folder = shutil.copytree(root / "a", root / f"wide-{number}")
        with (folder / "adapter_model.safetensors").open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            file.truncate(8 + len(encoded) + end)
        library |= {f"{number}/{copy}": folder for copy in range(200)}
    packer = Packer(shape, UnpaddedForm(), pinned=False)
    store = HostStore(AdapterLibrary(library), shape, torch.float32, 2**20, packer)
    infos = [store.describe(name) for name in sorted(library)]
    assert len({info.identity for info in infos}) == 2000
    assert {info.num_bytes for info in infos} == {end}
    assert (store.counters.misses, store.kept_names) == (0, ())


def test_a_refused_adapter_is_never_read_again(root: Path) -> None:
    good = (root / "a" / "adapter_config.json").read_bytes()
    (root / "a" / "adapter_config.json").write_text("{")
    store = make_store(root, 10 * SMALL_BYTES)
    assert not store.is_ready("a")
    with pytest.raises(AdapterError, match="not valid JSON") as first:
        store.acquire("a")
    (root / "a" / "adapter_config.json").write_bytes(good)
    for again in (store.acquire, store.describe):
        with pytest.raises(AdapterError) as caught:
            again("a")
        assert str(caught.value) == str(first.value)
    assert store.is_ready("a")
    assert store.counters.misses == 1
    assert store.kept_names == ()
    store.check_integrity()


def test_what_only_weights_tell_is_refused_when_they_are_read(root: Path) -> None:
    edit_tensors(root / "a", lambda tensors: next(iter(tensors.values())).fill_(float("nan")))
    store = make_packed_store(root, num_small=3)
    store.describe("a")
    for again in (store.acquire, store.acquire, store.describe):
        with pytest.raises(AdapterError, match="NaN"):
            again("a")
    use(store, "b")
    store.check_integrity()


def test_an_unknown_adapter_is_an_adapter_error(root: Path) -> None:
    store = make_store(root, SMALL_BYTES)
    for ask in (store.acquire, store.describe):
        with pytest.raises(AdapterError, match="no such adapter; did you mean 'large'"):
            ask("larg")
    assert store.is_ready("larg")
    store.check_integrity()


def test_an_adapter_that_changes_during_the_run_is_refused(root: Path) -> None:
    """Prefixes cached with the old weights must not meet the new ones."""
    store = make_store(root, SMALL_BYTES)
    use(store, "a")
    use(store, "b")
    edit_tensors(root / "a", lambda tensors: next(iter(tensors.values())).mul_(2))
    for _ in range(2):
        with pytest.raises(AdapterError, match="files changed during the run"):
            store.acquire("a")
        store.check_integrity()
    with pytest.raises(AdapterError, match="files changed during the run"):
        store.describe("a")


def test_an_adapter_that_changes_after_it_was_described_is_refused(root: Path) -> None:
    """Also if it takes other room now than was planned."""
    store = make_packed_store(root, num_small=3)
    for name in ("a", "b", "c"):
        store.describe(name)
    edit_config(root / "a", {"lora_alpha": 3})
    shutil.rmtree(root / "b")
    shutil.copytree(root / "large", root / "b")
    os.utime(root / "c" / "adapter_model.safetensors")
    for name in ("a", "b", "c"):
        with pytest.raises(AdapterError, match="files changed during the run"):
            store.acquire(name)
        store.check_integrity()


def test_an_adapter_that_vanishes_during_the_run_is_refused(root: Path) -> None:
    store = make_store(root, SMALL_BYTES)
    use(store, "a")
    use(store, "b")
    shutil.rmtree(root / "a")
    for again in (store.acquire, store.describe):
        with pytest.raises(AdapterError, match=r"adapter_config.json cannot be read"):
            again("a")
        store.check_integrity()


def test_a_read_that_breaks_off_leaves_nothing_behind(root: Path) -> None:
    def load(
        name: str, folder: Path, shape: BaseShape, dtype: torch.dtype, pairs: Pairs | None
    ) -> AdapterWeights:
        if not broken:
            return load_adapter(name, folder, shape, dtype, pairs)
        raise broken[0]

    broken: list[BaseException] = [MemoryError("none left"), KeyboardInterrupt()]
    store = make_packed_store(root, num_small=1, load=load)
    while broken:
        with pytest.raises(type(broken[0])):
            store.acquire("a")
        store.check_integrity()
        assert not store.is_ready("a")
        del broken[0]
    use(store, "a")
    assert store.kept_names == ("a",)
    store.check_integrity()


@pytest.mark.parametrize("packed", [False, True])
def test_any_order_of_uses_keeps_the_books(root: Path, packed: bool) -> None:
    store = make_packed_store(root, 2.0) if packed else make_store(root, 2 * SMALL_BYTES + 7)
    choice = random.Random(4)
    order: list[str] = []
    for _ in range(200):
        name = choice.choice([*SMALL, "large"])
        use(store, name)
        if name in SMALL:
            order = [other for other in order if other != name] + [name]
        assert store.kept_names == tuple(order[-2:])
        store.check_integrity()


def made(
    name: str, folder: Path, shape: BaseShape, dtype: torch.dtype, pairs: Pairs | None
) -> AdapterWeights:
    """Weights of rank 2 on q_proj, of no file."""
    if name == "bad":
        raise AdapterError(name, f"{folder} is bad")
    in_width, out_width = shape.module_shape("q_proj")
    if pairs is None:
        a, b_rows = (torch.empty(2, width, dtype=dtype) for width in (in_width, out_width))
        pairs = {(0, "q_proj"): LoraPair(a, b_rows)}
    pairs[0, "q_proj"].a.fill_(1)
    pairs[0, "q_proj"].b_rows.fill_(len(name))
    return AdapterWeights(name, pairs)


def outlined(name: str, folder: Path, shape: BaseShape) -> AdapterOutline:
    return AdapterOutline(name, {(0, "q_proj"): 2})


@pytest.mark.parametrize(
    "packer", [None, Packer(SHAPE, UnpaddedForm(), pinned=False)], ids=["plain", "packed"]
)
def test_weights_come_from_the_loader_that_is_given(packer: Packer | None) -> None:
    library = AdapterLibrary({"good": Path("nowhere"), "bad": Path("nowhere/bad")})
    store = HostStore(library, SHAPE, torch.bfloat16, 10 * SMALL_BYTES, packer, made, outlined)
    weights = use(store, "good")
    assert use(store, "good") is weights
    assert weights.pairs[0, "q_proj"].b_rows.dtype == torch.bfloat16
    assert weights.pairs[0, "q_proj"].b_rows.eq(4).all()
    assert (weights.packed is None) == (packer is None)
    info = store.describe("good")
    assert (info.lora_rank, info.num_bytes) == (2, weights.num_bytes)
    with pytest.raises(AdapterError, match="nowhere/bad is bad"):
        store.acquire("bad")
    store.check_integrity()


@pytest.mark.parametrize("form", [UnpaddedForm(), PaddedForm(64), PaddedForm(100)], ids=str)
def test_the_size_that_is_planned_with_is_what_the_headers_tell(tmp_path: Path, form: LoraForm) -> None:
    """Of every kind of adapter, before it is in the store, in it, and once it has been dropped."""
    write_variants(tmp_path, tiny_llama, seed=1)
    store = HostStore(AdapterLibrary.scan([tmp_path]), SHAPE, torch.bfloat16, 0, Packer(SHAPE, form, False))
    padded_rank = form.padded_rank if isinstance(form, PaddedForm) else None
    for variant in VARIANTS:
        told = _bytes_by_headers(tmp_path / variant.name, padded_rank)
        assert store.describe(variant.name).num_bytes == told
        weights = use(store, variant.name)
        assert weights.packed is not None
        assert told == weights.num_bytes == weights.packed.blob.nbytes
        assert store.describe(variant.name).num_bytes == told


def test_unpacked_the_size_is_that_of_the_weights(tmp_path: Path) -> None:
    write_variants(tmp_path, tiny_llama, seed=1)
    store = HostStore(AdapterLibrary.scan([tmp_path]), SHAPE, torch.bfloat16, 10**9)
    for variant in VARIANTS:
        info, weights = store.describe(variant.name), use(store, variant.name)
        assert (info.num_bytes, info.lora_rank) == (weights.num_bytes, weights.lora_rank)
    store.check_integrity()


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
    assert store.describe("a").lora_rank == 2
    for ask in (store.describe, store.acquire):
        with pytest.raises(AdapterError, match=r"'large': has rank 32.* had more than 2.* run again"):
            ask("large")
    store.check_integrity()
