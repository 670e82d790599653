"""What adapters add to decoding steps: measured points, and lines between them."""

from __future__ import annotations

import pytest

from caraserve_cli.errors import ProfileError
from caraserve_cli.perf.batch_load import NO_RANKS, BatchLoad, RankSums
from caraserve_cli.perf.decode_lora import DecodeLora


def _batch(num_adapters: int, lora_rank_sum: int, num_requests: int | None = None) -> BatchLoad:
    return BatchLoad(num_requests or num_adapters, RankSums(num_adapters, lora_rank_sum, 64))


BATCHES = [_batch(1, 8), _batch(4, 120), _batch(4, 120), _batch(32, 960), _batch(32, 960, 64)]
MODEL = DecodeLora.fit(BATCHES, [0.5, 2.0, 2.2, 5.0, 6.6])


@pytest.mark.parametrize(
    ("batch", "added_ms"),
    [
        (_batch(1, 8), 0.5),
        (_batch(1, 4), 0.5),
        (_batch(2, 64), 0.5 + 1.6 / 2),  # half way from 8 to 120, where two were measured
        (_batch(4, 120), 2.1),
        (_batch(40, 1800), 2 * 5.0 - 2.1),  # as far beyond the last point as it is from the one before
        (_batch(32, 960, 64), 6.6),
        (_batch(4, 120, 14), 2.1 + 10 * 0.05),
        (BatchLoad(9, NO_RANKS), 0.0),
    ],
)
def test_lines_between_points(batch: BatchLoad, added_ms: float) -> None:
    assert MODEL.added_ms(batch) == pytest.approx(added_ms)


def test_more_ranks_never_cost_less() -> None:
    model = DecodeLora.fit([_batch(1, 8), _batch(4, 120), _batch(16, 480)], [1.0, 3.0, 2.9])
    assert model.steps_ms == (1.0, 3.0, 3.0)


def test_fewer_than_two_points_are_refused() -> None:
    with pytest.raises(ProfileError, match="adapters in decoding steps: 1 sizes of them fit"):
        DecodeLora.fit([_batch(4, 120), _batch(4, 120, 8)], [1.0, 2.0])
