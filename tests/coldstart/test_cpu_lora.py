from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.coldstart.cpu_lora import GroupProducts, add_group, choose_compute_dtype, weight_extents
from caraserve_cli.perf.op_cut import Slice
from caraserve_kernels.lora_layout import AdapterLayout, FusedGroup, ModuleKey
from tests.coldstart.worker_pools import reference

_WIDTHS = st.sampled_from((8, 24, 64, 200))


@st.composite
def _ops(draw: st.DrawFn) -> tuple[FusedGroup, dict[ModuleKey, int], list[ModuleKey]]:
    """A group, the ranks of the modules that the adapter changes, and which of them have a bias."""
    num_modules = draw(st.integers(1, 3))
    out_widths = tuple(draw(_WIDTHS) for _ in range(num_modules))
    group = FusedGroup(("q_proj", "k_proj", "v_proj")[:num_modules], draw(_WIDTHS), out_widths)
    ranks = {(0, module): draw(st.sampled_from((0, 1, 3, 8, 33))) for module in group.modules}
    present = {key: lora_rank for key, lora_rank in ranks.items() if lora_rank}
    return group, present, [key for key in present if draw(st.booleans())]


def _relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm().clamp_min(1e-30))


@settings(max_examples=150, deadline=None)
@given(
    op=_ops(),
    num_rows=st.integers(1, 20),
    padded_rank=st.sampled_from((None, 40)),
    dtypes=st.sampled_from(
        (
            (torch.float32, torch.float32, 1e-5),
            (torch.bfloat16, torch.bfloat16, 2e-2),
            (torch.bfloat16, torch.float32, 8e-3),
            (torch.float16, torch.float32, 1e-3),
        )
    ),
)
def test_equals_the_products_module_by_module(op, num_rows, padded_rank, dtypes):
    group, ranks, biased = op
    dtype, compute_dtype, tolerance = dtypes
    layout = AdapterLayout.build((group,), 1, ranks, biased, padded_rank)
    before = 128
    torch.manual_seed(num_rows)
    arena = torch.full((before + layout.num_elements + 64,), torch.nan, dtype=dtype)
    weights = torch.randn(layout.num_elements)
    if padded_rank is not None:
        # The rows past a module's own rank are stored, and are zero.
        weights = torch.zeros(layout.num_elements)
        for piece in layout.pieces.values():
            for first, size in (
                (piece.a_offset, piece.lora_rank * piece.in_width),
                (piece.b_offset, piece.lora_rank * piece.out_width),
            ):
                weights[first : first + size] = torch.randn(size)
    arena[before:-64] = weights.to(dtype)
    entry = layout.placed(before)[0, 0]
    x = torch.randn(num_rows, group.in_width).to(dtype)
    wide = torch.full((num_rows, sum(group.out_widths) + 8), torch.nan, dtype=dtype)
    add_group(x, wide[:, :-8], arena, entry, group, compute_dtype)
    expected = reference(x, arena, entry.tolist(), group)
    assert _relative_error(wide[:, :-8], expected) <= tolerance
    assert wide[:, -8:].isnan().all(), "written past the row's end"


@settings(max_examples=100, deadline=None)
@given(op=_ops(), cut=st.tuples(st.integers(0, 2), st.integers(0, 2)), num_rows=st.integers(1, 5))
def test_some_modules_have_their_columns_written_and_no_other(op, cut, num_rows):
    group, ranks, biased = op
    first, last = sorted(min(module, len(group.modules) - 1) for module in cut)
    layout = AdapterLayout.build((group,), 1, ranks, biased)
    torch.manual_seed(num_rows)
    arena, entry = torch.randn(layout.num_elements + 1), layout.table[0, 0].tolist()
    x = torch.randn(num_rows, group.in_width)
    out = torch.full((num_rows, sum(group.out_widths)), torch.nan)
    GroupProducts(x, out, arena, entry, group, range(first, last + 1), torch.float32).run()
    own = slice(sum(group.out_widths[:first]), sum(group.out_widths[: last + 1]))
    expected = torch.full_like(out, torch.nan, dtype=torch.float64)
    expected[:, own] = reference(x, arena, entry, group)[:, own]
    assert torch.allclose(out.double(), expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("num_rows", [1, 17, 64])
@pytest.mark.parametrize("lora_rank", [*range(1, 40), 46, 64, 127, 255])
def test_nothing_beside_the_rows_of_h_comes_into_the_columns(lora_rank: int, num_rows: int) -> None:
    """Nor anything beside the weights: all of it is NaN."""
    group = FusedGroup(("q_proj",), 32, (64,))
    layout = AdapterLayout.build((group,), 1, {(0, "q_proj"): lora_rank}, [])
    arena = torch.full((layout.num_elements + 512,), torch.nan, dtype=torch.bfloat16)
    arena[256:-256] = torch.randn(layout.num_elements)
    entry = layout.placed(256)[0, 0].tolist()
    x = torch.randn(num_rows, 32).bfloat16()
    out = torch.full((num_rows, 64), torch.nan, dtype=torch.bfloat16)
    h = torch.full((num_rows, lora_rank + 16), torch.nan, dtype=torch.bfloat16)[:, 8 : 8 + lora_rank]
    products = GroupProducts(x, out, arena, entry, group, range(1), torch.bfloat16, h=h)
    # On a CPU without AMX nothing comes in either way.
    assert products._expands[0].is_widened == (lora_rank % 4 != 0)
    products.run()
    assert _relative_error(out, reference(x, arena, entry, group)) <= 2e-2


@settings(max_examples=150, deadline=None)
@given(
    op=_ops(),
    num_slices=st.sampled_from((1, 2, 4)),
    num_rows=st.integers(1, 20),
    dtypes=st.sampled_from(
        (
            (torch.float32, torch.float32, 1e-5),
            (torch.bfloat16, torch.bfloat16, 2e-2),
            (torch.bfloat16, torch.float32, 8e-3),
        )
    ),
)
def test_shares_in_any_order_equal_the_whole(op, num_slices, num_rows, dtypes):
    group, ranks, biased = op
    dtype, compute_dtype, tolerance = dtypes
    layout = AdapterLayout.build((group,), 1, ranks, biased)
    torch.manual_seed(num_rows)
    arena, entry = torch.randn(layout.num_elements).to(dtype), layout.table[0, 0].tolist()
    modules = range(len(group.modules))
    x = torch.randn(num_rows, group.in_width).to(dtype)
    out = torch.full((num_rows, sum(group.out_widths)), torch.nan, dtype=dtype)
    wide_h = torch.full((num_rows, 140), torch.nan, dtype=compute_dtype)
    h = wide_h[:, 8 : 8 + sum(ranks.values())]
    shares = [
        GroupProducts(x, out, arena, entry, group, modules, compute_dtype, Slice(place, num_slices), h)
        for place in range(num_slices)
    ]
    for share in shares[::-1]:
        share.shrink()
    for share in shares:
        share.expand()
    assert _relative_error(out, reference(x, arena, entry, group)) <= tolerance
    assert wide_h[:, :8].isnan().all()
    assert wide_h[:, 8 + h.shape[1] :].isnan().all()
    # h is rounded as one share has it, so only the order of sums can differ.
    whole = torch.empty_like(out)
    GroupProducts(x, whole, arena, entry, group, modules, compute_dtype).run()
    assert _relative_error(out, whole.double()) <= tolerance


def test_the_entry_counts_from_the_arenas_first_element_where_the_arena_is_a_view():
    group = FusedGroup(("o_proj",), 16, (16,))
    layout = AdapterLayout.build((group,), 1, {(0, "o_proj"): 4}, {(0, "o_proj")})
    arena = torch.randn(64 + layout.num_elements)[64:]
    x, out = torch.randn(3, 16), torch.empty(3, 16)
    add_group(x, out, arena, layout.table[0, 0], group)
    assert torch.allclose(out.double(), reference(x, arena, layout.table[0, 0].tolist(), group), atol=1e-5)


@given(
    op=_ops(),
    first_element=st.sampled_from((0, 640)),
    cut=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    num_slices=st.sampled_from((1, 2, 4)),
)
def test_the_extents_of_modules_are_all_that_is_read_and_no_more(op, first_element, cut, num_slices):
    group, ranks, biased = op
    first, last = sorted(min(module, len(group.modules) - 1) for module in cut)
    layout = AdapterLayout.build((group,), 1, ranks, biased)
    expected = set()
    for key, piece in layout.pieces.items():
        if first <= group.modules.index(key[1]) <= last:
            expected |= set(range(piece.a_offset, piece.a_offset + piece.lora_rank * piece.in_width))
            expected |= set(range(piece.b_offset, piece.b_offset + piece.lora_rank * piece.out_width))
            if key in biased:
                expected |= set(range(piece.bias_offset, piece.bias_offset + piece.out_width))
    entry = layout.placed(first_element)[0, 0].tolist()
    read = [
        element + piece * stride - first_element
        for place in range(num_slices)
        for begin, end, num_pieces, stride in weight_extents(
            entry, group, range(first, last + 1), Slice(place, num_slices)
        )
        for piece in range(num_pieces)
        for element in range(begin, end)
    ]
    assert len(read) == len(set(read))
    assert set(read) == expected


def test_an_adapter_that_changes_nothing_of_the_group_gives_zeros():
    group = FusedGroup(("gate_proj", "up_proj"), 16, (8, 8))
    layout = AdapterLayout.build((group,), 1, {})
    out = torch.full((3, 16), torch.nan)
    add_group(torch.randn(3, 16), out, torch.empty(0), layout.table[0, 0], group)
    assert torch.equal(out, torch.zeros(3, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_than_bfloat16_are_multiplied_in_float32(dtype):
    assert choose_compute_dtype(dtype) is torch.float32


def test_bfloat16_is_multiplied_as_such_only_where_the_cpu_says_so():
    with open("/proc/cpuinfo") as cpuinfo:
        flags = set(next(line for line in cpuinfo if line.startswith("flags")).split())
    is_fast = bool(flags & {"avx512_bf16", "amx_bf16"})
    assert (choose_compute_dtype(torch.bfloat16) is torch.bfloat16) is is_fast
