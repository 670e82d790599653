"""Dense operators on one Hopper GPU: correctness, then a small grid of tiles, then whole layers.

    python .dev/bench_dense.py            (no arguments; PYTHONPATH is set here)

Everything is timed inside CUDA graphs over > 400 MB of distinct weights. Kernels are compiled beforehand by
worker processes (`--warm I N`, started from here), which share Triton's cache on disk.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

import caraserve_kernels.linear as L
import caraserve_kernels.rms_norm as R
import caraserve_kernels.silu_mul as S
from caraserve_kernels.linear import Tile, _finish, choose_tile, launch_linear, linear_reference

GBPS_FLOOR = 4300.0
BF16 = torch.bfloat16
LAYER = {"qkv": (4096, 12288), "o": (4096, 4096), "gate_up": (4096, 22016), "down": (11008, 4096)}
OTHER = {
    "7B lm_head": (4096, 32000), "8B qkv": (4096, 6144), "8B gate_up": (4096, 28672), "8B down": (14336, 4096),
    "8B lm_head": (4096, 128256), "Qwen qkv": (3584, 4608), "Qwen o": (3584, 3584),
    "Qwen gate_up": (3584, 37888), "Qwen down": (18944, 3584),
}  # fmt: skip
AHEAD = [True]  # whether first weights are asked for before the wait
NUM_WARMERS = min(10, max(1, (os.cpu_count() or 2) - 2))


# ---- forms that linear.py does not have: weights by TMA, and x as the wide operand ----
@triton.jit(do_not_specialize=["num_tokens"])
def tma_kernel(
    x_desc, w_desc, out_ptr, parts_ptr, arrivals_ptr, num_tokens, width_in, width_out,
    block_tokens: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr,
    num_splits: tl.constexpr, loop_stages: tl.constexpr,
):  # fmt: skip
    first_row = tl.program_id(0) * block_rows
    steps = tl.cdiv(tl.cdiv(width_in, block_columns), num_splits)
    first = tl.program_id(1) * steps * block_columns
    last = tl.minimum(first + steps * block_columns, width_in)
    gdc_launch_dependents()
    gdc_wait()
    sums = tl.zeros([block_rows, block_tokens], tl.float32)
    for start in tl.range(first, last, block_columns, num_stages=loop_stages):
        sums = tl.dot(w_desc.load([first_row, start]), x_desc.load([0, start]).T, sums)
    rows = first_row + tl.arange(0, block_rows)
    tokens = tl.arange(0, block_tokens)
    _finish(sums, None, out_ptr, parts_ptr, arrivals_ptr, rows, tokens, num_tokens, width_out, num_splits)


@triton.jit(do_not_specialize=["num_tokens"])
def direct_kernel(
    x_ptr, weight_ptr, out_ptr, num_tokens, width_in, width_out, x_stride,
    block_tokens: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr,
    loop_stages: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    tokens = tl.arange(0, block_tokens)
    columns = tl.arange(0, block_columns)
    w_ptrs = weight_ptr + tl.minimum(rows, width_out - 1).to(tl.int64)[None, :] * width_in
    x_ptrs = x_ptr + tokens[:, None] * x_stride
    gdc_launch_dependents()
    gdc_wait()
    sums = tl.zeros([block_tokens, block_rows], tl.float32)
    for start in tl.range(0, width_in, block_columns, num_stages=loop_stages):
        at = start + columns
        w = tl.load(w_ptrs + at[:, None], mask=(at < width_in)[:, None], other=0.0)
        x = tl.load(
            x_ptrs + at[None, :], mask=(tokens < num_tokens)[:, None] & (at < width_in)[None, :], other=0.0
        )
        sums = tl.dot(x, w, sums)
    inside = (tokens < num_tokens)[:, None] & (rows < width_out)[None, :]
    tl.store(
        out_ptr + tokens[:, None] * width_out + rows[None, :], sums.to(out_ptr.dtype.element_ty), mask=inside
    )


# ---- trials ----
def splits_for(want: int, width_in: int, width_out: int, rows: int, columns: int) -> int:
    return max(1, min(want // math.ceil(width_out / rows), 8, math.ceil(width_in / columns) // 4))


def run_trial(kind: str, cfg: tuple, x, w, out) -> None:
    width_out, width_in = w.shape
    if kind == "cublas":
        torch.mm(x, w.t(), out=out)
    elif kind == "choose":
        launch_linear(x, w, None, out, choose_tile(x.shape[0], width_in, width_out))
    elif kind == "vec":
        rows, columns, warps, stages = cfg
        launch_linear(x, w, None, out, Tile(rows, columns, warps, stages, 1, columns * AHEAD[0]))
    elif kind == "tile":
        least, rows, columns, warps, stages, want = cfg
        L._MIN_TOKENS_BLOCK = least
        splits = splits_for(want, width_in, width_out, rows, columns)
        launch_linear(x, w, None, out, Tile(rows, columns, warps, stages, splits, columns * AHEAD[0]))
    elif kind == "tma":
        run_tma(cfg, x, w, out)
    elif kind == "direct":
        rows, columns, warps, stages = cfg
        direct_kernel[(triton.cdiv(width_out, rows),)](
            x, w, out, x.shape[0], width_in, width_out, x.stride(0),
            block_tokens=max(16, triton.next_power_of_2(x.shape[0])), block_rows=rows, block_columns=columns,
            loop_stages=stages, num_warps=warps, launch_pdl=True,
        )  # fmt: skip


def run_tma(cfg: tuple, x, w, out) -> None:
    from triton.tools.tensor_descriptor import TensorDescriptor

    rows, columns, warps, stages, want = cfg
    width_out, width_in = w.shape
    tokens = max(16, triton.next_power_of_2(x.shape[0]))
    splits = splits_for(want, width_in, width_out, rows, columns)
    blocks = triton.cdiv(width_out, rows)
    parts = arrivals = None
    if splits > 1:
        parts = torch.empty(splits, blocks, rows, tokens, dtype=torch.float32, device=x.device)
        arrivals = L.arrival_counters(x.device)
    tma_kernel[(blocks, splits)](
        TensorDescriptor.from_tensor(x, [tokens, columns]), TensorDescriptor.from_tensor(w, [rows, columns]),
        out, parts, arrivals, x.shape[0], width_in, width_out,
        block_tokens=tokens, block_rows=rows, block_columns=columns, num_splits=splits, loop_stages=stages,
        num_warps=warps, launch_pdl=True,
    )  # fmt: skip


VEC = [  # rows, columns, warps, stages
    (4, 1024, 4, 1), (2, 1024, 4, 1), (1, 2048, 4, 1), (2, 2048, 4, 1), (4, 512, 4, 1), (8, 512, 4, 1),
    (8, 1024, 8, 1), (4, 2048, 8, 1), (16, 256, 4, 1), (16, 512, 8, 1), (4, 1024, 4, 4), (8, 1024, 4, 3),
    (16, 512, 4, 4),
]  # fmt: skip
TILE = [  # rows, columns, warps, stages, wanted programs
    (64, 128, 4, 4, 264), (64, 128, 4, 3, 264), (64, 128, 4, 3, 396), (64, 128, 4, 6, 132), (64, 256, 4, 3, 264),
    (64, 64, 4, 6, 264), (128, 64, 4, 4, 264), (128, 128, 4, 3, 264), (128, 128, 8, 4, 132),
    (32, 256, 4, 4, 132), (32, 128, 4, 4, 264), (32, 256, 4, 3, 264),
]  # fmt: skip
TMA = [(64, 128, 4, 4, 264), (64, 128, 4, 3, 396), (64, 256, 4, 3, 264), (64, 64, 4, 8, 264), (128, 64, 4, 4, 264),
       (128, 128, 4, 4, 132), (128, 128, 8, 3, 264)]  # fmt: skip
DIRECT = [(32, 256, 4, 4), (32, 128, 4, 5), (64, 128, 4, 4), (16, 256, 2, 4)]


def trials_at(num_tokens: int) -> list[tuple[str, tuple]]:
    if num_tokens == 1:
        return [("cublas", ()), *(("vec", c) for c in VEC)]
    least = [8, 16] if num_tokens <= 8 else [16]
    trials = [("cublas", ())]
    trials += [("tile", (m, *c)) for c in TILE for m in least if num_tokens <= 16 or c[0] >= 64]
    trials += [("tma", c) for c in TMA]
    return trials + [("direct", c) for c in DIRECT if num_tokens <= 16]


GRID_TOKENS = [1, 8, 16, 32, 64]


class Pool:
    """Distinct weights cut out of one buffer of random numbers."""

    def __init__(self, num_bytes: float) -> None:
        self.flat = torch.empty(int(num_bytes) // 2, dtype=BF16, device="cuda").normal_(0, 0.02)

    def cut(self, shapes: list[tuple[int, int]]) -> list[torch.Tensor]:
        at, cut = 0, []
        for width_in, width_out in shapes:
            size = width_in * width_out
            if at + size > self.flat.numel():
                at = 0
            cut.append(self.flat[at : at + size].view(width_out, width_in))
            at += size
        return cut


def time_graph(calls: list, replays: int = 7) -> float:
    """Median time of one replay divided by the number of calls, in microseconds."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(replays)
    ]
    graph.replay()
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(s.elapsed_time(e) for s, e in events) * 1000 / len(calls)


def warm(index: int, count: int) -> None:
    """Compile this worker's share: launch each trial once on every shape."""
    pool = Pool(2.7e8)
    jobs = [(t, trial) for t in GRID_TOKENS for trial in trials_at(t) if trial[0] != "cublas"]
    for num_tokens, (kind, cfg) in jobs[index::count]:
        for shape in LAYER.values():
            (w,) = pool.cut([shape])
            x = torch.randn(num_tokens, shape[0], dtype=BF16, device="cuda")
            try:
                run_trial(kind, cfg, x, w, torch.empty(num_tokens, shape[1], dtype=BF16, device="cuda"))
            except Exception:
                pass
    torch.cuda.synchronize()


def attempt(what: str, work) -> None:
    try:
        work()
    except Exception as error:
        print(f"  FAILED {what}: {type(error).__name__}: {str(error)[:200]}", flush=True)


# ---- correctness ----
def check_linear() -> None:
    worst = 0.0
    for width_in, width_out in [(4096, 4096), (11008, 4096), (3584, 4608), (4104, 4100), (100, 130)]:
        w = torch.randn(width_out, width_in, device="cuda").mul_(width_in**-0.5).to(BF16)
        bias = torch.randn(width_out, device="cuda").to(BF16)
        for num_tokens in (1, 2, 3, 8, 16, 17, 33, 64):
            x = torch.randn(num_tokens, width_in, device="cuda").to(BF16)
            outs = [
                torch.full((num_tokens, width_out), math.nan, dtype=BF16, device="cuda") for _ in range(2)
            ]
            for out in outs:
                launch_linear(x, w, bias, out, choose_tile(num_tokens, width_in, width_out))
            expected = linear_reference(x, w, bias)
            error = float((outs[0].float() - expected).abs().max() / expected.abs().max())
            same = torch.equal(outs[0], outs[1])
            worst = max(worst, error)
            if not error < 5e-3 or not same:
                print(
                    f"  WRONG linear T={num_tokens} K={width_in} N={width_out}: error {error:.2e}, same bits {same}"
                )
    print(f"linear: worst relative error {worst:.1e} (bf16 rounding is 4e-3); counters zero: "
          f"{int(L.arrival_counters(torch.device('cuda', 0)).count_nonzero()) == 0}")  # fmt: skip


def check_small() -> None:
    for num_tokens, size in [(1, 4096), (7, 3584), (300, 8192), (3, 100)]:
        hidden, delta = torch.randn(2, num_tokens, size, device="cuda").to(BF16).unbind()
        weight = torch.randn(size, device="cuda").to(BF16)
        stream, expected = R.add_rms_norm_reference(hidden.clone(), delta, weight, 1e-5)
        changed = hidden.clone()
        out = R.add_rms_norm(changed, delta, weight, 1e-5)
        error = float((out.float() - expected).abs().max() / expected.abs().max())
        gate_up = torch.randn(num_tokens, 2 * size, device="cuda").to(BF16)
        wanted = S.silu_mul_reference(gate_up)
        silu_error = float((S.silu_mul(gate_up).float() - wanted).abs().max() / wanted.abs().max())
        print(f"T={num_tokens} H={size}: norm error {error:.1e}, stream equal {torch.equal(changed, stream)}, "
              f"silu error {silu_error:.1e}")  # fmt: skip


def check_overlap() -> None:
    """A chain of dependent kernels that start early must give what a chain of waiting ones gives, always."""
    torch.manual_seed(5)
    w = [
        torch.randn(n, k, device="cuda").mul_(k**-0.5).to(BF16)
        for k, n in [(4096, 4096), (4096, 22016), (11008, 4096)]
    ]
    norm = torch.ones(4096, device="cuda", dtype=BF16)
    for num_tokens in (1, 4, 16):
        start = torch.randn(num_tokens, 4096, device="cuda").to(BF16)
        hidden = start.clone()

        def chain(hidden=hidden, start=start, num_tokens=num_tokens) -> None:
            hidden.copy_(start)
            delta = None
            for _ in range(4):
                a = R.add_rms_norm(hidden, delta, norm, 1e-5)
                b = product(a, w[0], num_tokens)
                c = R.add_rms_norm(hidden, b, norm, 1e-5)
                delta = product(S.silu_mul(product(c, w[1], num_tokens)), w[2], num_tokens)
            hidden.add_(delta)

        on = L.can_overlap
        L.can_overlap = R.can_overlap = S.can_overlap = lambda device: False
        chain()
        torch.cuda.synchronize()
        expected = hidden.clone()
        L.can_overlap = R.can_overlap = S.can_overlap = on
        chain()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            chain()
        wrong = 0
        for _ in range(200):
            graph.replay()
            wrong += not torch.equal(hidden, expected)
        print(f"overlapping chain, T={num_tokens}: {wrong} of 200 replays differ")


def check_forked() -> None:
    """Early starts beside a forked stream inside a capture (LoRA beside the base product)."""
    w = torch.randn(4096, 4096, device="cuda").mul_(1 / 64).to(BF16)
    x = torch.randn(8, 4096, device="cuda").to(BF16)
    side, out = torch.cuda.Stream(), {}

    def work() -> None:
        a = product(x, w, 8)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            b = R.add_rms_norm(a.clone(), None, w[0], 1e-5)
        c = product(a, w, 8)
        torch.cuda.current_stream().wait_stream(side)
        out["y"] = product(b + c, w, 8)

    work()
    torch.cuda.synchronize()
    expected = out["y"].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    torch.cuda.synchronize()
    print(f"fork and join inside a graph: equal {torch.equal(out['y'], expected)}")


def product(x, w, num_tokens: int):
    out = torch.empty(num_tokens, w.shape[0], dtype=BF16, device="cuda")
    launch_linear(x, w, None, out, choose_tile(num_tokens, w.shape[1], w.shape[0]))
    return out


# ---- timing ----
def grid(pool: Pool) -> dict[tuple[int, str], tuple[str, tuple]]:
    best: dict[tuple[int, str], tuple[str, tuple]] = {}
    for num_tokens in GRID_TOKENS:
        print(f"\n== T = {num_tokens}: us (GB/s) of {', '.join(LAYER)}; sum is the four; floor 94")
        table = []
        for kind, cfg in trials_at(num_tokens):
            times = [time_trial(pool, kind, cfg, num_tokens, shape) for shape in LAYER.values()]
            table.append((sum(times), kind, cfg, times))
        table.sort(key=lambda row: row[0])
        for total, kind, cfg, times in table:
            cells = "  ".join(
                f"{t:6.1f} ({k * n * 2e-3 / t:5.0f})" for t, (k, n) in zip(times, LAYER.values(), strict=True)
            )
            print(f"{kind:7s}{str(cfg):28s} {cells}  sum {total:7.1f}")
        for i, name in enumerate(LAYER):
            row = min((r for r in table if r[1] in ("vec", "tile")), key=lambda r: r[3][i])
            best[num_tokens, name] = (row[1], row[2])
            any_row = min(table, key=lambda r: r[3][i])
            print(
                f"  best {name}: {row[1]} {row[2]} {row[3][i]:.1f}; of all {any_row[1]} {any_row[2]} {any_row[3][i]:.1f}"
            )
        sys.stdout.flush()
    return best


def time_trial(pool: Pool, kind: str, cfg: tuple, num_tokens: int, shape: tuple[int, int]) -> float:
    num_bytes = shape[0] * shape[1] * 2
    weights = pool.cut([shape] * max(4, math.ceil(4.2e8 / num_bytes)))
    x = torch.randn(num_tokens, shape[0], dtype=BF16, device="cuda")
    out = torch.full((num_tokens, shape[1]), math.nan, dtype=BF16, device="cuda")
    try:
        time_us = time_graph([lambda w=w: run_trial(kind, cfg, x, w, out) for w in weights])
        expected = linear_reference(x, weights[-1])
        error = float((out.float() - expected).abs().max() / expected.abs().max())
        if not error < 5e-3:
            print(f"  WRONG {kind} {cfg} {shape}: {error:.1e}")
            return math.inf
        return time_us
    except Exception as error:
        print(f"  FAILED {kind} {cfg} {shape}: {type(error).__name__}: {str(error)[:120]}")
        return math.inf


def layers(pool: Pool, best: dict[tuple[int, str], tuple[str, tuple]]) -> None:
    print("\n== four products of a layer, us (three layers' weights in one graph)")
    print(
        f"{'T':>3s} {'cuBLAS':>8s} {'choose':>8s} {'best':>8s} {'no ahead':>9s} {'no PDL':>8s}   +norms+silu: torch, ours"
    )
    weights = pool.cut([shape for _ in range(3) for shape in LAYER.values()])
    names = list(LAYER) * 3
    on = L.can_overlap
    for num_tokens in (1, 2, 4, 8, 16, 32, 64):
        tuned = min(t for t in GRID_TOKENS if t >= num_tokens)
        xs = {k: torch.randn(num_tokens, k, dtype=BF16, device="cuda") for k in (4096, 11008)}
        outs = {n: torch.empty(num_tokens, n, dtype=BF16, device="cuda") for n in (12288, 4096, 22016)}

        def calls(pick, xs=xs, outs=outs):
            return [
                lambda w=w, name=name: run_trial(*pick(name), xs[w.shape[1]], w, outs[w.shape[0]])
                for w, name in zip(weights, names, strict=True)
            ]

        def of_best(name, tuned=tuned):
            return best[tuned, name]

        columns = [
            four(calls(lambda _: ("cublas", ()))),
            four(calls(lambda _: ("choose", ()))),
            four(calls(of_best)),
        ]
        columns += [math.nan, math.nan]
        if num_tokens in (1, 8, 32):  # each of these two compiles again
            AHEAD[0] = False
            columns[3] = four(calls(of_best))
            AHEAD[0] = True
            L.can_overlap = lambda device: False
            columns[4] = four(calls(of_best))
            L.can_overlap = on
        whole = [whole_layer(weights, num_tokens, pick) for pick in (None, lambda n, f=of_best: f(n))]
        print(f"{num_tokens:3d} {columns[0]:8.1f} {columns[1]:8.1f} {columns[2]:8.1f} {columns[3]:9.1f} {columns[4]:8.1f}"
              f"   {whole[0]:18.1f} {whole[1]:6.1f}", flush=True)  # fmt: skip


def four(calls: list) -> float:
    try:
        return 4 * time_graph(calls)
    except Exception as error:
        print(f"  FAILED layer: {str(error)[:150]}")
        return math.nan


def whole_layer(weights: list, num_tokens: int, pick) -> float:
    """Products, two norms with the residual and the activation, chained as in the decoder, without attention."""
    norm = torch.ones(4096, device="cuda", dtype=BF16)
    hidden = torch.randn(num_tokens, 4096, device="cuda").to(BF16)

    def mul(x, w, name):
        if pick is None:
            return F.linear(x, w)
        out = torch.empty(num_tokens, w.shape[0], dtype=BF16, device="cuda")
        run_trial(*pick(name), x, w, out)
        return out

    def add_norm(hidden, delta):
        if pick is not None:
            return R.add_rms_norm(hidden, delta, norm, 1e-5)
        if delta is not None:
            hidden.add_(delta)
        return F.rms_norm(hidden, (4096,), norm, 1e-5)

    def act(gate_up):
        if pick is not None:
            return S.silu_mul(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def step() -> None:
        delta = None
        for at in range(0, 12, 4):
            qkv = mul(add_norm(hidden, delta), weights[at], "qkv")
            delta = mul(qkv[:, :4096], weights[at + 1], "o")
            gate_up = mul(add_norm(hidden, delta), weights[at + 2], "gate_up")
            delta = mul(act(gate_up), weights[at + 3], "down")
        hidden.add_(delta)

    try:
        return time_graph([step]) / 3
    except Exception as error:
        print(f"  FAILED whole layer: {str(error)[:150]}")
        return math.nan


def other_shapes(pool: Pool) -> None:
    print("\n== other shapes: cuBLAS / choose_tile us (GB/s of choose_tile)")
    for name, shape in OTHER.items():
        cells = []
        for num_tokens in (1, 8, 16, 32):
            times = [time_trial(pool, kind, (), num_tokens, shape) for kind in ("cublas", "choose")]
            cells.append(f"{times[0]:6.1f}/{times[1]:6.1f} ({shape[0] * shape[1] * 2e-3 / times[1]:4.0f})")
        print(f"{name:13s} T=1,8,16,32: " + "   ".join(cells), flush=True)


def small_operators() -> None:
    print("\n== add_rms_norm H=4096 and silu_mul I=11008: us (GB/s)")
    norm = torch.ones(4096, device="cuda", dtype=BF16)
    for num_tokens in (1, 16, 128, 2048):
        hidden, delta = torch.randn(2, 6, num_tokens, 4096, device="cuda").to(BF16).unbind()
        gate_up = torch.randn(3, num_tokens, 22016, device="cuda").to(BF16)
        n_bytes, s_bytes = 8 * num_tokens * 4096, 6 * num_tokens * 11008
        cells = []

        def unfused(i, hidden=hidden, delta=delta):
            F.rms_norm(hidden[i].add_(delta[i]), (4096,), norm, 1e-5)

        t = time_graph([lambda i=i: unfused(i) for i in range(6)])
        cells.append(f"norm torch {t:.2f}")
        for per_thread in (8, 16, 32):
            R._COLUMNS_PER_THREAD = per_thread
            t = time_graph([lambda i=i: R.add_rms_norm(hidden[i], delta[i], norm, 1e-5) for i in range(6)])
            cells.append(f"{per_thread}/thread {t:.2f} ({n_bytes / t * 1e-3:.0f})")
        t = time_graph(
            [lambda i=i: F.silu(gate_up[i, :, :11008]).mul_(gate_up[i, :, 11008:]) for i in range(3)]
        )
        cells.append(f"| silu torch {t:.2f}")
        for columns in (512, 1024, 2048):
            S._COLUMNS = columns
            t = time_graph([lambda i=i: S.silu_mul(gate_up[i]) for i in range(3)])
            cells.append(f"{columns} {t:.2f} ({s_bytes / t * 1e-3:.0f})")
        print(f"T={num_tokens:5d} " + "  ".join(cells), flush=True)
        R._COLUMNS_PER_THREAD, S._COLUMNS = 8, 1024


def main() -> None:
    began = time.time()
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "--warm", str(i), str(NUM_WARMERS)], stderr=subprocess.DEVNULL
        )
        for i in range(NUM_WARMERS)
    ]
    print(torch.cuda.get_device_name(0), "torch", torch.__version__, "triton", triton.__version__)
    attempt("check_linear", check_linear)
    attempt("check_small", check_small)
    attempt("check_overlap", check_overlap)
    attempt("check_forked", check_forked)
    for worker in workers:
        worker.wait()
    print(f"compiled and checked after {time.time() - began:.0f} s")
    pool = Pool(1.3e9)
    best: dict[tuple[int, str], tuple[str, tuple]] = {}
    attempt("grid", lambda: best.update(grid(pool)))
    L._MIN_TOKENS_BLOCK = 16
    attempt("layers", lambda: layers(pool, best))
    L._MIN_TOKENS_BLOCK = 16
    attempt("other shapes", lambda: other_shapes(pool))
    attempt("small operators", small_operators)
    print(f"done after {time.time() - began:.0f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--warm"]:
        warm(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
