"""The requests of a simulation: drawn with a seed, one by one, in bounded memory.

Their lengths and adapters follow from the seed and the number of the request alone: at another rate the same
requests come, at other times.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from caraserve_cli.core import AdapterInfo, BaseShape, Bounds
from caraserve_cli.perf.batch_load import FloatArray, IntArray
from caraserve_cli.placement.request_facts import RequestFacts
from caraserve_cli.requests.arrival_process import gamma_ms, poisson_ms
from caraserve_cli.simulation.simulated_request import SimulatedRequest

# Requests drawn together. Chosen, not measured.
_BLOCK_REQUESTS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Numbers of tokens: log-normal, rounded up, cut at both ends.

    Attributes:
        median_tokens: of the distribution before it is cut.
        sigma: the standard deviation of the logarithm; 0 for equal lengths.
        most_tokens: longer ones are cut to this.
    """

    median_tokens: float
    sigma: float
    most_tokens: int

    def draw(self, generator: np.random.Generator, number: int) -> IntArray:
        """So many lengths, each at least 1."""
        lengths = np.exp(generator.normal(math.log(self.median_tokens), self.sigma, number))
        tokens: IntArray = np.ceil(np.clip(lengths, 1, self.most_tokens)).astype(np.int64)
        return tokens

    @property
    def mean_tokens(self) -> float:
        """Of what is drawn, but for the rounding: the mean of the log-normal distribution cut above."""
        if not self.sigma:
            return min(self.median_tokens, self.most_tokens)
        at = (math.log(self.most_tokens / self.median_tokens)) / self.sigma
        mean = self.median_tokens * math.exp(self.sigma**2 / 2)
        return mean * _normal_share(at - self.sigma) + self.most_tokens * (1 - _normal_share(at))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMix:
    """The adapters, by popularity: the k-th is asked for with a probability that goes with k to the power of
    `-zipf_exponent`; 0 makes all equal. Ranks come by turns, in the order of popularity.

    Attributes:
        num_adapters: 0 for the base alone.
        modules: that every adapter changes.
    """

    num_adapters: int
    zipf_exponent: float
    lora_ranks: tuple[int, ...]
    modules: tuple[str, ...]

    def infos(self, shape: BaseShape, dtype_bytes: int) -> tuple[AdapterInfo, ...]:
        """Of every adapter, the most popular first."""
        row_bytes = dtype_bytes * shape.num_layers
        row_bytes *= sum(sum(shape.module_shape(module)) for module in self.modules)
        return tuple(
            AdapterInfo(
                name=f"adapter-{place}",
                lora_rank=lora_rank,
                num_bytes=lora_rank * row_bytes,
                identity=b"%d" % place,
            )
            for place in range(self.num_adapters)
            for lora_rank in [self.lora_ranks[place % len(self.lora_ranks)]]
        )

    def cumulated(self) -> FloatArray:
        """The probabilities of all adapters up to each one, shape [num_adapters]."""
        weights = np.arange(1, self.num_adapters + 1, dtype=np.float64) ** -self.zipf_exponent
        shares: FloatArray = np.cumsum(weights) / weights.sum()
        return shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What arrives.

    Attributes:
        rate_per_s: mean.
        burstiness: coefficient of variation of the gaps; 1 is a Poisson process.
        bounds: that every request carries.
        num_requests: in all.
    """

    rate_per_s: float
    burstiness: float
    prompts: Lengths
    outputs: Lengths
    adapters: AdapterMix
    bounds: Bounds
    num_requests: int
    seed: int

    def requests(self, infos: Sequence[AdapterInfo]) -> Iterator[SimulatedRequest]:
        """All of them, in the order of their arrival.

        Args:
            infos: `AdapterMix.infos`; none has every request ask for the base alone.
        """
        expected_tokens = max(1, round(self.outputs.mean_tokens))
        draws = islice(self._draws(), self.num_requests)
        for number, (arrival_ms, prompt_tokens, output_tokens, place) in enumerate(draws):
            info = infos[place] if infos else None
            facts = RequestFacts(
                id=str(number),
                prompt_tokens=prompt_tokens,
                output_tokens=expected_tokens,
                arrival_ms=arrival_ms,
                adapter=info.name if info else None,
                lora_rank=info.lora_rank if info else 0,
                adapter_bytes=info.num_bytes if info else 0,
                bounds=self.bounds,
            )
            yield SimulatedRequest(facts, info, output_tokens, self.outputs.most_tokens)

    def _draws(self) -> Iterator[tuple[float, int, int, int]]:
        """Without end: arrival, prompt and output tokens, and the place of the adapter by popularity."""
        chosen = random.Random(f"arrivals {self.seed}")
        if self.burstiness == 1:
            arrivals_ms = poisson_ms(chosen, self.rate_per_s)
        else:
            arrivals_ms = gamma_ms(chosen, self.rate_per_s, self.burstiness)
        prompts, outputs, places = map(np.random.default_rng, np.random.SeedSequence(self.seed).spawn(3))
        cumulated = self.adapters.cumulated()
        while True:
            yield from zip(
                islice(arrivals_ms, _BLOCK_REQUESTS),
                self.prompts.draw(prompts, _BLOCK_REQUESTS).tolist(),
                self.outputs.draw(outputs, _BLOCK_REQUESTS).tolist(),
                np.searchsorted(cumulated, places.random(_BLOCK_REQUESTS), side="right").tolist(),
                strict=True,
            )


def _normal_share(value: float) -> float:
    """Of a standard normal distribution, what lies below."""
    return (1 + math.erf(value / math.sqrt(2))) / 2
