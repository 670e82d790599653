"""CPU workers measured: real workers, a real exchange, and a device that is the CPU. Every way of computing a
prefill gives the reference's sums; no test looks at a time.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from caraserve_cli.bench import assist_observer
from caraserve_cli.bench.assist_bench import AssistBench, AssistSetup, open_bench
from caraserve_cli.bench.assist_prefill import Prefill, run_way
from caraserve_cli.bench.assist_torch import TorchPrefill, torch_threads
from caraserve_cli.bench.assist_trace import trace_prefill
from caraserve_cli.core import FUSED_MODULES
from caraserve_cli.errors import InputError
from caraserve_cli.model.resolve import resolve_base
from tests.bench.assist_recipes import TINY, write_assist
from tests.cli.command import SAMPLE, assert_refused
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]

# A right sum is nearer to its reference, one without an adapter is farther from it.
TOLERANCE = 1e-4
NUM_TOKENS = 19
RANK, OTHER_RANK = 16, 5
MODULES = ("q_proj", "v_proj", "o_proj", "down_proj")


@pytest.fixture(scope="module")
def bench() -> Iterator[AssistBench]:
    """Two workers; with three uses of a rank there are three adapters of it."""
    setup = AssistSetup(
        shape=replace(resolve_base(str(SAMPLE / "base"), "random").config.shape, num_layers=3),
        modules=MODULES,
        device=torch.device("cpu"),
        dtype=torch.float32,
        cores=sorted(os.sched_getaffinity(0))[:2],
        tokens_per_worker=8,
        max_tokens=NUM_TOKENS,
        lora_ranks=(RANK, OTHER_RANK),
        most_uses=3,
    )
    with torch.inference_mode(), open_bench(setup) as opened:
        yield opened


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_what_a_prefill_is(bench: AssistBench) -> None:
    setup = bench.setup
    groups = [FUSED_MODULES.index(modules) for modules in (FUSED_MODULES[0], ("o_proj",), ("down_proj",))]
    assert setup.ops == tuple((layer, group) for layer in range(3) for group in groups)
    widths = (256 + 256) + (256 + 128) + (256 + 256) + (640 + 256)
    assert setup.prefill_flops(NUM_TOKENS, RANK) == 3 * 2 * NUM_TOKENS * RANK * widths


def test_adapters_are_taken_in_turn(bench: AssistBench) -> None:
    taken = [bench.next_adapter(RANK) for _ in range(6)]
    assert [each.name for each in taken[3:]] == [each.name for each in taken[:3]]
    places = {each.packed.arena_offset_bytes for each in taken if each.packed is not None}
    assert None not in places
    assert len(places) == 3
    assert bench.num_adapters == 6


@pytest.mark.parametrize("num_tokens", [1, NUM_TOKENS])
@pytest.mark.parametrize("way", ["sync-free", "alone", "synchronised"])
def test_every_way_gives_the_sums_of_the_reference(bench: AssistBench, way: str, num_tokens: int) -> None:
    prefill, with_base = Prefill(bench, num_tokens), way != "alone"
    for lora_rank in (RANK, OTHER_RANK, RANK):
        _, weights = run_way(
            prefill.synchronised
            if way == "synchronised"
            else lambda weights: prefill.assisted(lambda: prefill.launch(with_base=with_base), weights),
            bench,
            lora_rank,
        )
        assert prefill.error(weights, with_base=with_base) < TOLERANCE
        other = bench.next_adapter(OTHER_RANK if lora_rank == RANK else RANK)
        assert prefill.error(other, with_base=with_base) > 10 * TOLERANCE


def test_torch_gives_the_sums_of_the_reference(bench: AssistBench) -> None:
    by_torch = TorchPrefill(bench, NUM_TOKENS)
    _, weights = run_way(by_torch.run, bench, RANK)
    assert by_torch.error(weights) < TOLERANCE
    assert by_torch.error(bench.next_adapter(OTHER_RANK)) > 10 * TOLERANCE


def test_torch_multiplies_in_the_dtype_of_the_workers(
    bench: AssistBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a CPU that is slow at the run's dtype."""
    monkeypatch.setattr("caraserve_cli.bench.assist_torch.choose_compute_dtype", lambda _: torch.float64)
    by_torch = TorchPrefill(bench, NUM_TOKENS)
    _, weights = run_way(by_torch.run, bench, RANK)
    assert by_torch.error(weights) < TOLERANCE


def test_threads_are_as_many_as_before() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_prefill_is_tried_again_and_not_for_ever(bench: AssistBench) -> None:
    answers = iter([None, 0.5])
    assert run_way(lambda _: next(answers), bench, RANK)[0] == 0.5
    with pytest.raises(InputError, match="CPU workers were 5 s late 5 times in a row"):
        run_way(lambda _: None, bench, RANK)


def test_a_trace_has_every_op_in_its_order(bench: AssistBench) -> None:
    prefill = Prefill(bench, NUM_TOKENS)
    for _ in range(2):
        spans = trace_prefill(prefill, RANK)
        names = [f"layer {layer}, {' + '.join(FUSED_MODULES[group])}" for layer, group in bench.setup.ops]
        assert [op.name for op in spans] == names
        for op in spans:
            assert op.sending_ns <= op.product_begin_ns <= op.product_end_ns <= op.added_ns
            assert op.sending_ns <= op.sent_ns
            assert set(op.worker_end_ns) <= {0, 1}
        for op, following in pairwise(spans):
            assert op.added_ns <= following.sending_ns
            assert op.sent_ns <= following.sent_ns


def test_the_observer_sees_what_changes() -> None:
    fd = os.memfd_create("words")
    os.ftruncate(fd, 4096)
    words = np.frombuffer(mmap.mmap(fd, 4096), np.int32)
    words[[1, 2, 3]] = 7, 8, 9
    command = [sys.executable, "-I", assist_observer.__file__, str(fd), "4", "2"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[fd], text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        words[[0, 2, 3]] = -1, 10, 11
        said, _ = process.communicate(timeout=60)
    os.close(fd)
    changes = json.loads(said)
    assert [at_ns for at_ns, _, _ in changes] == sorted(at_ns for at_ns, _, _ in changes)
    # What was there at first may have changed before the first look.
    assert [(word, value) for _, word, value in changes if value != 8] == [(0, 7), (1, 10)]


def test_the_whole_benchmark(caraserve: Caraserve, tmp_path: Path) -> None:
    result_file = tmp_path / "result.json"
    ended = caraserve("bench", write_assist(tmp_path), "--json", result_file)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "All work was done and every requirement is met." in ended.stdout
    assert "On a CPU nothing is waited for, replayed, or copied for torch." in ended.stdout
    told = [line.partition(":")[0] for line in ended.stderr.splitlines()]
    assert told == ["measured  1 token, rank 16", "measured  40 tokens, rank 16"]
    result = json.loads(result_file.read_text())
    assert (result["kind"], result["verdict"]) == ("assist", "met")
    assert (result["num_workers"], result["dtype"], result["peak_flops_per_s"] > 0) == (2, "float32", True)
    for case in result["cases"]:
        assert (case["wrong"], case["num_ops"], case["repeats"]) == (None, 12, 2)
        assert case["error"] < TOLERANCE
        assert (case["synchronised_ms"], case["saved_ms"], case["replayed_ms"]) == (None, None, None)
        assert case["torch_alone_us"] is None
        for key in ("sync_free_ms", "workers_us", "torch_us", "speedup"):
            assert len(case[key]["values"]) == 2
        assert case["trace"]["num_ops"] == 12
        assert case["sync_free_op_us"] == pytest.approx(case["sync_free_ms"]["median"] * 1e3 / 12)
    events = json.loads((tmp_path / "result.trace.json").read_text())["traceEvents"]
    processes = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert processes == ["1 token, rank 16", "40 tokens, rank 16"]
    assert {event["ph"] for event in events} == {"M", "X"}


def test_wrong_sums_post_no_time(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the workers computed is not added: a quick way to be quick."""
    monkeypatch.setattr("caraserve_cli.coldstart.assisted_ops.AssistedOps.receive", lambda *_: None)
    ended = caraserve("bench", write_assist(tmp_path, TINY.replace("[1, 40]", "[40]")))
    assert ended.returncode == 5
    assert "Cannot tell: '40 tokens, rank 16' differs from its float32 reference by" in ended.stdout


def test_a_gpu_that_is_not_there(caraserve: Caraserve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_refused(caraserve("bench", "assist"), 2, "recipe 'assist'", 'device = "cuda"')


def test_more_workers_than_an_exchange_has_words_for(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(80)))
    path = write_assist(tmp_path, TINY.replace("cpu_workers = 2", "cpu_workers = 65"))
    assert_refused(
        caraserve("bench", path), 2, "recipe 'mine': 'cpu_workers': 65 are asked for; use at most 64"
    )


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ("cpu_workers = 2", "cpu_workers = 4000", "recipe 'mine': 'cpu_workers': 4000 are asked for"),
        ("lora_ranks = [16]", "lora_ranks = [16, 513]", "an adapter of rank 513"),
        ("[1, 40]", "[40, 1025]", "a prompt of 1025 tokens"),
    ],
)
def test_what_no_replica_has_is_refused(
    caraserve: Caraserve, tmp_path: Path, old: str, new: str, fragment: str
) -> None:
    assert_refused(caraserve("bench", write_assist(tmp_path, TINY.replace(old, new))), 2, fragment)
