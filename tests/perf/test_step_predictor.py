"""Predictions of steps: from a profile, or from nothing, and corrected by what steps take."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import median

import pytest

from caraserve_cli.errors import ProfileError
from caraserve_cli.perf.batch_load import BatchLoad, RankSums
from caraserve_cli.perf.kv_cost import ContextStep, KvCost
from caraserve_cli.perf.step_correction import StepCorrections
from caraserve_cli.perf.step_load import StepKind, StepLoad
from caraserve_cli.perf.step_model import StepModel
from caraserve_cli.perf.step_predictor import STEPS_TO_LEARN, StepPredictor, Unpredicted
from tests.perf.h200 import h200_profile

MODEL = StepModel.of(h200_profile(), is_padded=False, max_batch_tokens=2048)


def loads(seed: int, count: int) -> list[StepLoad]:
    """Batches that wander, every sixth with a prompt."""
    chosen = random.Random(seed)
    size, made = 20, []
    for index in range(count):
        size = max(1, min(120, size + chosen.randint(-3, 3)))
        num_adapters = min(size, 16)
        ranks = RankSums(num_adapters, num_adapters * chosen.choice((8, 32, 64)), 64)
        prompt_tokens = chosen.choice((64, 200, 500)) if index % 6 == 0 else 0
        made.append(StepLoad(size, prompt_tokens, ranks, size * chosen.randint(100, 400)))
    return made


def true_ms(load: StepLoad) -> float:
    """A machine that is not the profile's: slower by a third, with contexts that it knows nothing of."""
    return 1.33 * MODEL.step_ms(load) + 0.7 + 1e-4 * load.kv_tokens


def errors(predictor: StepPredictor, hiccup: float = 1.0) -> list[float]:
    found = []
    chosen = random.Random(1)
    for index, load in enumerate(loads(0, 600)):
        prediction = predictor.predict(load)
        measured_ms = true_ms(load) * chosen.uniform(0.98, 1.02)
        if prediction.ms is not None:
            found.append(abs(prediction.ms / measured_ms - 1))
        predictor.learn(prediction, measured_ms * (hiccup if index % 50 == 49 else 1))
    return found


@pytest.mark.parametrize("model", [MODEL, None], ids=["profile", "nothing"])
@pytest.mark.parametrize("hiccup", [1.0, 20.0])
def test_what_steps_take_is_learned(model: StepModel | None, hiccup: float) -> None:
    assert median(errors(StepPredictor(model), hiccup)) < 0.05


def test_a_profile_is_believed_at_first() -> None:
    load = StepLoad(8, 0, RankSums(2, 72, 64), 900)
    assert StepPredictor(MODEL).predict(load).ms == MODEL.decode_ms(load.decoding)


def test_without_a_profile_a_kind_is_predicted_after_some_steps() -> None:
    predictor, load = StepPredictor(), StepLoad(8)
    for _ in range(STEPS_TO_LEARN):
        prediction = predictor.predict(load)
        assert prediction.why_not is Unpredicted.LEARNING
        predictor.learn(prediction, 5.0)
    assert predictor.predict(load).ms == pytest.approx(5.0)
    assert predictor.predict(StepLoad(8, 100)).ms is None, "prompts are another kind"
    assert predictor.predict(load, is_alone=True).ms is None


def test_a_lasting_change_is_believed_soon() -> None:
    predictor, load = StepPredictor(MODEL), StepLoad(8)
    for step_ms in [5.0] * 200 + [15.0] * 20:
        predictor.learn(predictor.predict(load), step_ms)
    assert predictor.predict(load).ms == pytest.approx(15.0, rel=0.05)


def test_kinds() -> None:
    assert [load.kind for load in (StepLoad(1), StepLoad(0, 5), StepLoad(1, 5))] == list(StepKind)


def test_contexts_have_one_slope_beside_the_batch() -> None:
    steps = [ContextStep(size, size * context) for size in (4, 32) for context in (100, 1000)]
    cost = KvCost.fit(steps, [3 + size / 10 + 2e-4 * kv for size, kv in steps])
    assert cost.token_ms == pytest.approx(2e-4)
    assert cost.quality.r2 == pytest.approx(1)
    with pytest.raises(ProfileError, match="no batch size was measured with two"):
        KvCost.fit(steps[::2], [1.0, 2.0])


def test_what_is_planned_by_is_what_is_predicted() -> None:
    """One model: the policies' model of decoding steps is the predictor's fit."""
    predictor = StepPredictor(MODEL)
    assert predictor.model == MODEL
    for load in loads(3, 300):
        predictor.learn(predictor.predict(load), true_ms(load))
    model = predictor.model
    assert model is not None
    for load in loads(4, 50):
        assert model.step_ms(load) == pytest.approx(predictor.predict(load).ms)
    assert median(abs(model.step_ms(load) / true_ms(load) - 1) for load in loads(4, 50)) < 0.05


def test_ranks_count_once_steps_have_shown_it() -> None:
    """Without a fitted LoRA kernel."""
    unfitted = replace(MODEL, lora_kernel=None)
    predictor = StepPredictor(unfitted)
    chosen = random.Random(2)
    for _ in range(400):
        load = StepLoad(32, 0, RankSums(16, chosen.choice((128, 512, 1024)), 64), 5000)
        predictor.learn(predictor.predict(load), unfitted.step_ms(load) + 0.004 * load.ranks.lora_rank_sum)
    assert predictor.model is not None
    few, many = (
        predictor.model.decode_ms(BatchLoad(32, RankSums(16, lora_rank_sum, 64), 5000))
        for lora_rank_sum in (128, 1024)
    )
    assert many - few == pytest.approx(0.004 * 896, rel=0.1)


def test_nothing_is_planned_by_what_was_never_measured() -> None:
    predictor = StepPredictor()
    for _ in range(50):
        predictor.learn(predictor.predict(StepLoad(8)), 5.0)
    assert predictor.model is None
    assert predictor.corrections == StepCorrections()


def test_no_correction_lets_a_time_shrink_as_its_load_grows() -> None:
    """Steps that get shorter with every rank and token are noise."""
    predictor = StepPredictor(MODEL)
    chosen = random.Random(5)
    for _ in range(500):
        rank_sum, kv_tokens = chosen.choice((64, 4096)), chosen.choice((100, 90_000))
        load = StepLoad(8, 0, RankSums(8, rank_sum, 64), kv_tokens)
        predictor.learn(predictor.predict(load), 9.0 - rank_sum / 1000 - kv_tokens / 30_000)
    model = predictor.model
    assert model is not None
    times_ms = [
        model.decode_ms(BatchLoad(8, RankSums(8, rank_sum, 64), kv_tokens))
        for rank_sum, kv_tokens in ((64, 100), (64, 90_000), (4096, 90_000))
    ]
    assert times_ms == sorted(times_ms)


@pytest.mark.parametrize("why_not", [each for each in Unpredicted if each is not Unpredicted.LEARNING])
def test_what_is_not_predicted_teaches_nothing(why_not: Unpredicted) -> None:
    predictor, load = StepPredictor(MODEL), StepLoad(8)
    predictor.learn(predictor.predict(load).without(why_not), 1e6)
    assert predictor.predict(load).ms == MODEL.step_ms(load)
    assert predictor.predict(StepLoad(1, 5, is_assisted=True)).why_not is Unpredicted.ASSISTED
