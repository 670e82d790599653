"""vLLM on the work of one case of a throughput benchmark, where `vllm` can be imported.

Written against what vLLM's documentation of 0.14 to 0.22 shows; it could not be installed where this was
written, so that THIS HAS NOT BEEN RUN WITH IT. Whatever goes wrong is an error that says what did; no result
of ours depends on it.

    if vllm_is_present():
        run = measure_vllm(
            around.base, request_adapters(case), prompt_tokens=case.prompt_tokens,
            output_tokens=case.output_tokens, repeats=recipe.repeats, dtype=around.dtype,
            device=around.device,
        )
        run.tokens_per_s, run.basis

vLLM makes random weights of its own for the base (`load_format="dummy"`) and has its defaults, but for what
the case decides (`max_model_len`, `max_lora_rank`, `max_cpu_loras`) and for `max_loras`, which is said beside
every result: how many different adapters one of its batches can have, 1 by default, and how many slots of
the largest rank it keeps on the device. So it caps vLLM's batches, and it is no equal of our adapter pool,
whose size is in bytes: a case with a small pool is no comparison. Adapters beyond the slots wait in its host
memory, where a warm-up has brought them.

It runs in a process of its own (`vllm_process`), which gives the device's memory back however it ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError

from caraserve_cli.bench.peft_folders import write_adapter, write_base_config
from caraserve_cli.errors import InputError
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.model.resolve import ResolvedBase

# `max_loras` at most: adapters on the device, and in a batch. A slot of rank 64 for Llama-2-7B takes 0.3 GB
# whatever its adapter changes, and more slots would take more of its KV cache. Chosen, not measured yet.
_MAX_SLOTS = 32
# The values that vLLM takes for `max_lora_rank`.
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_PROCESS = "caraserve_cli.bench.vllm_process"


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmRun:
    """What vLLM took for all requests' whole answers, after a warm-up.

    Attributes:
        max_loras: the different adapters that a batch could have; 0 where there are none.
        seconds: of each repeat.
    """

    version: str
    max_loras: int
    num_output_tokens: int
    seconds: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second of the median repeat."""
        return self.num_output_tokens / median(self.seconds)

    @property
    def basis(self) -> str:
        """To be said beside `tokens_per_s`."""
        limit = f", max_loras {self.max_loras}" if self.max_loras else ""
        return f"whole answers, vLLM {self.version}{limit}"


def vllm_is_present() -> bool:
    """Whether it is worth trying."""
    return find_spec("vllm") is not None


def measure_vllm(
    base: ResolvedBase,
    adapters: Sequence[SyntheticAdapter | None],
    *,
    prompt_tokens: int,
    output_tokens: int,
    repeats: int,
    dtype: torch.dtype,
    device: torch.device,
    timeout_s: float = 1800,
) -> VllmRun:
    """Answer all requests, with `adapters` of each, once to warm up and then `repeats` times.

    Raises:
        InputError: vLLM could not be measured; the message is the reason alone.
    """
    distinct = list(dict.fromkeys(each for each in adapters if each is not None))
    max_loras = min(len(distinct), _MAX_SLOTS)
    engine: dict[str, object] = {
        "dtype": str(dtype).removeprefix("torch."),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_model_len": prompt_tokens + output_tokens,
    }
    if distinct:
        largest_rank = max(each.lora_rank for each in distinct)
        engine["enable_lora"] = True
        engine["max_loras"] = max_loras
        engine["max_cpu_loras"] = len(distinct)
        engine["max_lora_rank"] = next((each for each in _LORA_RANKS if each >= largest_rank), largest_rank)
    job = {
        "engine": engine,
        "vocab_size": base.config.shape.vocab_size,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "repeats": repeats,
        "adapters": [None if each is None else distinct.index(each) for each in adapters],
    }
    with TemporaryDirectory(prefix="caraserve-vllm-") as name:
        root = Path(name)
        try:
            write_base_config(root / "base", base)
            for index, adapter in enumerate(distinct):
                write_adapter(root / f"adapter{index}", adapter, base.config.shape, dtype)
        except (OSError, SafetensorError) as error:
            raise InputError(f"its adapters cannot be written to {root} ({error})") from error
        (root / "job.json").write_text(json.dumps(job))
        result = _run_process(root, device, timeout_s)
    return VllmRun(max_loras=max_loras, num_output_tokens=len(adapters) * output_tokens, **result)


def _run_process(root: Path, device: torch.device, timeout_s: float) -> dict[str, Any]:
    """What the process left, or an InputError with the last that it said."""
    log = root / "log.txt"
    # vLLM takes a GPU that it sees, which is no peer of a CPU.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device.type == "cpu" else {}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", _PROCESS, root],
            env=os.environ | hidden,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            ended = f"exit status {process.wait(timeout_s)}"
        except subprocess.TimeoutExpired:
            ended = f"no end after {timeout_s:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # what vLLM started, which holds the device's memory
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    with suppress(OSError):
        result: dict[str, Any] = json.loads((root / "result.json").read_text())
        return result
    said = log.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
    raise InputError(f"{ended}, {last}")
