"""What can be known of the vLLM peer without vLLM: the folders it gets, what it is asked for, and how its
failures are told. A package of that name stands in for it, whose calls are those of vLLM's documentation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from caraserve_cli.bench import vllm_peer
from caraserve_cli.bench.peft_folders import write_adapter, write_base_config
from caraserve_cli.bench.vllm_peer import VllmRun, measure_vllm, vllm_is_present
from caraserve_cli.errors import InputError
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.fleet.synthetic_adapters import SyntheticAdapters
from caraserve_cli.model.resolve import ResolvedBase, resolve_base
from tests.adapters.bases import tiny_qwen3

ROOT = Path(__file__).parents[2]
SMALL = SyntheticAdapter(2, ("q_proj", "v_proj"), 0)
LARGE = SyntheticAdapter(9, ("q_proj", "o_proj", "down_proj"), 0)

CPU = torch.device("cpu")

STAND_IN = """
import json, os
from pathlib import Path
__version__ = "0.0.stand-in"
OUT = Path(os.environ["STAND_IN_OUT"])

class SamplingParams:
    def __init__(self, *, temperature, max_tokens, ignore_eos, detokenize):
        assert (temperature, ignore_eos, detokenize) == (0.0, True, False)
        self.max_tokens = max_tokens

class Answer:
    def __init__(self, token_ids):
        self.token_ids = token_ids

class RequestOutput:
    def __init__(self, token_ids):
        self.outputs = [Answer(token_ids)]

class LLM:
    def __init__(self, model, **engine):
        {on_start}
        assert json.loads((Path(model) / "config.json").read_text())["architectures"]
        self.calls = {{"engine": engine, "runs": [], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}}

    def generate(self, prompts, sampling_params, *, lora_request, use_tqdm):
        loras = lora_request and [each and [each.name, each.number, sorted(os.listdir(each.path))]
                                  for each in lora_request]
        self.calls["runs"].append({{"prompts": prompts, "loras": loras}})
        OUT.write_text(json.dumps(self.calls))
        return [RequestOutput([7] * (sampling_params.max_tokens - {missing})) for _ in prompts]
"""
STAND_IN_LORA = """
class LoRARequest:
    def __init__(self, lora_name, lora_int_id, lora_path):
        self.name, self.number, self.path = lora_name, lora_int_id, lora_path
"""


@pytest.fixture
def base(tmp_path: Path) -> ResolvedBase:
    """2 layers, whose heads have a width of their own."""
    folder = tmp_path / "given"
    tiny_qwen3().config.save_pretrained(folder)
    return resolve_base(str(folder), "random")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts it where the other process imports `vllm`; the file it writes its calls to is returned."""

    def put(*, on_start: str = "pass", missing: int = 0) -> Path:
        package = tmp_path / "packages" / "vllm"
        (package / "lora").mkdir(parents=True)
        (package / "__init__.py").write_text(STAND_IN.format(on_start=on_start, missing=missing))
        (package / "lora" / "__init__.py").touch()
        (package / "lora" / "request.py").write_text(STAND_IN_LORA)
        calls = tmp_path / "calls.json"
        paths = [str(package.parent), str(ROOT), str(ROOT / "kernels")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
        monkeypatch.setenv("STAND_IN_OUT", str(calls))
        return calls

    return put


def measure(
    base: ResolvedBase,
    adapters: list[SyntheticAdapter | None],
    timeout_s: float = 120,
    device: torch.device = CPU,
) -> VllmRun:
    return measure_vllm(
        base,
        adapters,
        prompt_tokens=5,
        output_tokens=4,
        repeats=2,
        dtype=torch.bfloat16,
        device=device,
        timeout_s=timeout_s,
    )


def test_peft_loads_the_folders(base: ResolvedBase, tmp_path: Path) -> None:
    write_base_config(tmp_path / "base", base)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert resolve_base(str(tmp_path / "base"), "random").config == base.config
    write_adapter(tmp_path / "adapter", LARGE, base.config.shape, torch.float32)
    expected = SyntheticAdapters([LARGE], packed=True).load(
        LARGE.name, tmp_path, base.config.shape, torch.float32
    )
    model: PeftModel = PeftModel.from_pretrained(tiny_qwen3(), tmp_path / "adapter")
    loaded = {name: weight for name, weight in model.named_parameters() if "lora" in name}
    assert len(loaded) == 2 * 2 * 3
    for (layer, module), pair in expected.pairs.items():
        block = "mlp" if module == "down_proj" else "self_attn"
        path = f"base_model.model.model.layers.{layer}.{block}.{module}"
        assert torch.equal(loaded[f"{path}.lora_A.default.weight"], pair.a)
        assert torch.equal(loaded[f"{path}.lora_B.default.weight"], pair.b_rows.T)
        assert model.get_submodule(path).scaling == {"default": 1.0}


def test_what_vllm_is_asked_for(base: ResolvedBase, stand_in: Callable[..., Path]) -> None:
    calls_file = stand_in()
    run = measure(base, [SMALL, None, LARGE, SMALL])
    assert (run.version, run.num_output_tokens, len(run.seconds)) == ("0.0.stand-in", 16, 2)
    assert run.tokens_per_s > 0
    assert (run.max_loras, run.basis) == (2, "whole answers, vLLM 0.0.stand-in, max_loras 2")
    calls = json.loads(calls_file.read_text())
    assert calls["engine"] == {
        "dtype": "bfloat16",
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_model_len": 9,
        "enable_lora": True,
        "max_loras": 2,
        "max_cpu_loras": 2,
        "max_lora_rank": 16,
    }
    files = ["adapter_config.json", "adapter_model.safetensors"]
    for made in calls["runs"]:
        assert made["loras"] == [["adapter0", 1, files], None, ["adapter1", 2, files], ["adapter0", 1, files]]
    prompts = [tuple(each["prompt_token_ids"]) for made in calls["runs"] for each in made["prompts"]]
    assert len(set(prompts)) == 3 * 4
    assert {len(prompt) for prompt in prompts} == {5}


def test_the_base_alone_asks_for_no_adapters(base: ResolvedBase, stand_in: Callable[..., Path]) -> None:
    calls_file = stand_in()
    run = measure(base, [None, None])
    assert (run.max_loras, run.basis) == (0, "whole answers, vLLM 0.0.stand-in")
    calls = json.loads(calls_file.read_text())
    assert not [key for key in calls["engine"] if "lora" in key]
    assert [made["loras"] for made in calls["runs"]] == [None] * 3


@pytest.mark.parametrize(("device", "gpus"), [("cpu", ""), ("cuda", "3")])
def test_a_cpu_is_compared_with_no_gpu(
    base: ResolvedBase, stand_in: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, device: str, gpus: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    calls_file = stand_in()
    measure(base, [None], device=torch.device(device))
    assert json.loads(calls_file.read_text())["gpus"] == gpus


@pytest.mark.parametrize(
    ("broken", "timeout_s", "said"),
    [
        (
            {"on_start": "raise ValueError('no such option')"},
            120,
            "exit status 1, ValueError: no such option",
        ),
        ({"on_start": "os._exit(9)"}, 120, "exit status 9, it said nothing"),
        ({"missing": 1}, 120, "exit status 1, RuntimeError: answers do not have the tokens asked for"),
        ({"on_start": "import time; time.sleep(600)"}, 1, "no end after 1 s, it said nothing"),
    ],
    ids=["raises", "dies", "short answers", "hangs"],
)
def test_failures_are_told(
    base: ResolvedBase,
    stand_in: Callable[..., Path],
    broken: dict[str, object],
    timeout_s: float,
    said: str,
) -> None:
    stand_in(**broken)
    with pytest.raises(InputError, match=f"^{said}$"):
        measure(base, [None], timeout_s)


def test_a_full_disk_is_told(base: ResolvedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(vllm_peer, "write_adapter", full)
    with pytest.raises(InputError, match=r"^its adapters cannot be written to .*no space left"):
        measure(base, [SMALL])


@pytest.mark.parametrize("present", [True, False])
def test_it_is_known_whether_vllm_is_there(monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    monkeypatch.setattr(vllm_peer, "find_spec", lambda name: object() if present else None)
    assert vllm_is_present() is present
