"""The fold of a run: what is counted where, the resumed fold, and the memory."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator

import orjson
import pytest

from caraserve_cli.events import EventSink, StepRecord
from caraserve_cli.report.summary import RunSummary

MakeRow = Callable[..., dict[str, object]]


def random_rows(make_row: MakeRow, count: int, num_adapters: int = 10) -> Iterator[dict[str, object]]:
    generator = random.Random(7)
    for _ in range(count):
        ttft_ms = generator.lognormvariate(3, 1)
        one_token = generator.random() < 0.2
        yield make_row(
            f"adapter-{generator.randrange(num_adapters)}",
            queue_ms=generator.random() * ttft_ms,
            ttft_ms=ttft_ms,
            tpot_ms=None if one_token else generator.lognormvariate(1, 1),
            latency_ms=ttft_ms * 3,
            slo_attained=generator.choice([True, False, None]),
            metadata={"expected": generator.choice(["four", "five"])},
        )


def state(summary: RunSummary) -> object:
    """All that a report can tell of the answers."""
    return (
        summary.counts,
        summary.by_finish_reason,
        summary.by_cold_start,
        {
            adapter: [
                (name, times.count, times.mean, times.minimum, times.maximum, times.quantile(0.5))
                for name, times in tally.times.items()
            ]
            for adapter, tally in summary.tallies.items()
        },
    )


def test_answers_are_counted_overall_and_per_adapter(make_row: MakeRow) -> None:
    summary = RunSummary()
    summary.add_answer(make_row("a", slo_attained=True, finish_reason="length"))
    summary.add_answer(make_row("a", slo_attained=False, cold_start="on-demand"))
    summary.add_answer(make_row(None, completion_tokens=1, tpot_ms=None, cold_start="none"))
    assert summary.counts.answered == 3
    assert summary.counts.prompt_tokens == 30
    assert summary.counts.completion_tokens == 9
    assert summary.by_finish_reason == {"length": 1, "stop": 2}
    assert summary.by_cold_start == {"resident": 1, "on-demand": 1, "none": 1}
    assert set(summary.tallies) == {"a", None}
    assert summary.tallies["a"].counts.slo_carried == 2
    assert summary.tallies["a"].counts.slo_attained == 1
    assert summary.tallies[None].counts.slo_carried == 0
    assert summary.tallies[None].times["tpot_ms"].count == 0
    assert summary.tallies[None].times["ttft_ms"].count == 1


def test_failed_rows_with_a_bound_are_misses(make_row: MakeRow) -> None:
    summary = RunSummary()
    summary.add_answer(make_row("a", slo_attained=True))
    summary.add_error("unknown_adapter", carried_bound=True)
    summary.add_error("unknown_adapter", carried_bound=False)
    summary.add_error("invalid_json", carried_bound=False)
    assert (summary.slo_attained, summary.slo_carried) == (1, 2)
    assert summary.num_failed == 3
    assert summary.by_error_code == {"unknown_adapter": 2, "invalid_json": 1}


@pytest.mark.parametrize(
    ("metadata", "text", "scored", "right"),
    [
        ({"expected": " four"}, "four\n", 1, 1),
        ({"expected": "five"}, "four", 1, 0),
        ({"expected": 4}, "4", 0, 0),
        ({}, "four", 0, 0),
        ({"expected": "four"}, None, 0, 0),
    ],
)
def test_exact_match(
    make_row: MakeRow, metadata: dict[str, object], text: str | None, scored: int, right: int
) -> None:
    summary = RunSummary()
    summary.add_answer(make_row("a", metadata=metadata, text=text))
    assert summary.counts.exact_match_scored == scored
    assert summary.counts.exact_match_right == right


def test_a_row_may_have_no_metadata(make_row: MakeRow) -> None:
    line = make_row("a")
    del line["metadata"]
    summary = RunSummary()
    summary.add_answer(line)
    assert summary.counts.exact_match_scored == 0


def test_a_line_of_another_format_is_refused(make_row: MakeRow) -> None:
    line = make_row("a")
    del line["ttft_ms"]
    with pytest.raises(KeyError, match="ttft_ms"):
        RunSummary().add_answer(line)
    with pytest.raises(TypeError, match="whole numbers"):
        RunSummary().add_answer(make_row("a", prompt_tokens=None))


def test_a_resumed_fold_is_the_live_fold(make_row: MakeRow) -> None:
    rows = list(random_rows(make_row, 2000))
    live, resumed = RunSummary(), RunSummary()
    for line in rows:
        live.add_answer(line)
    for line in rows[:1200]:
        resumed.add_answer(orjson.loads(orjson.dumps(line)), restored=True)
    for line in rows[1200:]:
        resumed.add_answer(line)
    assert state(resumed) == state(live)
    assert resumed.session_counts.answered == 800
    assert live.session_counts == live.counts


def test_engine_steps_are_added_up() -> None:
    summary = RunSummary()
    sink: EventSink = summary
    for step in range(2):
        sink.on_step(
            StepRecord(
                start_ms=10.0 * step,
                end_ms=10.0 * step + 4.0,
                num_prefill_tokens=100,
                num_decode_tokens=3,
                num_running=2 + step,
                num_waiting=5 - step,
                num_preempted=step,
                num_cached_tokens=16,
                num_adapter_loads=1,
                adapter_load_ms=0.5,
                num_kv_blocks_used=30 - 10 * step,
                num_kv_blocks=40,
                num_dropped_tokens=2 * step,
                num_answer_tokens=5 + step,
                num_memory_retries=3 * step,
                adapter_bytes=100,
                loads_by_strategy={"stream": 1},
                num_assists=4,
                num_failed_assists=step,
                num_spared_loads=2,
                num_lost_workers=2,
                stall_ms=1.5,
                others_stalled_ms=4.5,
            )
        )
    engine = summary.engine
    assert (engine.steps, engine.busy_ms) == (2, 8.0)
    assert (engine.prefill_tokens, engine.decode_tokens, engine.prefix_cached_tokens) == (200, 6, 32)
    assert (engine.dropped_tokens, engine.answer_tokens, engine.memory_retries) == (2, 11, 3)
    assert (engine.preemptions, engine.adapter_loads, engine.adapter_load_ms) == (1, 2, 1.0)
    assert (engine.loads_by_strategy, engine.adapter_bytes) == ({"stream": 2}, 200)
    assert (engine.assists, engine.failed_assists, engine.lost_workers) == (8, 1, 4)
    assert engine.spared_loads == 4
    assert (engine.stall_ms, engine.others_stalled_ms) == (3.0, 9.0)
    assert (engine.mean_running, engine.peak_running, engine.peak_waiting) == (2.5, 3, 5)
    assert (engine.peak_kv_blocks_used, engine.peak_kv_use) == (30, 0.75)


def test_cold_starts_are_those_of_this_session(make_row: MakeRow) -> None:
    """Earlier versions wrote lines that do not tell of them."""
    summary = RunSummary()
    old = make_row("a", cold_start="stream")
    del old["load_ms"]
    summary.add_answer(old, restored=True)
    assert summary.cold.hit_rate is None
    summary.add_answer(make_row(None))
    assert summary.cold.hit_rate is None
    summary.add_answer(make_row("a", cold_start="on-demand", load_ms=8.0, load_hidden_ms=2.0))
    for _ in range(3):
        summary.add_answer(make_row("a"))
    assert (summary.cold.num_hits, summary.cold.num_with_adapter, summary.cold.hit_rate) == (3, 4, 0.75)
    counts = {name: times.count for name, times in summary.cold.times.items()}
    assert (counts["load_ms"], counts["load_hidden_ms"], counts["stalled_ms"]) == (1, 1, 4)


def test_an_engine_without_steps_has_no_means() -> None:
    engine = RunSummary().engine
    assert engine.mean_running is None
    assert engine.peak_kv_use is None


def test_memory_is_constant_in_the_number_of_requests(make_row: MakeRow) -> None:
    summary = RunSummary()

    def add(count: int) -> int:
        """Bytes held after `count` more answers; the spread of their times is the same each time."""
        for line in random_rows(make_row, count, num_adapters=4):
            summary.add_answer(line)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        after_few = add(4_000)
        add(4_000)
        after_many = add(4_000)
    finally:
        tracemalloc.stop()
    assert after_many - after_few < 10_000


def test_memory_of_a_rarely_used_adapter(make_row: MakeRow) -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        summary = RunSummary()
        for line in random_rows(make_row, 6_000, num_adapters=300):
            summary.add_answer(line)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held / len(summary.tallies) < 9_000
