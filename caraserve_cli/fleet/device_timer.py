"""How long operators take on a device: CUDA graphs between events, or a clock around the CPU's calls.

On a GPU the launches of an operator are captured once and replayed. Between two replays the whole L2 cache is
overwritten, which also keeps the GPU busy while the host queues the next replay: neither what is left in the
cache nor the host counts. What cannot be captured is timed with the host's part in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

# Several times the L2 cache of any GPU (a Hopper's: 50 to 60 MB).
SCRUB_BYTES = 256 * 2**20
# Launches of a graph at least, where they are short: its start, and the clock's half microsecond, are shared
# out among so many.
MIN_LAUNCHES = 32


@dataclass(frozen=True, slots=True)
class Work:
    """Something to time.

    Attributes:
        run: does all of it once, or queues it.
        divide_by: how many times the operator is in it.
        captured: whether `run` replays a graph.
    """

    run: Callable[[], object]
    divide_by: int
    captured: bool


class DeviceTimer:
    """Times work on one device.

    Args:
        device: where.
        repeats: measured runs of each work.
        clock: seconds, for what runs on the CPU.
    """

    def __init__(
        self, device: torch.device, repeats: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._is_cuda = device.type == "cuda"
        self._repeats, self._clock = repeats, clock
        self._scrub = torch.empty(SCRUB_BYTES if self._is_cuda else 0, dtype=torch.uint8, device=device)

    def rotate(self, launches: Sequence[Callable[[], object]]) -> Work:
        """One operator, on different data in each of `launches`, at least `MIN_LAUNCHES` times."""
        if self._is_cuda:
            launches = [*launches] * -(-MIN_LAUNCHES // len(launches))
        return self.capture(launches, len(launches))

    def capture(self, launches: Sequence[Callable[[], object]], divide_by: int) -> Work:
        """All of `launches`, one after the other, in a graph where there is a GPU."""

        def run() -> None:
            for launch in launches:
                launch()

        if not self._is_cuda:
            return Work(run, divide_by, captured=False)
        # Compiles what is not compiled, and makes what is made once.
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return Work(partial(_replay, graph, launches), divide_by, captured=True)

    def runs_us(self, works: Mapping[str, Work], most_repeats: int | None = None) -> dict[str, list[float]]:
        """Microseconds of each operator by name, of each repeat; these are interleaved, after one that is not
        measured.

        Args:
            works: what to time.
            most_repeats: for what takes long.
        """
        repeats = min(self._repeats, most_repeats or self._repeats)
        timed = self._time_cuda if self._is_cuda else self._time_cpu
        runs = timed(works, repeats + 1)
        return {name: [us / works[name].divide_by for us in runs[name][1:]] for name in works}

    def _time_cuda(self, works: Mapping[str, Work], num_runs: int) -> dict[str, list[float]]:
        marks = {
            name: [(_event(), _event()) for _ in range(num_runs)]  # a pair a run
            for name in works
        }
        for index in range(num_runs):
            for name, work in works.items():
                self._scrub.zero_()
                if not work.captured:
                    torch.cuda.synchronize()
                begin, end = marks[name][index]
                begin.record()
                work.run()
                end.record()
        torch.cuda.synchronize()
        return {
            name: [begin.elapsed_time(end) * 1000 for begin, end in of_work]
            for name, of_work in marks.items()
        }

    def _time_cpu(self, works: Mapping[str, Work], num_runs: int) -> dict[str, list[float]]:
        runs: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(num_runs):
            for name, work in works.items():
                began_s = self._clock()
                work.run()
                runs[name].append((self._clock() - began_s) * 1e6)
        return runs


def _replay(graph: torch.cuda.CUDAGraph, launches: Sequence[Callable[[], object]]) -> None:
    """Replay what was captured of `launches`, which hold the memory that the graph reads and writes."""
    graph.replay()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
