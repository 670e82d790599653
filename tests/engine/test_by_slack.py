"""Who is taken by slack, what running requests keep out or cut short, and that nobody waits for ever."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.config import EngineConfig
from caraserve_cli.core import Bounds, SequenceStatus
from caraserve_cli.engine.by_slack import OTHERS_PER_TURN, PATIENCE_MS, BySlack, make_scheduling_policy
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.engine.scheduling import SchedulingPolicy
from caraserve_cli.engine.step_room import MIN_CHUNK_TOKENS, PLANNED_SHARE
from caraserve_cli.perf.step_model import StepModel
from caraserve_cli.perf.step_predictor import StepPredictor
from tests.engine.planning import add, chunks_of, make_adapter, make_scheduler, run_step
from tests.engine.virtual_replica import (
    VirtualReplica,
    is_attained,
    make_config,
    make_sequence,
    step_model,
)


def slack(config: EngineConfig) -> SchedulingPolicy:
    return BySlack(config, StepPredictor(step_model()))


def slack_without_model(config: EngineConfig) -> SchedulingPolicy:
    return BySlack(config, StepPredictor())


def fcfs(config: EngineConfig) -> SchedulingPolicy:
    return make_scheduling_policy("fcfs", config, StepPredictor())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 12), st.sampled_from([None, "a", "b", "c", "d"])),
        min_size=1,
        max_size=20,
    ),
    st.integers(8, 20),
    st.sampled_from([1, 7, 512]),
    st.integers(1, 4),
    st.sampled_from([None, step_model()]),
)
def test_without_bounds_plans_are_those_of_first_come_first_served(
    requests: list[tuple[int, int, str | None]],
    num_blocks: int,
    chunk: int,
    most_adapters: int,
    model: StepModel | None,
) -> None:
    """Any mix, with too few blocks, slots and bytes for adapters, requests coming one by one."""

    def start(name: str) -> Scheduler:
        changes = {
            "num_kv_blocks": num_blocks,
            "prefill_chunk_tokens": chunk,
            "max_resident_adapters": most_adapters,
        }
        scheduler = make_scheduler(**changes)
        scheduler.use_policy(make_scheduling_policy(name, scheduler._config, StepPredictor(model)))
        return scheduler

    adapters = {name: make_adapter(name, 30 + 20 * i) for i, name in enumerate("abcd")}
    schedulers = [start("slack"), start("fcfs")]
    for i, (num_prompt, max_tokens, name) in enumerate(requests):
        for scheduler in schedulers:
            add(scheduler, str(i), num_prompt, max_tokens, adapters.get(name or ""), prompt=[3] * num_prompt)
        by_slack, in_turn = (run_step(scheduler) for scheduler in schedulers)
        assert (chunks_of(by_slack), by_slack.pool_ops) == (chunks_of(in_turn), in_turn.pool_ops)
    while any(scheduler.has_work for scheduler in schedulers):
        by_slack, in_turn = (run_step(scheduler) for scheduler in schedulers)
        assert (chunks_of(by_slack), by_slack.pool_ops) == (chunks_of(in_turn), in_turn.pool_ops)


def test_the_least_slack_goes_first_and_what_is_lost_goes_behind() -> None:
    replica = VirtualReplica(slack, make_config(max_running=1))
    first, _ = make_sequence("first", 10, 10)
    unbounded = make_sequence("unbounded", 10, 2)
    late = make_sequence("late", 10, 2, Bounds(ttft_slo_ms=20))
    roomy = make_sequence("roomy", 10, 2, Bounds(ttft_slo_ms=900))
    tight = make_sequence("tight", 10, 2, Bounds(ttft_slo_ms=300))
    long_answer = make_sequence("long answer", 10, 60, Bounds(deadline_ms=600))
    replica.scheduler.add(first, None)
    replica.step()
    waiting = [unbounded, late, roomy, tight, long_answer]
    for each in waiting:
        replica.scheduler.add(*each)
    while replica.scheduler.has_work:
        replica.step()
    begun = sorted(
        (sequence for sequence, _ in waiting),
        key=lambda sequence: sequence.timings.first_scheduled_ms or 0.0,
    )
    # `first` takes 60 ms. Of the 600 ms of the long answer its 60 tokens leave the least slack; when it has
    # ended nothing saves the tight one.
    assert [each.request.id for each in begun] == ["long answer", "roomy", "unbounded", "late", "tight"]


def test_without_a_model_what_is_due_first_goes_first() -> None:
    replica = VirtualReplica(slack_without_model, make_config(max_running=1))
    names = {"a": 900.0, "b": 500.0, "c": 700.0}
    running, _ = make_sequence("running", 10, 3)
    waiting = {n: make_sequence(n, 10, 2, Bounds(ttft_slo_ms=due)) for n, due in names.items()}
    replica.run([(running, None), *waiting.values()])
    begun = sorted(names, key=lambda name: waiting[name][0].timings.first_scheduled_ms or 0.0)
    assert begun == ["b", "c", "a"]


def start_decoding(replica: VirtualReplica, bounds: Bounds, num_tokens: int = 100) -> None:
    """One request that decodes."""
    replica.scheduler.add(*make_sequence("decoding", 10, num_tokens, bounds, arrival_ms=replica.now_ms))
    replica.step()


def test_a_prompt_is_cut_to_what_a_running_bound_bears() -> None:
    """A step with a prompt of 500 tokens takes 31 ms; of what is saved later a quarter may be used."""
    sizes = {}
    for bound_ms in (6.25, 6.5, 1000.0):
        replica = VirtualReplica(slack, make_config())
        start_decoding(replica, Bounds(tpot_slo_ms=bound_ms / PLANNED_SHARE))
        replica.scheduler.add(*make_sequence("prompt", 500, 2, Bounds(ttft_slo_ms=31), arrival_ms=6.0))
        plan = replica.step()
        sizes[bound_ms] = chunks_of(plan)["prompt"][1]
    assert MIN_CHUNK_TOKENS <= sizes[6.25] < sizes[6.5] < sizes[1000.0] == 500


def test_a_prompt_waits_for_room_while_it_has_slack_and_then_has_the_least_chunk() -> None:
    """Little is saved at a bound just above a bare step: there is no room for a chunk in time."""
    replica = VirtualReplica(slack, make_config())
    start_decoding(replica, Bounds(tpot_slo_ms=6.1), num_tokens=60)
    sequence, _ = make_sequence("prompt", 200, 2, Bounds(ttft_slo_ms=100), arrival_ms=replica.now_ms)
    replica.scheduler.add(sequence, None)
    while sequence.status is SequenceStatus.WAITING:
        plan = replica.step()
    waited_ms = (sequence.timings.first_scheduled_ms or 0.0) - sequence.timings.arrival_ms
    assert 50 < waited_ms < 100
    assert chunks_of(plan)["prompt"] == (0, MIN_CHUNK_TOKENS)


def test_a_high_rank_is_kept_out_while_it_would_break_a_neighbour_and_a_low_one_passes_it() -> None:
    replica = VirtualReplica(slack, make_config())
    start_decoding(replica, Bounds(tpot_slo_ms=6.6))
    heavy, heavy_adapter = make_sequence("heavy", 10, 2, lora_rank=128)
    light, light_adapter = make_sequence("light", 10, 2, lora_rank=8)
    replica.scheduler.add(heavy, heavy_adapter)
    replica.scheduler.add(light, light_adapter)
    # A step of two takes 6.06 ms, rank 8 adds 0.18 to it and rank 128 adds 1.38.
    for _ in range(20):
        replica.step()
    assert heavy.status is SequenceStatus.WAITING
    assert light.status is SequenceStatus.FINISHED
    while replica.scheduler.has_work:
        replica.step()
    assert heavy.status is SequenceStatus.FINISHED, "its neighbour has ended, and with it the bound"


def test_a_bound_that_cannot_be_met_any_more_keeps_nobody_out() -> None:
    replica = VirtualReplica(slack, make_config())
    start_decoding(replica, Bounds(tpot_slo_ms=1.0))
    heavy, adapter = make_sequence("heavy", 500, 2, lora_rank=128)
    replica.scheduler.add(heavy, adapter)
    assert chunks_of(replica.step())["heavy"] == (0, 500)


def test_who_has_no_bound_has_its_turn_in_a_queue_that_never_ends() -> None:
    """Bounds can be met for ever, one place, and always somebody with a bound waiting."""
    replica = VirtualReplica(slack, make_config(max_running=1))
    patient = [make_sequence(f"patient {i}", 10, 2) for i in range(3)]
    for each in patient:
        replica.scheduler.add(*each)
    count = 0
    while replica.scheduler.has_work and any(
        each.status is not SequenceStatus.FINISHED for each, _ in patient
    ):
        while len(replica.scheduler.waiting) < 6:
            bounds = Bounds(ttft_slo_ms=5000, tpot_slo_ms=50)
            replica.scheduler.add(*make_sequence(f"{count}", 10, 20, bounds, arrival_ms=replica.now_ms))
            count += 1
        replica.step()
        assert replica.now_ms < 2 * PATIENCE_MS
    begun = sorted(each.timings.first_scheduled_ms or 0.0 for each, _ in patient)
    assert begun[0] >= PATIENCE_MS
    # Each of the others takes some 120 ms; a turn comes after `OTHERS_PER_TURN` of them.
    assert begun[-1] - begun[0] < 3 * (OTHERS_PER_TURN + 1) * 130


def test_a_neighbours_bound_keeps_nobody_out_for_ever() -> None:
    """Light requests with bounds on TPOT alone come and come, and one of a high rank would break them."""
    replica = VirtualReplica(slack, make_config(max_running=4))
    heavy, adapter = make_sequence("heavy", 10, 2, lora_rank=128)
    count = 0
    while heavy.status is not SequenceStatus.FINISHED:
        while len(replica.scheduler.waiting) < 4:
            bounds = Bounds(tpot_slo_ms=6.6)
            replica.scheduler.add(*make_sequence(f"{count}", 10, 20, bounds, arrival_ms=replica.now_ms))
            count += 1
        if count == 4:
            replica.step()
            replica.scheduler.add(heavy, adapter)
        replica.step()
        assert replica.now_ms < 2 * PATIENCE_MS


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans(), st.sampled_from([24, 60, 400]))
def test_everyone_is_answered_in_full(chosen: random.Random, has_model: bool, num_blocks: int) -> None:
    """Any bounds, ranks and lengths, a cache that preempts, adapters without room."""
    config = make_config(
        num_kv_blocks=num_blocks, max_running=6, prefill_chunk_tokens=80, max_resident_adapters=3
    )
    replica = VirtualReplica(slack if has_model else slack_without_model, config)
    bounds_ms = [None, 1.0, 8.0, 200.0, 3000.0]
    requests = [
        make_sequence(
            str(i),
            chosen.randint(1, 200),
            chosen.randint(1, 30),
            Bounds(
                ttft_slo_ms=chosen.choice(bounds_ms),
                tpot_slo_ms=chosen.choice(bounds_ms),
                deadline_ms=chosen.choice(bounds_ms),
            ),
            arrival_ms=chosen.uniform(0, 500),
            lora_rank=chosen.choice([0, 8, 128]),
            ignore_eos=chosen.random() < 0.5,
        )
        for i in range(25)
    ]
    replica.run(requests)
    assert [s.num_output_tokens for s, _ in requests] == [s.max_output_tokens for s, _ in requests]
    assert all(plan.chunks for plan in replica.plans), "a step that computes nothing never ends"
    assert replica.scheduler.blocks.num_used == 0


def test_more_bounds_are_met_under_load_than_first_come_first_served() -> None:
    """Mixed ranks, Poisson arrivals, more than can be decoded within the bound."""
    met = {}
    for make in (slack, fcfs):
        chosen, now_ms, requests = random.Random(3), 0.0, []
        for i in range(150):
            now_ms += chosen.expovariate(26 / 1000)
            bounds = Bounds(ttft_slo_ms=500, tpot_slo_ms=10.5)
            lora_rank = chosen.choice([8, 16, 32])
            requests.append(make_sequence(f"{i}", 64, 40, bounds, arrival_ms=now_ms, lora_rank=lora_rank))
        VirtualReplica(make, make_config()).run(requests)
        met[make] = sum(bool(is_attained(sequence)) for sequence, _ in requests)
    assert met[slack] > met[fcfs]


def test_who_is_planned_for_does_not_end_just_above_its_bound() -> None:
    """More arrive than can be decoded within the bound. Planned up to it, 24 of these would miss it."""
    chosen, now_ms, requests = random.Random(5), 0.0, []
    for i in range(200):
        now_ms += chosen.expovariate(16 / 1000)
        bounds, lora_rank = Bounds(ttft_slo_ms=500, tpot_slo_ms=10.5), chosen.choice([8, 16, 32])
        requests.append(make_sequence(f"{i}", 16, 128, bounds, arrival_ms=now_ms, lora_rank=lora_rank))
    VirtualReplica(slack, make_config()).run(requests)
    started_late = [s for s, _ in requests if (s.timings.first_token_ms or 0.0) - s.timings.arrival_ms > 500]
    num_missed = sum(not is_attained(sequence) for sequence, _ in requests)
    assert len(started_late) > 20, "it is no overload"
    assert num_missed - len(started_late) <= 2
