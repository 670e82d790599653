"""A limit that falls when a step does not fit, and comes back."""

from __future__ import annotations

from caraserve_cli.engine.batch_limit import STEPS_BEFORE_GROWTH, BatchLimit


def after_steps(limit: BatchLimit, num_steps: int) -> int:
    for _ in range(num_steps):
        limit.note_step()
    return limit.num_tokens


def test_it_is_halved_down_to_one_token() -> None:
    limit = BatchLimit(9)
    halves = []
    while limit.halve():
        halves.append(limit.num_tokens)
    assert halves == [4, 2, 1]
    assert limit.num_tokens == 1


def test_it_comes_back_by_steps_that_went_well_and_no_further() -> None:
    limit = BatchLimit(9)
    limit.halve()
    limit.halve()
    assert after_steps(limit, STEPS_BEFORE_GROWTH - 1) == 2
    assert after_steps(limit, 1) == 4
    assert after_steps(limit, STEPS_BEFORE_GROWTH) == 8
    assert after_steps(limit, STEPS_BEFORE_GROWTH) == 9
    assert after_steps(limit, 10 * STEPS_BEFORE_GROWTH) == 9


def test_steps_count_from_the_last_one_that_did_not_fit() -> None:
    limit = BatchLimit(100)
    after_steps(limit, 10 * STEPS_BEFORE_GROWTH)
    limit.halve()
    assert after_steps(limit, STEPS_BEFORE_GROWTH - 1) == 50
    limit.halve()
    assert after_steps(limit, STEPS_BEFORE_GROWTH - 1) == 25
    assert after_steps(limit, 1) == 50
