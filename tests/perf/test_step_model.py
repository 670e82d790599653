"""Steps with LoRA: sums of the measured parts, by hand, and for many replicas as for each one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.perf.batch_load import NO_RANKS, BatchLoad, BatchLoads, RankSums
from caraserve_cli.perf.decode import DecodeModel
from caraserve_cli.perf.least_squares import FitQuality
from caraserve_cli.perf.lora_kernels import LoraKernelModel
from caraserve_cli.perf.prefill import PrefillModel
from caraserve_cli.perf.step_correction import StepCorrection, StepCorrections
from caraserve_cli.perf.step_load import StepLoad
from caraserve_cli.perf.step_model import StepModel
from caraserve_cli.perf.step_models import StepModels
from tests.perf.h200 import h200_profile

QUALITY = FitQuality(1, 0, 9)
PADDED = LoraKernelModel(True, 0.01, 0.5, QUALITY)
UNPADDED = LoraKernelModel(False, 0.02, 0.25, QUALITY)
MOST_REQUESTS = 40


def step_model(
    kernel: LoraKernelModel | None, kv_token_ms: float = 0.0, max_batch_tokens: int = 100
) -> StepModel:
    return StepModel(
        prefill=PrefillModel(10, 0.5, 0.25, 60, QUALITY),
        decode=DecodeModel((1, 8, 32), (20, 22, 34), QUALITY),
        lora_kernel=kernel,
        max_batch_tokens=max_batch_tokens,
        kv_token_ms=kv_token_ms,
    )


MODELS = [
    step_model(PADDED),
    step_model(UNPADDED, kv_token_ms=0.001),
    step_model(None, max_batch_tokens=64),
    StepModel.of(h200_profile(), is_padded=False, max_batch_tokens=2048),
    step_model(PADDED, kv_token_ms=0.001).corrected(
        StepCorrections(StepCorrection(1.2, -0.3, 1e-4, 0.0, -0.5), StepCorrection(0.8, 0.5, 0.0, 0.0, 2.0))
    ),
    step_model(None).corrected(StepCorrections(prompts=StepCorrection(1.0, 0.0, 1e-4, 0.01, -3.0))),
]


def test_a_decoding_step_by_hand() -> None:
    batch = BatchLoad(20, RankSums(3, 80, 64), 2000)
    assert step_model(PADDED).decode_ms(batch) == pytest.approx(28 + 3 * 64 * 0.01 + 0.5)
    assert step_model(UNPADDED).decode_ms(batch) == pytest.approx(28 + 80 * 0.02 + 0.25)
    assert step_model(None, kv_token_ms=0.001).decode_ms(batch) == pytest.approx(28 + 2)
    assert step_model(PADDED).decode_ms(BatchLoad(20)) == 28
    assert step_model(PADDED).decode_ms(BatchLoad(0)) == 0


def test_the_steps_of_a_queue_by_hand() -> None:
    """250 tokens are two full steps and one of 50; each decodes for 4 besides, and 104 are 44 above the
    knee. The kernel's line counts once."""
    prompts_ms = step_model(UNPADDED).prompts_ms(250, RankSums(2, 40, 32), 4)
    assert prompts_ms == pytest.approx(2 * (10 + 52 + 11) + (10 + 27) + 40 * 0.02 + 0.25)
    assert step_model(None).prompts_ms(200, NO_RANKS, 0) == pytest.approx(2 * (10 + 50 + 10))
    assert step_model(UNPADDED).prompts_ms(0, NO_RANKS, 4) == 0


@pytest.mark.parametrize("is_padded", [True, False])
def test_the_form_decides_which_server_keeps_36_ms(is_padded: bool) -> None:
    """Paper, section 2, with the base's time apart from the kernel's."""
    alpha_ms = 0.01 if is_padded else 0.015
    model = StepModel(
        prefill=PrefillModel(0, 0.1, 0, 0, QUALITY),
        decode=DecodeModel((1,), (22,), QUALITY),
        lora_kernel=LoraKernelModel(is_padded, alpha_ms, 0, QUALITY),
        max_batch_tokens=2048,
    )
    small_ms = model.decode_ms(BatchLoad(25, RankSums(25, 24 * 32 + 64, 64)))
    large_ms = model.decode_ms(BatchLoad(17, RankSums(17, 17 * 64, 64)))
    assert (small_ms > 36, large_ms > 36) == (is_padded, not is_padded)


def test_the_kernel_that_runs_there_is_taken() -> None:
    profile = h200_profile()
    assert StepModel.of(profile, is_padded=False, max_batch_tokens=9).lora_kernel is profile.unpadded_kernel
    assert StepModel.of(profile, is_padded=True, max_batch_tokens=9).lora_kernel is None


def test_a_correction_is_of_its_kind_of_steps() -> None:
    corrections = StepCorrections(
        StepCorrection(2.0, -1.0, 1e-3, 0.0, 3.0), StepCorrection(1.0, 0, 0, 0.1, 7)
    )
    model, before = step_model(UNPADDED).corrected(corrections), step_model(UNPADDED)
    ranks = RankSums(2, 40, 32)
    lora_ms = before.decode_ms(BatchLoad(4, ranks)) - before.decode_ms(BatchLoad(4))
    base_ms = before.decode_ms(BatchLoad(4))
    assert model.decode_ms(BatchLoad(4, ranks, 500)) == pytest.approx(2 * base_ms + lora_ms + 0.5 + 3)
    assert model.decode_ms(BatchLoad(0)) == 0
    # Three steps: the constant counts in each of them, the LoRA part once.
    prompts_ms = before.prompts_ms(250, ranks, 4)
    assert model.prompts_ms(250, ranks, 4) == pytest.approx(prompts_ms + 0.1 * 40 + 3 * 7)
    step_ms = before.step_ms(StepLoad(4, 50, ranks))
    assert model.step_ms(StepLoad(4, 50, ranks)) == pytest.approx(step_ms + 0.1 * 40 + 7)


def test_one_of_many_replicas_is_corrected_later() -> None:
    models = [step_model(PADDED), step_model(PADDED)]
    side_by_side = StepModels(models, MOST_REQUESTS)
    corrections = StepCorrections(decode=StepCorrection(times=3.0))
    side_by_side.correct(1, corrections)
    ranks = RankSums(*np.zeros((3, 2)))
    decode_ms = side_by_side.decode_ms(BatchLoads(np.array([2, 2]), ranks, np.zeros(2)))
    corrected = models[1].corrected(corrections)
    assert list(decode_ms) == [models[0].decode_ms(BatchLoad(2)), corrected.decode_ms(BatchLoad(2))]


@st.composite
def batches(draw: st.DrawFn) -> BatchLoad:
    lora_ranks = draw(st.lists(st.sampled_from((8, 16, 64)), max_size=MOST_REQUESTS))
    num_requests = draw(st.integers(len(lora_ranks), MOST_REQUESTS))
    ranks = RankSums(len(lora_ranks), sum(lora_ranks), max(lora_ranks, default=0))
    return BatchLoad(num_requests, ranks, draw(st.integers(0, 5000)))


@settings(max_examples=60, deadline=None)
@given(
    of_replicas=st.lists(
        st.tuples(st.sampled_from(MODELS), batches(), st.integers(0, 5000)), min_size=1, max_size=6
    )
)
def test_many_replicas_are_predicted_as_each_one(of_replicas: list[tuple[StepModel, BatchLoad, int]]) -> None:
    models, loads, tokens = zip(*of_replicas, strict=True)
    side_by_side = StepModels(models, MOST_REQUESTS)
    ranks = RankSums(*np.array([load.ranks for load in loads], dtype=np.float64).T)
    num_requests = np.array([load.num_requests for load in loads], dtype=np.int64)
    kv_tokens = np.array([load.kv_tokens for load in loads], dtype=np.float64)
    decode_ms = side_by_side.decode_ms(BatchLoads(num_requests, ranks, kv_tokens))
    prompts_ms = side_by_side.prompts_ms(np.array(tokens, dtype=np.float64), ranks, num_requests)
    interruption_ms = side_by_side.interruption_ms(64, num_requests)
    for index, (model, load, num_tokens) in enumerate(of_replicas):
        assert decode_ms[index] == pytest.approx(model.decode_ms(load))
        expected_ms = model.prompts_ms(num_tokens, load.ranks, load.num_requests)
        assert prompts_ms[index] == pytest.approx(expected_ms)
        assert interruption_ms[index] == pytest.approx(model.interruption_ms(64, load.num_requests))
