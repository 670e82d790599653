"""How an op is cut: everything once, evenly, by modules first."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.perf.op_cut import OpCut

_CUTS = {
    "num_rows": st.integers(1, 200),
    "num_modules": st.integers(1, 7),
    "num_workers": st.integers(1, 64),
    "tokens_per_worker": st.integers(1, 80),
}


@settings(max_examples=300, deadline=None)
@given(**_CUTS)
def test_every_module_of_every_row_is_in_one_share(
    num_rows: int, num_modules: int, num_workers: int, tokens_per_worker: int
) -> None:
    cut = OpCut.of(num_rows, num_modules, num_workers, tokens_per_worker)
    assert 1 <= cut.num_shares <= num_workers
    shares = [cut.share(place) for place in range(cut.num_shares)]
    found = Counter((row, module) for share in shares for row in share.rows for module in share.modules)
    assert set(found) == {(row, module) for row in range(num_rows) for module in range(num_modules)}
    assert set(found.values()) == {1}


@settings(max_examples=300, deadline=None)
@given(**_CUTS)
def test_shares_are_as_equal_as_can_be(
    num_rows: int, num_modules: int, num_workers: int, tokens_per_worker: int
) -> None:
    cut = OpCut.of(num_rows, num_modules, num_workers, tokens_per_worker)
    shares = [cut.share(place) for place in range(cut.num_shares)]
    for sizes in ({len(share.rows) for share in shares}, {len(share.modules) for share in shares}):
        assert min(sizes) > 0
        assert max(sizes) - min(sizes) <= 1


@given(**_CUTS)
def test_rows_are_cut_only_where_each_module_has_a_worker_and_there_are_tokens_for_it(
    num_rows: int, num_modules: int, num_workers: int, tokens_per_worker: int
) -> None:
    cut = OpCut.of(num_rows, num_modules, num_workers, tokens_per_worker)
    if num_workers < 2 * num_modules or num_rows <= tokens_per_worker:
        assert cut.num_row_runs == 1
    assert cut.num_row_runs <= -(-num_rows // tokens_per_worker)
    assert (cut.num_columns == num_modules) is (num_workers >= num_modules)


@given(**_CUTS)
def test_no_more_workers_than_it_has_shares_cut_an_op_alike(
    num_rows: int, num_modules: int, num_workers: int, tokens_per_worker: int
) -> None:
    """As the pool gives a ticket no more workers than find something to do."""
    cut = OpCut.of(num_rows, num_modules, num_workers, tokens_per_worker)
    assert OpCut.of(num_rows, num_modules, cut.num_shares, tokens_per_worker) == cut
    # And so the model of the workers' time, which is told the shares alone.
    assert OpCut.of(num_rows, num_modules, cut.num_shares, tokens_per_worker=1) == cut


def test_short_prompts_are_cut_by_modules_alone() -> None:
    cut = OpCut.of(16, 3, 14, 16)
    assert [cut.share(place) for place in range(cut.num_shares)] == [
        (range(16), range(1)),
        (range(16), range(1, 2)),
        (range(16), range(2, 3)),
    ]


def test_two_workers_have_three_modules_between_them() -> None:
    cut = OpCut.of(100, 3, 2, 16)
    assert [cut.share(place) for place in range(cut.num_shares)] == [
        (range(100), range(1)),
        (range(100), range(1, 3)),
    ]
