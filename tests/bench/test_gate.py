"""The gate's verdicts over recordings with known changes and known noise."""

from __future__ import annotations

import pytest

from caraserve_cli.bench.gate import judge, recording_is_narrow
from caraserve_cli.bench.gate_words import notes, verdict_sentence
from caraserve_cli.bench.judged_metric import GateVerdict, change_of
from caraserve_cli.bench.metric_finder import describe_metric
from tests.bench.recordings import MACHINE, noisy, recorded

RATIO = "mixed: step_over_reference"
TAIL = "mixed: p95_step_over_reference"
TIME = "mixed: step_ms"
SPEED = "mixed: tokens_per_s"
YARDSTICK = "mixed: reference_step_ms"


def test_the_same_is_never_regressed_and_a_tenth_slower_always_is() -> None:
    """Of noise as a busy machine has it (1.2% from process to process), 200 tries each."""
    same, slower = [], []
    for seed in range(200):
        before = recorded({RATIO: noisy(0.65, seed=seed, noise=0.012)})
        same.append(judge(before, recorded({RATIO: noisy(0.65, seed=1000 + seed, noise=0.012)})).verdict)
        slow = recorded({RATIO: noisy(0.65 * 1.1, seed=2000 + seed, noise=0.012)})
        slower.append(judge(before, slow).verdict)
    assert GateVerdict.REGRESSED not in same
    assert same.count(GateVerdict.HELD) >= 195
    assert slower.count(GateVerdict.REGRESSED) >= 190
    assert GateVerdict.HELD not in slower


def test_noise_that_hides_the_change_cannot_be_told() -> None:
    before, now = ({RATIO: noisy(0.65, seed=seed, noise=0.2)} for seed in (1, 2))
    assert judge(recorded(before), recorded(now)).verdict is GateVerdict.CANNOT_TELL


@pytest.mark.parametrize(("name", "factor"), [(RATIO, 0.8), (SPEED, 1.2)])
def test_better_is_held_in_either_direction(name: str, factor: float) -> None:
    before, now = (recorded({name: noisy(10 * each, seed=3)}) for each in (1, factor))
    assert judge(before, now).verdict is GateVerdict.HELD
    assert judge(now, before).verdict is GateVerdict.REGRESSED


def test_a_tail_may_become_worse_by_more() -> None:
    before, now = (recorded({name: noisy(f, seed=4) for name in (RATIO, TAIL)}) for f in (1, 1.15))
    verdicts = {each.metric.name: each.verdict for each in judge(before, now).judged}
    assert verdicts == {RATIO: GateVerdict.REGRESSED, TAIL: GateVerdict.HELD}
    worse = recorded({RATIO: noisy(1, seed=4), TAIL: noisy(1.5, seed=4)})
    assert judge(before, worse).verdict is GateVerdict.REGRESSED


def test_on_other_hardware_the_ratios_alone_decide() -> None:
    before = recorded({RATIO: noisy(1, seed=5), TIME: noisy(20, seed=5)})
    other = {**MACHINE, "num_cores": "64"}
    now = recorded({RATIO: noisy(1, seed=6), TIME: noisy(40, seed=6)}, machine=other)
    result = judge(before, now)
    assert result.verdict is GateVerdict.HELD
    (time,) = (each for each in result.judged if each.metric.name == TIME)
    assert time.verdict is GateVerdict.CANNOT_TELL
    assert time.reason == "other hardware: num_cores was 2, is 64"


def test_without_ratios_other_hardware_cannot_be_told() -> None:
    before = recorded({TIME: noisy(20, seed=5)})
    now = recorded({TIME: noisy(20, seed=6)}, machine={**MACHINE, "num_cores": "64"})
    assert judge(before, now).verdict is GateVerdict.CANNOT_TELL


def test_on_the_same_hardware_absolute_figures_count() -> None:
    before = recorded({RATIO: noisy(1, seed=5), TIME: noisy(20, seed=5)})
    now = recorded({RATIO: noisy(1, seed=6), TIME: noisy(26, seed=6)})
    assert judge(before, now).verdict is GateVerdict.REGRESSED


def test_absolute_figures_are_not_compared_where_what_is_not_ours_became_slower_too() -> None:
    before = recorded({RATIO: noisy(1, seed=5), TIME: noisy(20, seed=5), YARDSTICK: noisy(20, seed=7)})
    now = recorded({RATIO: noisy(1, seed=6), TIME: noisy(26, seed=6), YARDSTICK: noisy(26, seed=8)})
    result = judge(before, now)
    assert result.verdict is GateVerdict.HELD
    assert YARDSTICK not in [each.metric.name for each in result.judged]
    (time,) = (each for each in result.judged if each.metric.name == TIME)
    assert time.reason is not None
    assert "the machine is not what it was: 'mixed: reference_step_ms'" in time.reason


def test_too_few_runs_give_no_interval() -> None:
    before, now = recorded({RATIO: noisy(1, seed=1)}), recorded({RATIO: noisy(2, seed=2, num_values=4)})
    result = judge(before, now)
    assert result.verdict is GateVerdict.CANNOT_TELL
    assert result.judged[0].reason == "4 runs give no interval; 5 do"
    assert verdict_sentence(result).endswith("5 do. Give a larger --budget-s.")
    assert verdict_sentence(judge(now, before)).endswith("Record the baseline anew with a larger --budget-s.")
    assert not result.is_settled


def test_a_recipe_that_measures_something_else_cannot_be_compared() -> None:
    before, now = recorded({RATIO: noisy(1, seed=1)}), recorded({RATIO: noisy(2, seed=2)}, digest="other")
    result = judge(before, now)
    assert result.verdict is GateVerdict.CANNOT_TELL
    assert "record it anew" in (result.judged[0].reason or "")


def test_what_is_not_measured_any_more_cannot_be_told() -> None:
    before = recorded({RATIO: noisy(1, seed=1), "base: step_over_reference": noisy(1, seed=2)})
    result = judge(before, recorded({RATIO: noisy(1, seed=3)}))
    assert result.verdict is GateVerdict.CANNOT_TELL
    assert result.judged[1].reason == "it is not measured any more"


def test_work_that_was_not_done_cannot_be_told() -> None:
    both = recorded({RATIO: noisy(1, seed=1)})
    assert judge(both, both, ("in run 1 work was not done",)).verdict is GateVerdict.CANNOT_TELL


def test_more_runs_are_worth_their_time_until_the_interval_is_narrow() -> None:
    narrow, wide = (recorded({RATIO: noisy(1, seed=9, noise=noise)}) for noise in (0.005, 0.08))
    assert judge(narrow, narrow).is_settled
    assert not judge(narrow, wide).is_settled
    assert recording_is_narrow(narrow)
    assert not recording_is_narrow(wide)


def test_a_tail_keeps_nothing_from_being_settled() -> None:
    both = recorded({RATIO: noisy(1, seed=9, noise=0.005), TAIL: noisy(1, seed=9, noise=0.5)})
    assert judge(both, both).is_settled


def test_the_interval_is_welchs() -> None:
    """Worked out by hand: logs 0, 0.1, 0.2, 0.1, 0.1 against the same 0.05 higher."""
    base = 2.718281828459045
    before = describe_metric(RATIO, tuple(base**each for each in (0.0, 0.1, 0.2, 0.1, 0.1)))
    now = describe_metric(RATIO, tuple(base ** (each + 0.05) for each in (0.0, 0.1, 0.2, 0.1, 0.1)))
    change = change_of(before, now)
    assert change is not None
    # Variance 0.005 each, standard error sqrt(0.002), 8 degrees of freedom: t = 2.306.
    assert change.factor == pytest.approx(base**0.05)
    assert change.low == pytest.approx(base ** (0.05 - 2.306 * 0.002**0.5), rel=1e-4)
    assert change.high == pytest.approx(base ** (0.05 + 2.306 * 0.002**0.5), rel=1e-4)


ATTAINMENT = "light: auto: slo_attainment"
ONES, ZEROS, MIXED = (1.0,) * 6, (0.0,) * 6, (0.0, 1.0) * 3


@pytest.mark.parametrize(
    ("name", "before", "now", "verdict"),
    [
        (ATTAINMENT, ONES, ZEROS, GateVerdict.REGRESSED),
        (ATTAINMENT, ZEROS, ONES, GateVerdict.HELD),
        (ATTAINMENT, ZEROS, ZEROS, GateVerdict.HELD),
        (ATTAINMENT, ONES, MIXED, GateVerdict.CANNOT_TELL),
        (ATTAINMENT, ONES, (0.0,) * 3, GateVerdict.CANNOT_TELL),
        (RATIO, ONES, ZEROS, GateVerdict.HELD),
        (RATIO, ZEROS, ONES, GateVerdict.CANNOT_TELL),
    ],
)
def test_what_fell_to_zero_or_rose_from_it(
    name: str, before: tuple[float, ...], now: tuple[float, ...], verdict: GateVerdict
) -> None:
    result = judge(recorded({name: before}), recorded({name: now}))
    assert result.verdict is verdict
    assert result.is_settled is (len(now) == 6)
    assert recording_is_narrow(recorded({name: ZEROS}))


def test_what_the_baseline_lacks_is_named() -> None:
    result = judge(recorded({RATIO: ONES}), recorded({RATIO: ONES, TAIL: ONES, YARDSTICK: ONES}))
    assert result.not_in_baseline == (TAIL,)
    assert any(TAIL in note and "record it anew" in note for note in notes(result))
