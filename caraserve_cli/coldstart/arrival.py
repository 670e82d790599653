"""A cold arrival, and what is decided of it. Data and nothing but data."""

from __future__ import annotations

from dataclasses import dataclass

from caraserve_cli.core import ColdStart
from caraserve_cli.perf.batch_load import NO_RANKS, RankSums


@dataclass(frozen=True, slots=True)
class Arrival:
    """Facts about one request whose adapter is not on the device.

    Attributes:
        prompt_tokens: to be computed, without what a prefix cache has.
        max_output_tokens: at most so many are answered; with 1, its adapter is used in prefill only.
        lora_rank: the largest of its adapter's modules.
        adapter_bytes: of the whole adapter.
        num_layers: of the base.
        batch_tokens: of other work in the step that it would join.
        num_decoding: running requests that a longer step would delay.
        link_backlog_ms: how long the copies under way will still take.
        free_workers: CPU workers that compute nothing now.
        can_assist: whether they can compute with this adapter at all.
        together_bytes: of other adapters that are loaded by the same plan, whose layers are copied together
            with this one's, if it prefills at once too.
        ahead_bytes: of other adapters that are loaded by the same plan and copied before this one.
        link_bytes_per_ms: how fast copies were lately; None where only the profile is known.
        beside_wait_ms: how long until it could be computed beside the others' steps; None where nothing can.
        decoding_ranks: of the distinct adapters of those who decode.
        decoding_kv_tokens: in the cache of those who decode.
        may_spare_load: it ends with its first token, and nobody else wants its adapter.
        is_link_wanted: somebody else who waits needs an adapter that has no place on the device.
    """

    prompt_tokens: int
    max_output_tokens: int
    lora_rank: int
    adapter_bytes: int
    num_layers: int
    batch_tokens: int
    num_decoding: int
    link_backlog_ms: float
    free_workers: int
    can_assist: bool
    together_bytes: int = 0
    ahead_bytes: int = 0
    link_bytes_per_ms: float | None = None
    beside_wait_ms: float | None = None
    decoding_ranks: RankSums[int] = NO_RANKS
    decoding_kv_tokens: int = 0
    may_spare_load: bool = False
    is_link_wanted: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """How an arrival's adapter comes to the device, if it does.

    Attributes:
        how: the way.
        cpu_layers: layers 0 … cpu_layers - 1 of its prompt are computed by CPU workers, the others by the
            GPU, each as soon as it has been copied; the copies begin with layer `cpu_layers`.
        hold_ms: the copies begin now, and the request joins no step before this time has passed: the rest of
            the copies then hides under its prefill, and nobody in that step waits for the link.
        beside_ms: its prompt is computed beside the others' steps, which go on, for about this time; 0 for in
            a step with them.
        spares_load: the adapter does not come to the device at all: CPU workers compute all layers of its
            prompt, in host memory.
    """

    how: ColdStart
    cpu_layers: int = 0
    hold_ms: float = 0.0
    beside_ms: float = 0.0
    spares_load: bool = False
