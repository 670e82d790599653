"""Attention of CaraServe on the H200: correctness in bfloat16, then times of a small grid of configurations.

Plain script, no arguments: `python .dev/bench_attention.py` from the repository's root. Times are microseconds
of one launch (one layer) in a CUDA graph of launches that rotate over enough caches to exceed L2.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))

import torch  # noqa: E402
import triton  # noqa: E402
from torch import Tensor  # noqa: E402

from caraserve_kernels import paged_decode as pd  # noqa: E402
from caraserve_kernels import paged_prefill as pp  # noqa: E402
from caraserve_kernels import rope_cache as rc  # noqa: E402

BYTES_PER_US = 4.3e6
ROTATE_BYTES = 256e6
DEVICE = torch.device("cuda")
HEAD_DIM, BLOCK = 128, 16
MODELS = {"7B 32/32": (32, 32), "8B 32/8": (32, 8)}
SCALE = HEAD_DIM**-0.5
START = time.perf_counter()


def say(*words: object) -> None:
    print(f"[{time.perf_counter() - START:5.1f}]", *words, flush=True)


def attempt(what: str, function: Callable[[], object]) -> object:
    """One failing configuration must not stop the others."""
    try:
        return function()
    except Exception as error:
        say("FAILED", what, type(error).__name__, str(error).splitlines()[:1])
        return None


def time_us(launches: list[Callable[[], None]]) -> float:
    """Mean time of one of `launches`, replayed as one CUDA graph."""
    while len(launches) < 16:
        launches = launches * 2
    for launch in launches[:2]:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    graph.replay()
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / len(launches))
    return sorted(times)[2]


class Step:
    """Caches of several layers, and sequences in shuffled blocks."""

    def __init__(
        self, model: str, num_queries: list[int], context_lens: list[int], layers: int | None = None
    ):
        self.num_heads, self.num_kv_heads = MODELS[model]
        blocks_of = [-(-length // BLOCK) for length in context_lens]
        total = sum(blocks_of)
        layer_bytes = total * BLOCK * self.num_kv_heads * HEAD_DIM * 4
        layers = layers or max(2, min(48, int(ROTATE_BYTES // layer_bytes) + 1))
        size = (layers, self.num_kv_heads, total, BLOCK, HEAD_DIM)
        self.keys = torch.randn(size, dtype=torch.bfloat16, device=DEVICE)
        self.values = torch.randn(size, dtype=torch.bfloat16, device=DEVICE)
        order = torch.randperm(total, dtype=torch.int32).split(blocks_of)
        tables = torch.zeros(len(context_lens), max(blocks_of), dtype=torch.int32)
        for row, own in enumerate(order):
            tables[row, : len(own)] = own
        self.tables = tables.to(DEVICE)
        self.lens = torch.tensor(context_lens, dtype=torch.int32, device=DEVICE)
        self.num_queries, self.context_lens = num_queries, context_lens
        cu = torch.tensor([0, *num_queries]).cumsum(0)
        self.cu_query = cu.to(DEVICE, torch.int32)
        shape = (int(cu[-1]), self.num_heads, HEAD_DIM)
        self.query = torch.randn(shape, dtype=torch.bfloat16, device=DEVICE)
        self.out = torch.full_like(self.query, torch.nan)
        self.floor_us = sum(context_lens) * self.num_kv_heads * HEAD_DIM * 4 / BYTES_PER_US
        self.scratch = pd.DecodeScratch.allocate(
            len(context_lens) * 32, len(context_lens), self.num_heads, self.num_kv_heads, HEAD_DIM, DEVICE
        )

    def decode(self, layer: int, splits: int, launch: pd.DecodeLaunch | None = None, window: int = 0) -> None:
        pd.launch_paged_decode(
            self.query, self.keys[layer], self.values[layer], self.tables, self.lens, window, SCALE, self.out,
            self.scratch, splits, launch,
        )  # fmt: skip

    def decode_us(self, splits: int, launch: pd.DecodeLaunch | None = None) -> float:
        layers = range(self.keys.shape[0])
        return time_us([lambda layer=layer: self.decode(layer, splits, launch) for layer in layers])

    def tiles(self, tiling: pp.PrefillTiling) -> Tensor:
        tokens = tiling.query_tokens(self.num_heads // self.num_kv_heads)
        built = pp.build_prefill_tiles(self.num_queries, self.context_lens, tokens)
        return torch.tensor(built, dtype=torch.int32).to(DEVICE)

    def prefill(self, layer: int, tiling: pp.PrefillTiling, tiles: Tensor, window: int = 0) -> None:
        pp.launch_paged_prefill(
            self.query, self.keys[layer], self.values[layer], self.tables, self.cu_query, self.lens, window,
            SCALE, self.out, tiles, tiling,
        )  # fmt: skip

    def prefill_us(self, tiling: pp.PrefillTiling) -> float:
        tiles = self.tiles(tiling)
        layers = range(self.keys.shape[0])
        return time_us([lambda layer=layer: self.prefill(layer, tiling, tiles) for layer in layers])

    @property
    def prefill_flops(self) -> float:
        pairs = sum(
            n * (c - n) + n * (n + 1) / 2 for n, c in zip(self.num_queries, self.context_lens, strict=True)
        )
        return 4 * pairs * self.num_heads * HEAD_DIM


SINGLE = [pd.DecodeLaunch(*c, 1) for c in ((16, 1), (32, 2), (32, 4), (64, 4), (64, 8), (128, 8))]
GROUPED = [
    pd.DecodeLaunch(*c) for c in ((32, 2, 3), (32, 4, 5), (64, 4, 3), (64, 4, 5), (128, 4, 3), (128, 8, 3))
]
TILINGS = [
    pp.PrefillTiling(*c)
    for c in ((128, 64, 8, 3), (128, 64, 8, 5), (128, 128, 8, 3), (64, 64, 4, 3), (64, 32, 4, 3), (64, 32, 4, 5),
              (128, 32, 8, 3), (16, 64, 4, 3))
]  # fmt: skip
ROPE_LAUNCHES = [(4, 1), (8, 2), (16, 4), (32, 8)]


def name(config: object) -> str:
    return str(tuple(getattr(config, field) for field in config.__dataclass_fields__))  # type: ignore[attr-defined]


def rope_arguments(tokens: int, heads: int, kv_heads: int, normed: bool) -> tuple[object, ...]:
    width = (heads + 2 * kv_heads) * HEAD_DIM
    qkv = torch.randn(tokens, width, dtype=torch.bfloat16, device=DEVICE)
    angles = torch.rand(tokens, HEAD_DIM // 2, device=DEVICE) * 6
    cos = torch.cat((angles.cos(), angles.cos()), -1).bfloat16()
    sin = torch.cat((-angles.sin(), angles.sin()), -1).bfloat16()
    norm = torch.randn(heads + kv_heads, HEAD_DIM, device=DEVICE).bfloat16() if normed else None
    slots = torch.randperm(tokens + 100, device=DEVICE)[:tokens]
    keys, values = torch.zeros(
        2, kv_heads, -(-(tokens + 100) // BLOCK), BLOCK, HEAD_DIM, dtype=torch.bfloat16, device=DEVICE
    ).unbind()
    query = torch.zeros(tokens, heads, HEAD_DIM, dtype=torch.bfloat16, device=DEVICE)
    return qkv, cos, sin, norm, 1e-6, slots, keys, values, heads, kv_heads, query


def compile_all() -> None:
    """Every configuration once, side by side; what fails here fails again, and is reported, where it is timed."""
    jobs: list[Callable[[], None]] = []
    for model, (heads, kv_heads) in MODELS.items():
        step = Step(model, [1], [64], layers=1)
        for launch in SINGLE if heads == kv_heads else GROUPED:
            for splits in (1, 2):
                jobs.append(lambda s=step, n=splits, c=launch: s.decode(0, n, c))
        for tiling in TILINGS:
            jobs.append(lambda s=step, c=tiling: s.prefill(0, c, s.tiles(c)))
    for launch in ROPE_LAUNCHES:
        jobs.append(lambda c=launch: rc.launch_rope_and_cache(*rope_arguments(2, 32, 32, False), launch=c))

    def job(run: Callable[[], None]) -> None:
        try:
            torch.zeros(1, device=DEVICE)  # gives the thread its CUDA context
            run()
        except Exception:
            return

    with ThreadPoolExecutor(14) as pool:
        list(pool.map(job, jobs))
    torch.cuda.synchronize()
    say(f"compiled {len(jobs)} kernels")


def check(what: str, actual: Tensor, expected: Tensor, limit: float) -> None:
    error = float((actual.float() - expected.float()).abs().max() / expected.float().abs().max())
    say("ok   " if error < limit else "WRONG", what, f"relative error {error:.1e}")


def check_decode(model: str, splits: int, window: int) -> None:
    lens = [512, 1, 15, 700, 2048, 33, 0, 4096]
    step = Step(model, [1] * len(lens), lens, layers=1)
    expected = torch.empty(step.out.shape, device=DEVICE)
    given = step.query, step.keys[0], step.values[0], step.tables, step.lens, window, SCALE
    pd.paged_decode_reference(*given, expected)
    outputs = []
    for _ in range(20):
        step.out.fill_(torch.nan)
        step.decode(0, splits, window=window)
        outputs.append(step.out.clone())
    same = all(torch.equal(outputs[0], other) for other in outputs)
    stale = int(step.scratch.arrivals.abs().sum())
    check(
        f"decode {model} splits {splits} window {window} repeatable {same} counters {stale}",
        outputs[0],
        expected,
        1e-2,
    )


def check_prefill(model: str, tiling: pp.PrefillTiling, window: int) -> None:
    step = Step(model, [300, 1, 77, 0, 512, 16], [300, 900, 1000, 5, 512, 17], layers=1)
    expected = torch.empty(step.out.shape, device=DEVICE)
    given = step.query, step.keys[0], step.values[0], step.tables, step.cu_query, step.lens, window, SCALE
    pp.paged_prefill_reference(*given, expected)
    step.prefill(0, tiling, step.tiles(tiling), window)
    check(f"prefill {model} {name(tiling)} window {window}", step.out, expected, 1e-2)


def check_rope(heads: int, kv_heads: int, tokens: int, normed: bool) -> None:
    given = rope_arguments(tokens, heads, kv_heads, normed)
    rc.launch_rope_and_cache(*given)
    actual = [given[i].clone() for i in (6, 7, 10)]
    for i in (6, 7, 10):
        given[i].zero_()
    rc.rope_and_cache_reference(*given)
    for part, got, i in zip("kvq", actual, (6, 7, 10), strict=True):
        check(f"rope {heads}/{kv_heads} x {tokens} normed {normed} {part}", got, given[i], 5e-3)


def check_all() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    for model in MODELS:
        for splits, window in ((1, 0), (4, 0), (32, 0), (4, 300)):
            attempt("check decode", lambda: check_decode(model, splits, window))
        for tiling in TILINGS:
            attempt("check prefill", lambda: check_prefill(model, tiling, 0))
        attempt("check prefill", lambda: check_prefill(model, pp.TILING, 100))
    attempt("check rope", lambda: check_rope(32, 32, 1, False))
    attempt("check rope", lambda: check_rope(28, 4, 100, True))


def bench_decode() -> None:
    generator = torch.Generator().manual_seed(1)
    ragged = (torch.rand(32, generator=generator) * 1023 + 1).int().tolist()
    shapes = {
        "1x512": ([512], (4, 8, 16, 32)),
        "32x512": ([512] * 32, (1, 2, 4)),
        "256x192": ([192] * 256, (1, 2)),
        "32x4096": ([4096] * 32, (1, 2, 4, 8)),
        "32xragged": (ragged, (1, 2, 4, 8)),
    }
    for model, (heads, kv_heads) in MODELS.items():
        for shape, (lens, splits_of) in shapes.items():
            step = Step(model, [1] * len(lens), lens)
            say(
                f"decode {model} {shape}: floor {step.floor_us:.1f} us; (keys, warps, stages) | us by splits {splits_of}"
            )
            best = (float("inf"), "")
            for launch in SINGLE if heads == kv_heads else GROUPED:
                cells = []
                for splits in splits_of:
                    us = attempt(f"{name(launch)} {splits}", lambda: step.decode_us(splits, launch))
                    if isinstance(us, float):
                        best = min(best, (us, f"{name(launch)} splits {splits}"))
                    cells.append(f"{us:7.1f}" if isinstance(us, float) else "      -")
                print(f"    {name(launch):>14} |", *cells, flush=True)
            us = best[0]
            print(
                f"    best {us:.1f} us, {step.floor_us * BYTES_PER_US / us / 1e3:.0f} GB/s, floor/time {step.floor_us / us:.2f}: {best[1]}"
            )
            del step


def bench_splits() -> None:
    """For PROGRAMS_PER_SM: which splits are best by batch size, with the default launch."""
    num_sms = torch.cuda.get_device_properties(0).multi_processor_count
    counts = (1, 2, 4, 8, 16, 32)
    for model, (_, kv_heads) in MODELS.items():
        for length in (256, 2048):
            say(f"splits {model} context {length}: us by splits {counts}, * = chosen by choose_num_splits")
            for sequences in (1, 2, 4, 8, 16, 32, 64):
                step = Step(model, [1] * sequences, [length] * sequences)
                chosen = pd.choose_num_splits(sequences, kv_heads, num_sms)
                cells = []
                for splits in counts:
                    us = attempt("splits", lambda: step.decode_us(splits))
                    cells.append(f"{us:7.1f}" if isinstance(us, float) else "      -")
                us = attempt("splits", lambda: step.decode_us(chosen))
                print(
                    f"    {sequences:3} |",
                    *cells,
                    f"| * {chosen}: {us:.1f}, floor {step.floor_us:.1f}",
                    flush=True,
                )
                del step


def bench_prefill() -> None:
    shapes = {
        "8x1024": ([1024] * 8, [1024] * 8),
        "32x256": ([256] * 32, [256] * 32),
        "512 after 3584": ([512], [4096]),
        "32 decode@512 + 512": ([1] * 32 + [512], [512] * 33),
    }
    for model in MODELS:
        for shape, (num_queries, lens) in shapes.items():
            step = Step(model, num_queries, lens)
            say(
                f"prefill {model} {shape}: {step.prefill_flops / 1e9:.0f} GFLOP; (rows, keys, warps, stages) | us, TFLOP/s"
            )
            for tiling in TILINGS:
                us = attempt(name(tiling), lambda: step.prefill_us(tiling))
                if isinstance(us, float):
                    print(
                        f"    {name(tiling):>17} | {us:7.1f} {step.prefill_flops / us / 1e6:6.0f}", flush=True
                    )
            del step


def bench_rope() -> None:
    say("rope_and_cache 32/32: us by (heads, warps)", ROPE_LAUNCHES)
    for tokens in (1, 8, 32, 64, 128, 256, 2048):
        bytes_moved = tokens * 96 * HEAD_DIM * 2 * 2
        copies = [
            rope_arguments(tokens, 32, 32, False)
            for _ in range(max(2, min(64, int(ROTATE_BYTES // bytes_moved))))
        ]
        cells = []
        for launch in ROPE_LAUNCHES:
            run = [lambda a=a, c=launch: rc.launch_rope_and_cache(*a, launch=c) for a in copies]
            us = attempt(f"rope {launch}", lambda: time_us(run))
            cells.append(f"{us:6.2f}" if isinstance(us, float) else "     -")
        print(f"    {tokens:5} |", *cells, f"| floor {bytes_moved / BYTES_PER_US:.2f}", flush=True)


def main() -> None:
    say(torch.cuda.get_device_name(0), "torch", torch.__version__, "triton", triton.__version__)
    torch.manual_seed(0)
    for stage in (compile_all, check_all, bench_rope, bench_decode, bench_prefill, bench_splits):
        attempt(stage.__name__, stage)
    say("done")


if __name__ == "__main__":
    main()
