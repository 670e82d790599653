"""What adapters add to a decoding step is told beside the same batch without them."""

from __future__ import annotations

import pytest

from caraserve_cli.fleet.profiling import _fit_decode_lora, _fit_mixed
from caraserve_cli.perf.batch_load import NO_RANKS, BatchLoad, RankSums
from caraserve_cli.perf.decode import DecodeModel
from caraserve_cli.perf.kv_cost import KvCost
from caraserve_cli.perf.least_squares import FitQuality
from caraserve_cli.perf.mixed import MixedStep
from caraserve_cli.perf.prefill import PrefillModel

QUALITY = FitQuality(1, 0, 9)
# Wrong by 5 ms: it is asked where the batch was not measured without adapters.
DECODE = DecodeModel((1, 64), (15.0, 15.0), QUALITY)
FOUR, MANY = RankSums(4, 120, 64), RankSums(32, 960, 64)


def test_beside_the_nearest_contexts_of_the_same_batch() -> None:
    """Contexts that differ are taken off: 40 and 200 tokens at 0.01 ms."""
    measured = {
        MixedStep(0, 4, 100): 20.0,
        MixedStep(0, 4, 3000): 99.0,
        MixedStep(0, 4, 140, FOUR): 20.0 + 0.4 + 2.0,
        MixedStep(0, 32, 200, MANY): 15.0 + 2.0 + 5.0,
        MixedStep(16, 4, 100, FOUR): 77.0,  # of no decoding step
    }
    told: list[str] = []
    model = _fit_decode_lora(measured, DECODE, KvCost(0.01, QUALITY), told.append)
    assert not told
    assert model is not None
    assert model.added_ms(BatchLoad(4, FOUR)) == pytest.approx(2.0)
    assert model.added_ms(BatchLoad(32, MANY)) == pytest.approx(5.0)


def test_what_is_too_little_is_left_out_by_name() -> None:
    told: list[str] = []
    prefill = PrefillModel(5.0, 0.1, 0.0, 256.0, QUALITY)
    assert _fit_decode_lora({MixedStep(0, 4, 100, FOUR): 22.0}, DECODE, None, told.append) is None
    assert _fit_mixed({MixedStep(16, 4, 100, NO_RANKS): 22.0}, prefill, told.append) is None
    assert "adapters in decoding steps: 1 sizes of them fit" in told[0]
    assert "prompts beside decoding requests: 1 sizes of them fit" in told[1]
