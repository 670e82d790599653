"""The example of the paper's section 2."""

from __future__ import annotations

from caraserve_cli.perf.decode import DecodeModel
from caraserve_cli.perf.prefill import PrefillModel
from caraserve_cli.perf.step_model import StepModel
from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.request_facts import RequestFacts
from tests.placement.fleets import QUALITY, kernel, loads_of, replica, request

SLO_MS = 36


def paper_example(*, is_padded: bool) -> tuple[ReplicaLoads, RequestFacts]:
    """One replica with 24 requests of rank 32 and one with 16 of rank 64, and a new one of rank 64; padded,
    25 × 64 is 38 ms and 17 × 64 is 33 ms; unpadded, 832 is 34.5 ms and 1,088 is 38.3 ms."""
    model = StepModel(
        prefill=PrefillModel(20, 0.1, 0, 0, QUALITY),
        decode=DecodeModel((1,), (22,), QUALITY),
        lora_kernel=kernel(is_padded=is_padded, alpha_ms=0.01 if is_padded else 0.015),
        max_batch_tokens=2048,
    )
    placed = [
        [_request(f"{lora_rank} {number}", lora_rank) for number in range(count)]
        for count, lora_rank in ((24, 32), (16, 64))
    ]
    loads = loads_of([replica("rank 32", model), replica("rank 64", model)], placed)
    return loads, _request("new", 64)


def _request(name: str, lora_rank: int) -> RequestFacts:
    return request(name, lora_rank, prompt_tokens=100, output_tokens=100, tpot_slo_ms=SLO_MS)
