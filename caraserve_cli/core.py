"""The data that passes between the rooms, and nothing but data.

A request goes one way: a line becomes a `RequestRow` (room `requests`), is tokenised into a `Request`
(room `job`), lives in the engine as a `Sequence`, and leaves as a `Completion`. Times are milliseconds
on the run's clock: 0 is the start of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

# The linear modules of a decoder layer that an adapter may change, in the order of the forward pass.
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# The same modules as the decoder computes them: those with the same input are one product, side by side.
FUSED_MODULES: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"


class ColdStart(StrEnum):
    """How a request's adapter came to the device; `coldstart.policy` says what each means."""

    NONE = "none"
    RESIDENT = "resident"
    STREAM = "stream"
    CPU_ASSIST = "cpu-assist"
    ON_DEMAND = "on-demand"
    ON_DEMAND_BLOCKING = "on-demand-blocking"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one answer are chosen. Temperature 0 is greedy; `top_k` 0 means all tokens."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The bounds a request carries, in milliseconds; None where it carries none."""

    deadline_ms: float | None = None
    ttft_slo_ms: float | None = None
    tpot_slo_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCall:
    """What an OpenAI Batch line asks for beside the answer itself: the answer has the same form.

    `model` is what the line calls its adapter or the base; `num_top_logprobs` is None where no
    log-probabilities are asked for, and 0 where only those of the answer's own tokens are.
    """

    is_chat: bool
    model: str
    num_top_logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """One valid line of the requests file. Exactly one of the three prompt forms is set. With `batch_call`
    the adapter is not known yet: the call's model names it, or the base."""

    id: str
    line: int
    prompt: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    adapter: str | None = None
    sampling: SamplingParams = SamplingParams()
    bounds: Bounds = Bounds()
    arrival_ms: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    batch_call: BatchCall | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A tokenised request, ready for an engine. `prompt_token_ids` is never empty."""

    id: str
    line: int
    prompt_token_ids: tuple[int, ...]
    adapter: str | None = None
    sampling: SamplingParams = SamplingParams()
    bounds: Bounds = Bounds()
    arrival_ms: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    batch_call: BatchCall | None = None


class TokenLogprobs(NamedTuple):
    """Log-probabilities at one position, of the base distribution before penalties and temperature."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class LoadTime:
    """How long an adapter was on its way to the device: from when its copying began until all had come.
    `ms` is None until then, and where nothing is copied."""

    ms: float | None = None


@dataclass(slots=True)
class Timings:
    """Raw times of one request. `arrival_ms` is given; the scheduler fills the first schedule, `load` and the
    waits in the queue, the engine the tokens and what happened in steps.

    `room_wait_ms`, `disk_wait_ms`, `load_wait_ms`: how long its first token waited for room in the device's
    pool, for its adapter to be read, and for that to be copied. `stalled_ms`: how long steps with it stood
    still for the adapters of others. `assisted_ms`: the time of steps in which CPU workers had a part of it.
    `preempted_ms`: how long it was back in the queue after preemptions; `preempted_at_ms`: since when it is,
    None when it is not. `load`: what was under way when it was admitted; None where its adapter was there, or
    it has none.
    """

    arrival_ms: float
    first_scheduled_ms: float | None = None
    first_token_ms: float | None = None
    last_token_ms: float | None = None
    room_wait_ms: float = 0.0
    disk_wait_ms: float = 0.0
    load_wait_ms: float = 0.0
    stalled_ms: float = 0.0
    assisted_ms: float = 0.0
    preempted_ms: float = 0.0
    preempted_at_ms: float | None = None
    load: LoadTime | None = None


class SequenceStatus(StrEnum):
    """Where a sequence is in the engine."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDING = "ending"  # its last token is under way: it holds nothing any more
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """A request inside the engine. The scheduler owns every field but the last group."""

    request: Request
    timings: Timings
    token_ids: list[int]
    num_prompt_tokens: int
    max_output_tokens: int
    status: SequenceStatus = SequenceStatus.WAITING
    # Tokens whose keys and values are in the cache; falls to 0 when the sequence is preempted.
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    # Full blocks at the head of the table that later prompts can find.
    num_findable_blocks: int = 0
    # Tokens that steps under way will add to `token_ids`.
    num_pending_tokens: int = 0
    adapter_slot: int | None = None
    cold_start: ColdStart = ColdStart.NONE
    # CPU workers compute layers of a chunk under way, and it is not known yet whether they were in time.
    is_unchecked: bool = False
    num_failed_assists: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    # Hash of each full block of tokens, chained from `prefix_root`; None switches prefix caching off.
    prefix_root: bytes | None = None
    block_hashes: list[bytes] = field(default_factory=list)
    # Filled by the engine as tokens are chosen.
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Prompt and output, the tokens under way included."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_tokens_left(self) -> int:
        """To be answered at most, without those under way."""
        return self.max_output_tokens - (self.num_tokens - self.num_prompt_tokens)

    @property
    def is_ending(self) -> bool:
        """Whether its last token is under way: nothing more is to be computed."""
        return self.num_tokens_left <= 0

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One finished answer. `text` is None when the run has no tokenizer; `token_ids` includes the token
    that ended the answer. `replica` is the name of the one that answered; None where there is only one."""

    request: Request
    text: str | None
    token_ids: SequenceOf[int]
    finish_reason: FinishReason
    cold_start: ColdStart
    timings: Timings
    logprobs: SequenceOf[TokenLogprobs] = ()
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_failed_assists: int = 0
    replica: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that the engine had to give up; becomes a line in errors.jsonl."""

    request: Request
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseShape:
    """The sizes of a decoder that adapters, pools and models of time depend on."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    def module_shape(self, module: str) -> tuple[int, int]:
        """(input width, output width) of one of LORA_MODULES.

        Raises:
            KeyError: `module` is none of them.
        """
        query_width = self.num_heads * self.head_dim
        kv_width = self.num_kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden_size, query_width),
            "k_proj": (self.hidden_size, kv_width),
            "v_proj": (self.hidden_size, kv_width),
            "o_proj": (query_width, self.hidden_size),
            "gate_proj": (self.hidden_size, self.intermediate_size),
            "up_proj": (self.hidden_size, self.intermediate_size),
            "down_proj": (self.intermediate_size, self.hidden_size),
        }[module]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """What planning needs to know of one adapter: no weights.

    `lora_rank` is the largest rank of its modules; `num_bytes` what it takes in a device pool;
    `identity` keys the prefix cache: no other adapter of the run has it.
    """

    name: str
    lora_rank: int
    num_bytes: int
    identity: bytes
