"""How an op is cut: everything once, evenly, by modules first."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.perf.op_cut import WHOLE, OpCut, Slice

_CUTS = {
    "num_rows": st.integers(1, 200),
    "num_modules": st.integers(1, 7),
    "num_workers": st.integers(1, 64),
    "tokens_per_worker": st.integers(1, 80),
    "lora_rank": st.integers(1, 64),
}


@settings(max_examples=300, deadline=None)
@given(**_CUTS)
def test_every_slice_of_every_module_of_every_row_is_in_one_share(
    num_rows: int, num_modules: int, num_workers: int, tokens_per_worker: int, lora_rank: int
) -> None:
    cut = OpCut.of(num_rows, num_modules, num_workers, tokens_per_worker, lora_rank)
    assert 1 <= cut.num_shares <= num_workers
    shares = [cut.share(place) for place in range(cut.num_shares)]
    found = Counter(
        (row, module, share.slice) for share in shares for row in share.rows for module in share.modules
    )
    assert set(found) == {
        (row, module, Slice(place, cut.num_slices))
        for row in range(num_rows)
        for module in range(num_modules)
        for place in range(cut.num_slices)
    }
    assert set(found.values()) == {1}


@given(st.integers(0, 300), st.sampled_from((1, 2, 4)))
def test_slices_have_everything_once_and_evenly(length: int, num_slices: int) -> None:
    parts = [Slice(place, num_slices).of(length) for place in range(num_slices)]
    assert [each for part in parts for each in part] == list(range(length))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=100, deadline=None)
@given(
    **{**_CUTS, "num_rows": st.integers(1, 20)}, ranks=st.lists(st.integers(0, 64), min_size=1, max_size=3)
)
def test_each_weight_is_read_by_one_worker_for_each_run_of_rows_and_each_result_written_by_one(
    num_rows: int,
    num_modules: int,
    num_workers: int,
    tokens_per_worker: int,
    lora_rank: int,
    ranks: list[int],
) -> None:
    """Of every adapter of the ticket, whatever its rank."""
    cut = OpCut.of(num_rows, num_modules, num_workers, tokens_per_worker, max(1, *ranks, lora_rank))
    shares = [cut.share(place) for place in range(cut.num_shares)]
    for length in (*ranks, lora_rank, 50):
        found = Counter(
            (share.rows, module, each)
            for share in shares
            for module in share.modules
            for each in share.slice.of(length)
        )
        assert set(found.values()) <= {1}
        assert len(found) == cut.num_row_runs * num_modules * length


@settings(max_examples=300, deadline=None)
@given(**_CUTS)
def test_shares_are_as_equal_as_can_be(
    num_rows: int, num_modules: int, num_workers: int, tokens_per_worker: int, lora_rank: int
) -> None:
    cut = OpCut.of(num_rows, num_modules, num_workers, tokens_per_worker, lora_rank)
    shares = [cut.share(place) for place in range(cut.num_shares)]
    for sizes in ({len(share.rows) for share in shares}, {len(share.modules) for share in shares}):
        assert min(sizes) > 0
        assert max(sizes) - min(sizes) <= 1


@given(**_CUTS)
def test_rows_are_cut_only_where_each_module_has_a_worker_and_there_are_tokens_for_it(
    num_rows: int, num_modules: int, num_workers: int, tokens_per_worker: int, lora_rank: int
) -> None:
    cut = OpCut.of(num_rows, num_modules, num_workers, tokens_per_worker, lora_rank)
    if num_workers < 2 * num_modules or num_rows <= tokens_per_worker:
        assert cut.num_row_runs == 1
    assert cut.num_row_runs <= -(-num_rows // tokens_per_worker)
    assert (cut.num_columns == num_modules) is (num_workers >= num_modules)


@given(**_CUTS)
def test_modules_are_sliced_only_where_workers_are_left_over_and_ranks_are_large(
    num_rows: int, num_modules: int, num_workers: int, tokens_per_worker: int, lora_rank: int
) -> None:
    cut = OpCut.of(num_rows, num_modules, num_workers, tokens_per_worker, lora_rank)
    assert cut.num_slices in (1, 2, 4)
    assert cut.num_slices == 1 or lora_rank // cut.num_slices >= 8
    if cut.num_slices > 1:
        assert cut.num_columns == num_modules
    elif lora_rank >= 16:
        assert num_workers < 2 * num_modules * cut.num_row_runs


@given(**_CUTS, num_more=st.integers(0, 20))
def test_no_more_workers_than_it_has_shares_cut_an_op_alike(
    num_rows: int, num_modules: int, num_workers: int, tokens_per_worker: int, lora_rank: int, num_more: int
) -> None:
    """As the pool gives a ticket no more workers than find something to do, and the model of their time is
    told the shares alone."""
    cut = OpCut.of(num_rows, num_modules, num_workers, tokens_per_worker, lora_rank)
    fewer = min(num_workers, cut.num_shares + num_more)
    assert OpCut.of(num_rows, num_modules, fewer, tokens_per_worker, lora_rank) == cut


def test_short_prompts_of_small_ranks_are_cut_by_modules_alone() -> None:
    cut = OpCut.of(16, 3, 14, 16, 8)
    assert [cut.share(place) for place in range(cut.num_shares)] == [
        (range(16), range(1), WHOLE),
        (range(16), range(1, 2), WHOLE),
        (range(16), range(2, 3), WHOLE),
    ]


def test_two_workers_have_three_modules_between_them() -> None:
    cut = OpCut.of(100, 3, 2, 16, 64)
    assert [cut.share(place) for place in range(cut.num_shares)] == [
        (range(100), range(1), WHOLE),
        (range(100), range(1, 3), WHOLE),
    ]


def test_workers_that_are_left_over_share_modules() -> None:
    """Those of the same module and rows are neighbours."""
    cut = OpCut.of(32, 1, 5, 16, 64)
    assert [cut.share(place) for place in range(cut.num_shares)] == [
        (range(16), range(1), Slice(0, 2)),
        (range(16), range(1), Slice(1, 2)),
        (range(16, 32), range(1), Slice(0, 2)),
        (range(16, 32), range(1), Slice(1, 2)),
    ]
    assert [OpCut.of(16, 3, 14, 16, lora_rank).num_slices for lora_rank in (15, 16, 31, 32, 64)] == [
        1,
        2,
        2,
        4,
        4,
    ]
    assert [OpCut.of(16, 1, num, 16, 64).num_slices for num in (1, 2, 3, 4, 14)] == [1, 2, 2, 4, 4]
