"""LoRA on the pool, on the GPU: correctness in bfloat16, then times in CUDA graphs. No arguments.

Llama-2-7B: hidden size 4096, 32 layers, q, k, v as one group and o. "floor" is the weights' bytes over
4.3 TB/s (H200's measured copy bandwidth; an H100 has less: compare ratios within one card).
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))

import numpy as np
import torch

from caraserve_kernels.lora_layout import (
    AdapterLayout,
    FusedGroup,
    Padding,
    build_work,
    empty_table,
    work_capacity,
)
from caraserve_kernels.lora_pool import (
    DECODE_CONFIG,
    PREFILL_CONFIG,
    SHARED_CONFIG,
    ExpandConfig,
    LoraConfig,
    PooledLora,
    ShrinkConfig,
    add_pooled_reference,
    expand,
    shrink,
)

D, LAYERS, MAX_RANK, MAX_SPLITS = 4096, 32, 128, 8
GROUPS = (FusedGroup(("q", "k", "v"), D, (D, D, D)), FusedGroup(("o",), D, (D,)))
MODULES = ("q", "k", "v", "o")
FLOOR_BYTES_PER_US = 4.3e6
DECODE_TOKENS, PREFILL_TOKENS = 256, 8192
START = time.perf_counter()
OVERLAP = [True]  # cleared if programmatic dependent launch does not work here

DECODE_SHRINKS = [
    ShrinkConfig(rows, k, 1, warps, stages, programs)
    for rows, k, warps, stages, programs in [
        (4, 1024, 4, 1, 8),
        (4, 1024, 4, 3, 4),
        (4, 1024, 4, 4, 4),
        (4, 4096, 4, 1, 5),
        (2, 4096, 4, 1, 8),
        (1, 4096, 4, 1, 16),
        (2, 4096, 2, 1, 12),
        (4, 2048, 8, 2, 3),
        (8, 1024, 8, 2, 2),
        (8, 1024, 8, 1, 3),
    ]
]
DECODE_EXPANDS = [
    ExpandConfig(*c)
    for c in [
        (512, 16, 4, 2, 4),
        (512, 16, 4, 3, 4),
        (512, 16, 8, 3, 3),
        (1024, 8, 4, 3, 4),
        (1024, 8, 4, 4, 4),
        (1024, 8, 8, 3, 2),
        (1024, 16, 8, 2, 2),
        (1024, 16, 8, 3, 2),
        (2048, 8, 8, 2, 2),
        (1024, 8, 4, 1, 4),
        (1024, 8, 4, 2, 4),
        (1024, 16, 8, 1, 2),
        (128, 32, 4, 2, 6),
        (128, 16, 2, 1, 12),
    ]
]
SHARED = [
    LoraConfig(16, ShrinkConfig(16, 256, 4, 4, 4, 4), ExpandConfig(128, 32, 4, 2, 6)),
    LoraConfig(16, ShrinkConfig(16, 256, 4, 4, 3, 6), ExpandConfig(128, 64, 4, 1, 5)),
    LoraConfig(16, ShrinkConfig(16, 512, 2, 4, 3, 3), ExpandConfig(128, 16, 4, 3, 6)),
    LoraConfig(16, ShrinkConfig(32, 256, 8, 4, 3, 4), ExpandConfig(64, 32, 4, 2, 8)),
    LoraConfig(16, ShrinkConfig(16, 128, 8, 2, 4, 8), ExpandConfig(256, 32, 8, 2, 3)),
]
PREFILL = [
    LoraConfig(64, ShrinkConfig(32, 128, 1, 4, 4, 3), ExpandConfig(128, 32, 8, 2, 2)),
    LoraConfig(64, ShrinkConfig(64, 128, 1, 4, 3, 3), ExpandConfig(128, 32, 4, 2, 2)),
    LoraConfig(64, ShrinkConfig(64, 64, 1, 4, 4, 4), ExpandConfig(128, 64, 8, 1, 2)),
    LoraConfig(128, ShrinkConfig(64, 64, 1, 4, 4, 2), ExpandConfig(128, 32, 8, 2, 2)),
    LoraConfig(128, ShrinkConfig(64, 128, 1, 8, 3, 1), ExpandConfig(64, 64, 4, 1, 4)),
    LoraConfig(32, ShrinkConfig(64, 128, 1, 4, 4, 3), ExpandConfig(128, 32, 4, 2, 4)),
]


class Adapters:
    """Random adapters, one a rank of `lora_ranks`, on q, k, v, o of every layer."""

    def __init__(
        self,
        lora_ranks: list[int],
        padded_rank: int | None = None,
        layers: int = LAYERS,
        biased: bool = False,
    ) -> None:
        self.lora_ranks, self.padded_rank, self.layers = lora_ranks, padded_rank, layers
        layouts: dict[int, AdapterLayout] = {}
        self.stacked_rows = np.zeros((len(lora_ranks), len(GROUPS)), np.int32)
        table, end = empty_table(len(lora_ranks), layers, len(GROUPS)), 0
        for slot, lora_rank in enumerate(lora_ranks):
            if lora_rank not in layouts:
                keys = {(layer, module): lora_rank for layer in range(layers) for module in MODULES}
                layouts[lora_rank] = AdapterLayout.build(
                    GROUPS, layers, keys, set(keys) if biased else set(), padded_rank
                )
            table[slot] = layouts[lora_rank].placed(end)
            self.stacked_rows[slot] = layouts[lora_rank].stacked_rows
            end += layouts[lora_rank].num_elements
        self.pool = torch.empty(end, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)
        self.table = torch.from_numpy(table).cuda()

    def weight_us(self, segments: np.ndarray, groups: tuple[int, ...], halves: int = 2) -> float:
        """The floor of one layer: each distinct adapter's A and B (halves=2) or one of them, read once."""
        rows = sum(self.lora_ranks[slot] * (3, 1)[g] for slot in set(segments[:, 0].tolist()) for g in groups)
        return rows * D * 2 * halves / FLOOR_BYTES_PER_US


def distinct(num_adapters: int) -> np.ndarray:
    return spread(num_adapters, num_adapters)


def spread(num_tokens: int, num_adapters: int) -> np.ndarray:
    each = num_tokens // num_adapters
    return np.array([(slot, slot * each, each) for slot in range(num_adapters)], np.int32)


def make_lora(
    adapters: Adapters,
    segments: np.ndarray,
    config: LoraConfig,
    num_tokens: int,
    padding: Padding | None = None,
) -> PooledLora:
    capacity = work_capacity(
        2, num_tokens, len(segments), 3 * 128, config.block_tokens, config.shrink.block_rows
    )
    work = np.zeros(capacity, np.int32)
    build_work(work, segments, adapters.stacked_rows, config.block_tokens, config.shrink.block_rows, padding)
    return empty_lora(adapters.pool, adapters.table, torch.from_numpy(work).cuda(), config, num_tokens)


H: dict[int, torch.Tensor] = {}


def empty_lora(pool, table, work, config: LoraConfig, num_tokens: int) -> PooledLora:
    """`h` has one of two shapes, as in the engine: its strides are compile-time constants."""
    most = DECODE_TOKENS if num_tokens <= DECODE_TOKENS else PREFILL_TOKENS
    splits = MAX_SPLITS if most == DECODE_TOKENS else 1
    if most not in H:
        H[most] = torch.full((splits, most, 3, MAX_RANK), torch.nan, device="cuda")
    num_sms = torch.cuda.get_device_properties(0).multi_processor_count
    return PooledLora(GROUPS, pool, table, work, H[most], config, num_sms)


def tokens(num_tokens: int, width: int) -> torch.Tensor:
    return torch.randn(num_tokens, width, device="cuda").bfloat16()


def precompile(job: tuple[LoraConfig, int]) -> str | None:
    """In a worker: compile a configuration's four kernels into Triton's disk cache (empty lists: no work)."""
    config, num_tokens = job
    try:
        pool = torch.zeros(64, dtype=torch.bfloat16, device="cuda")
        table = torch.from_numpy(empty_table(1, LAYERS, 2)).cuda()
        lora = empty_lora(pool, table, torch.zeros(64, dtype=torch.int32, device="cuda"), config, num_tokens)
        for group in (0, 1):
            shrink(lora, 0, group, tokens(1, D))
            expand(lora, 0, group, tokens(1, (3 * D, D)[group]))
        torch.cuda.synchronize()
    except Exception as error:
        return f"{config}: {type(error).__name__}: {error}"[:400]
    return None


def time_us(function, replays: int = 10) -> float:
    """The time of one replay of a graph of `function`, the median of three runs."""
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    graph.replay()
    runs = []
    for _ in range(3):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(replays):
            graph.replay()
        last.record()
        torch.cuda.synchronize()
        runs.append(first.elapsed_time(last) * 1000 / replays)
    return statistics.median(runs)


def attempt(name: str, function):
    """One failing configuration stops nothing else."""
    try:
        return function()
    except Exception:
        print(f"  FAILED {name}: {traceback.format_exc(limit=-2)[:600]}")
        return None


def check(name: str, adapters: Adapters, segments: np.ndarray, config: LoraConfig, padding=None) -> None:
    num_tokens = int(segments[:, 2].sum())
    lora = make_lora(adapters, segments, config, num_tokens, padding)
    worst = 0.0
    for layer, group in ((0, 0), (1, 0), (1, 1)):
        x, y = tokens(num_tokens + 1, D), tokens(num_tokens + 1, (3 * D, D)[group]) / 100
        expected = add_pooled_reference(lora, layer, group, x, y)
        delta = (expected - y.float()).abs().max()
        before = y.clone()
        for _ in range(2):  # the second time with everything compiled, so that launches really overlap
            y.copy_(before)
            lora.add(layer, group, x, y)
        assert torch.equal(y[-1], before[-1]), "the token without an adapter changed"
        worst = max(worst, float((y.float() - expected).abs().max() / delta))
    print(f"  {'ok ' if worst < 2e-2 else 'BAD'} {name}: largest error {worst:.1e} of the largest delta")


def layers_of(lora: PooledLora, xs, ys, shrinks: bool = True, expands: bool = True, groups=(0, 1)):
    """A function that launches all layers; x and y of each group stay, the weights are each layer's own."""

    def run() -> None:
        for layer in range(lora.table.shape[1]):
            for group in groups:
                if shrinks:
                    shrink(lora, layer, group, xs)
                if expands:
                    expand(lora, layer, group, ys[group])

    return run


def same_with_overlap(adapters: Adapters, segments: np.ndarray, config: LoraConfig) -> bool:
    """Many launches in a graph give the same bits whether kernels overlap or not."""
    num_tokens = int(segments[:, 2].sum())
    xs, start = tokens(num_tokens, D), [tokens(num_tokens, 3 * D), tokens(num_tokens, D)]
    results = []
    for overlap in (False, True):
        ys = [y.clone() for y in start]
        lora = make_lora(adapters, segments, replace(config, overlap=overlap), num_tokens)
        run = layers_of(lora, xs, ys)
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(10):
                run()
        for y, first in zip(ys, start, strict=True):
            y.copy_(first)
        for _ in range(5):
            graph.replay()
        torch.cuda.synchronize()
        results.append(ys)
    return all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def total(
    name: str, adapters: Adapters, segments: np.ndarray, config: LoraConfig, padding=None, overlaps=(True,)
) -> float | None:
    """The whole of a step's LoRA: shrink and expand of q, k, v and o, all layers."""
    num_tokens = int(segments[:, 2].sum())
    xs, ys = tokens(num_tokens, D), [tokens(num_tokens, 3 * D), tokens(num_tokens, D)]
    floor = adapters.weight_us(segments, (0, 1)) * adapters.layers
    times = []
    for overlap in overlaps:
        used = replace(config, overlap=overlap and OVERLAP[0])
        lora = make_lora(adapters, segments, used, num_tokens, padding)
        times.append(attempt(name, lambda lora=lora: time_us(layers_of(lora, xs, ys))))
    shown = " / ".join("failed" if t is None else f"{t:7.0f} us ({t / floor:4.2f}x)" for t in times)
    print(f"  {name:58s} floor {floor:6.0f} us: {shown}")
    return min((t for t in times if t is not None), default=None)


def grid(adapters: Adapters, segments: np.ndarray, configs: list[LoraConfig], part: str) -> list[LoraConfig]:
    """Times one kernel of q, k, v over all layers; best first."""
    num_tokens = int(segments[:, 2].sum())
    xs, ys = tokens(num_tokens, D), [tokens(num_tokens, 3 * D), tokens(num_tokens, D)]
    floor = adapters.weight_us(segments, (0,), halves=1)
    if num_tokens > DECODE_TOKENS:  # prefill: the tokens' own bytes are what counts
        moved = num_tokens * D * 2 * (1 if part == "shrink" else 6)
        floor += moved / FLOOR_BYTES_PER_US
    results = []
    for config in configs:
        lora = make_lora(adapters, segments, replace(config, overlap=OVERLAP[0]), num_tokens)
        run = layers_of(lora, xs, ys, part == "shrink", part == "expand", (0,))
        elapsed = attempt(str(config), lambda run=run: time_us(run))
        if elapsed is not None:
            results.append((elapsed / adapters.layers, config))
    results.sort(key=lambda result: result[0])
    print(f"  {part} q, k, v of {num_tokens} tokens, {len(segments)} segments: floor {floor:.1f} us a layer")
    for elapsed, config in results:
        gigabytes = floor * FLOOR_BYTES_PER_US / elapsed / 1000
        detail = config.shrink if part == "shrink" else config.expand
        print(
            f"    {elapsed:7.1f} us {gigabytes:6.0f} GB/s {elapsed / floor:5.2f}x"
            f" tokens {config.block_tokens} {detail}"
        )
    return [config for _, config in results]


def base_us(num_tokens: int) -> float:
    """The base's four products of one layer."""
    shapes = [(D, 3 * D), (D, D), (D, 2 * 11008), (11008, D)]
    pairs = [(tokens(num_tokens, i), tokens(i, o)) for i, o in shapes]

    def run() -> None:
        for x, w in pairs:
            torch.mm(x, w)

    return time_us(run)


def section(title: str) -> None:
    print(f"{title}   [{time.perf_counter() - START:.0f} s]", flush=True)


def correctness() -> None:
    section("correctness, bfloat16 against float32")
    for overlap in (False, True):
        mixed = Adapters([1, 3, 8, 13, 64, 100], layers=2, biased=True)
        for name, segments, config in [
            ("decode", distinct(6), DECODE_CONFIG),
            ("shared", np.array([(0, 0, 1), (4, 1, 37), (2, 38, 17)]), SHARED_CONFIG),
            ("prefill", np.array([(5, 0, 130), (1, 130, 1), (3, 131, 200), (4, 331, 64)]), PREFILL_CONFIG),
        ]:
            config = replace(config, overlap=overlap)
            attempt(name, lambda n=name, s=segments, c=config: check(f"{n}, overlap {overlap}", mixed, s, c))
        padded = Adapters([1, 3, 8, 13, 64, 100], padded_rank=100, layers=2)
        config = replace(DECODE_CONFIG, overlap=overlap)
        attempt("padded", lambda c=config: check("padded", padded, distinct(6), c, Padding(100, 64)))
    for name, segments, config in (
        ("decode", distinct(6), DECODE_CONFIG),
        ("shared", np.array([(0, 0, 1), (4, 1, 37), (2, 38, 17)]), SHARED_CONFIG),
    ):
        is_same = attempt(name, lambda s=segments, c=config: same_with_overlap(mixed, s, c))
        print(f"  {name}: the same bits with overlap: {is_same}")
        OVERLAP[0] = OVERLAP[0] and bool(is_same)


def decode() -> LoraConfig:
    section("decode, 32 distinct adapters of ranks 8/16/32/64")
    adapters = Adapters([(8, 16, 32, 64)[i % 4] for i in range(32)])
    segments = distinct(32)
    shrinks = grid(adapters, segments, [replace(DECODE_CONFIG, shrink=s) for s in DECODE_SHRINKS], "shrink")
    expands = grid(adapters, segments, [replace(DECODE_CONFIG, expand=e) for e in DECODE_EXPANDS], "expand")
    best = LoraConfig(1, shrinks[0].shrink, expands[0].expand)
    total("best of each", adapters, segments, best)
    total("as configured, plain / overlap", adapters, segments, DECODE_CONFIG, overlaps=(False, True))
    total("second of each", adapters, segments, LoraConfig(1, shrinks[1].shrink, expands[1].expand))
    lora = make_lora(adapters, segments, best, 32)
    x, y = tokens(32, D), tokens(32, 3 * D)
    first = time.perf_counter()
    for layer in range(LAYERS):
        lora.add(layer, 0, x, y)
    print(f"  eager: {(time.perf_counter() - first) / 2 / LAYERS * 1e6:.0f} us of the host a launch")
    for name, count in (("one request, rank 8", 0), ("one request, rank 64", 3)):
        total(name, adapters, np.array([(count, 0, 1)]), best)
    section("decode, several tokens an adapter")
    for num_tokens, num_adapters in ((32, 8), (256, 32), (256, 4)):
        segments = spread(num_tokens, num_adapters)
        for config in (best, *SHARED):
            total(f"{num_tokens} tokens of {num_adapters}: {describe(config)}", adapters, segments, config)
    del adapters, lora
    torch.cuda.empty_cache()
    section("decode, 256 distinct adapters of ranks 8/16/32/64")
    many = Adapters([(8, 16, 32, 64)[i % 4] for i in range(256)])
    segments = distinct(256)
    shrinks = grid(many, segments, shrinks[:4], "shrink")
    expands = grid(many, segments, expands[:4], "expand")
    total("best of each", many, segments, LoraConfig(1, shrinks[0].shrink, expands[0].expand))
    total("best at 32", many, segments, best)
    return best


def describe(config: LoraConfig) -> str:
    s, e = config.shrink, config.expand
    return f"{config.block_tokens}, {s.block_rows}x{s.block_k}/{s.split_k}, {e.block_rank}x{e.block_cols}"


def padded(config: LoraConfig) -> None:
    section("padded (bgmv) against not padded (mbgmv), 32 distinct adapters")
    for name, lora_ranks in (("31 of rank 8, 1 of 128", [8] * 31 + [128]), ("all rank 32", [32] * 32)):
        dense = total(f"{name}: mbgmv", Adapters(lora_ranks), distinct(32), config)
        largest = max(lora_ranks)
        pool = Adapters(lora_ranks, padded_rank=largest)
        other = total(f"{name}: bgmv", pool, distinct(32), config, Padding(largest, largest))
        if dense and other:
            print(f"    bgmv / mbgmv = {other / dense:.2f}")
        del pool
        torch.cuda.empty_cache()


def prefill() -> None:
    section("prefill, 8192 tokens of 32 adapters of ranks 8/16/32/64")
    adapters = Adapters([(8, 16, 32, 64)[i % 4] for i in range(32)], layers=8)
    segments = spread(8192, 32)
    base = base_us(8192)
    shrinks = grid(adapters, segments, PREFILL, "shrink")
    expands = grid(adapters, segments, PREFILL, "expand")
    for config in dict.fromkeys([shrinks[0], expands[0]]):
        num_tokens = 8192
        xs, ys = tokens(num_tokens, D), [tokens(num_tokens, 3 * D), tokens(num_tokens, D)]
        lora = make_lora(adapters, segments, replace(config, overlap=OVERLAP[0]), num_tokens)
        elapsed = time_us(layers_of(lora, xs, ys)) / adapters.layers
        print(
            f"  {describe(config)}: {elapsed:.0f} us a layer, {elapsed / base:.1%} of the base's {base:.0f}"
        )


def main() -> None:
    decode_configs = [LoraConfig(1, DECODE_CONFIG.shrink, e) for e in DECODE_EXPANDS]
    decode_configs += [LoraConfig(1, s, DECODE_CONFIG.expand) for s in DECODE_SHRINKS]
    jobs = [(c, DECODE_TOKENS) for c in [DECODE_CONFIG, SHARED_CONFIG, *decode_configs, *SHARED]]
    jobs += [(c, PREFILL_TOKENS) for c in [PREFILL_CONFIG, *PREFILL]]
    jobs = [(replace(c, overlap=True), n) for c, n in jobs]
    jobs += [(DECODE_CONFIG, DECODE_TOKENS), (SHARED_CONFIG, DECODE_TOKENS), (PREFILL_CONFIG, PREFILL_TOKENS)]
    with ProcessPoolExecutor(12, multiprocessing.get_context("spawn")) as workers:
        for error in workers.map(precompile, dict.fromkeys(jobs)):
            if error:
                print("  does not compile:", error)
    print(torch.cuda.get_device_name(), torch.__version__)
    attempt("correctness", correctness)
    best = attempt("decode", decode) or DECODE_CONFIG
    attempt("padded", lambda: padded(best))
    attempt("prefill", prefill)
    section("done")


if __name__ == "__main__":
    main()
