"""The process in which vLLM answers for `vllm_peer`: reads job.json in a folder, leaves result.json there.

Not run with vLLM yet; see `vllm_peer`. Knows neither torch nor the rest of the program.
"""

from __future__ import annotations

import json
import random
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any


def main(root: Path) -> None:
    """Answer the job's requests, once to warm up and then as often as asked."""
    vllm: Any = import_module("vllm")
    lora_request: Any = import_module("vllm.lora.request").LoRARequest
    job: dict[str, Any] = json.loads((root / "job.json").read_text())
    num_tokens: int = job["output_tokens"]
    llm = vllm.LLM(model=str(root / "base"), **job["engine"])
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
    # Name, id from 1, folder.
    loras = [
        None if each is None else lora_request(f"adapter{each}", each + 1, str(root / f"adapter{each}"))
        for each in job["adapters"]
    ]
    chosen = random.Random(0)
    seconds: list[float] = []
    for _ in range(1 + job["repeats"]):
        # Never the same prompts, so that no prefix cache knows them.
        ids = [chosen.choices(range(job["vocab_size"]), k=job["prompt_tokens"]) for _ in loras]
        prompts = [{"prompt_token_ids": each} for each in ids]
        started_s = time.perf_counter()
        outputs = llm.generate(prompts, sampling, lora_request=loras if any(loras) else None, use_tqdm=False)
        seconds.append(time.perf_counter() - started_s)
        if [len(each.outputs[0].token_ids) for each in outputs] != [num_tokens] * len(loras):
            raise RuntimeError("answers do not have the tokens asked for")
    (root / "result.json").write_text(json.dumps({"version": vllm.__version__, "seconds": seconds[1:]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
