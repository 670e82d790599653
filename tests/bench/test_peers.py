"""transformers + PEFT and vLLM on the cases that ask for them, after our own replicas, and never in their
way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from caraserve_cli.bench.floor import DeviceSpeed
from caraserve_cli.bench.vllm_peer import VllmRun
from caraserve_cli.errors import DeviceMemoryError, InputError
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.model.resolve import ResolvedBase
from tests.bench.step_recipes import TINY_STEPS
from tests.bench.throughput_recipes import TINY, write_throughput
from tests.cli.command import SAMPLE
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]

VLLM_CASES = TINY.replace("adapters = 0", "adapters = 0\nvllm = true").replace(
    "lora_ranks = [2, 5]", "vllm = true\nlora_ranks = [2, 5]", 1
)
# In the case with adapters alone, of which each recipe has one that decodes; nothing is required of what they
# add, which noise would decide.
PEFT_STEPS = TINY_STEPS.replace(
    'without = "base"\nlora_at_most = 1e9\nlora_share_at_most = 1.0\n', "peft = true\n"
)


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of known speed, whose measuring (test_floor.py) takes longer than these benchmarks; none is
    faster."""
    speed = DeviceSpeed(bytes_per_s=1e15, flops_per_s=1e15)
    monkeypatch.setattr("caraserve_cli.bench.engine_runs.measure_speed", lambda *_: speed)


def test_the_peer_of_a_throughput_case(caraserve: Caraserve, tmp_path: Path) -> None:
    result_file = tmp_path / "result.json"
    text = TINY.replace("lora_ranks = [2, 5]", "peft = true\nlora_ranks = [2, 5]", 1)
    ended = caraserve("bench", write_throughput(tmp_path, text), "--json", result_file)
    assert ended.returncode == 0, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("repeat 1/1  adapters, transformers + PEFT: ")
    assert last.endswith(" output tokens/s")
    assert "from 3 measured steps" in ended.stdout
    cases = {case["name"]: case for case in json.loads(result_file.read_text())["cases"]}
    assert {name for name, case in cases.items() if case["peers"]["peft"] is not None} == {"adapters"}
    peer = cases["adapters"]["peers"]["peft"]
    assert (peer["num_requests"], peer["output_tokens"], peer["num_steps"]) == (3, 4, 3)
    assert peer["tokens_per_s"] == pytest.approx(12e3 / (peer["prefill_ms"] + 3 * peer["step_ms"]))


def test_the_peer_of_a_decoding_step(caraserve: Caraserve, tmp_path: Path) -> None:
    ended = caraserve("bench", write_throughput(tmp_path, PEFT_STEPS))
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[-1].endswith(" ms a step")
    assert "peer  ms a step  " in ended.stdout
    assert "from 7 measured steps" in ended.stdout


def test_without_adapters_the_peer_is_transformers_alone(caraserve: Caraserve, tmp_path: Path) -> None:
    text = TINY.replace("adapters = 0", "adapters = 0\npeft = true")
    ended = caraserve("bench", write_throughput(tmp_path, text))
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("repeat 1/1  base, transformers: ")
    assert "PEFT" not in ended.stdout
    assert [line.split()[:2] for line in ended.stdout.splitlines() if "measured steps" in line] == [
        ["base", "transformers"]
    ]


def test_a_machine_without_peft(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caraserve_cli.bench.peft_peer.peft_is_present", lambda: False)
    ended = caraserve("bench", write_throughput(tmp_path, PEFT_STEPS))
    assert ended.returncode == 0, ended.stderr
    problem = "peft is not installed; the extra caraserve[test] has it"
    assert ended.stderr.endswith(f"adapters, transformers + PEFT: not measured: {problem}\n")
    assert f"Not measured: transformers + PEFT in 'adapters': {problem}." in ended.stdout


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (DeviceMemoryError("no room"), "no room"),
        (TypeError("it has changed\nmuch"), "TypeError: it has changed"),
    ],
)
def test_what_goes_wrong_there_costs_nothing_here(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, problem: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("caraserve_cli.bench.peft_peer.measure_peft", fail)
    result_file = tmp_path / "result.json"
    ended = caraserve("bench", write_throughput(tmp_path, PEFT_STEPS), "--json", result_file)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(result_file.read_text())["cases"][1]["peers"] == {
        "peft": {"problem": problem},
        "vllm": None,
    }


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """An installed vLLM; what is asked of it is in the list returned."""
    asked: list[dict[str, object]] = []

    def measure(base: ResolvedBase, adapters: Sequence[SyntheticAdapter | None], **others: object) -> VllmRun:
        asked.append({"base": base.name, "adapters": adapters, **others})
        return VllmRun(version="0.99", max_loras=2, num_output_tokens=12, seconds=(3.0, 1.0))

    monkeypatch.setattr("caraserve_cli.bench.vllm_peer.vllm_is_present", lambda: True)
    monkeypatch.setattr("caraserve_cli.bench.vllm_peer.measure_vllm", measure)
    return asked


def test_vllm_of_a_throughput_case(
    caraserve: Caraserve, tmp_path: Path, vllm: list[dict[str, object]]
) -> None:
    result_file = tmp_path / "result.json"
    ended = caraserve("bench", write_throughput(tmp_path, VLLM_CASES), "--json", result_file)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[-4:] == [
        "repeat 1/2  base, vLLM: 4 output tokens/s",
        "repeat 2/2  base, vLLM: 12 output tokens/s",
        "repeat 1/2  adapters, vLLM: 4 output tokens/s",
        "repeat 2/2  adapters, vLLM: 12 output tokens/s",
    ]
    assert ended.stdout.count("whole answers, vLLM 0.99, max_loras 2") == 2
    assert "vLLM is not installed" not in ended.stdout
    common = {
        "base": str(SAMPLE / "base"),
        "prompt_tokens": 6,
        "output_tokens": 4,
        "repeats": 2,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    small, large = (SyntheticAdapter(lora_rank, ("q_proj", "v_proj"), 0) for lora_rank in (2, 5))
    assert vllm == [
        {**common, "adapters": (None, None, None)},
        {**common, "adapters": (small, large, small)},
    ]
    cases = {case["name"]: case for case in json.loads(result_file.read_text())["cases"]}
    measured = {
        "version": "0.99",
        "max_loras": 2,
        "num_output_tokens": 12,
        "seconds": [3.0, 1.0],
        "tokens_per_s": 6.0,
    }
    assert {name: case["peers"] for name, case in cases.items()} == {
        "base": {"peft": None, "vllm": measured},
        "adapters": {"peft": None, "vllm": measured},
        "cold": {"peft": None, "vllm": None},
    }


def test_a_machine_without_vllm(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vllm: list[dict[str, object]]
) -> None:
    monkeypatch.setattr("caraserve_cli.bench.vllm_peer.vllm_is_present", lambda: False)
    ended = caraserve("bench", write_throughput(tmp_path, VLLM_CASES))
    assert ended.returncode == 0, ended.stderr
    assert "vLLM" not in ended.stderr
    assert [line for line in ended.stdout.splitlines() if "vLLM" in line] == [
        "vLLM is not installed, so that it was not measured."
    ]
    assert vllm == []


@pytest.mark.parametrize("required", ["1e-6", "1e12"])
@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (InputError("no end after 9 s, it said nothing"), "no end after 9 s, it said nothing"),
        (TypeError("it has changed\nmuch"), "TypeError: it has changed"),
    ],
)
def test_a_vllm_that_fails_changes_no_verdict(
    caraserve: Caraserve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    vllm: list[dict[str, object]],
    error: Exception,
    problem: str,
    required: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("caraserve_cli.bench.vllm_peer.measure_vllm", fail)
    text = TINY.replace("at_least = 1e-6", f"at_least = {required}\nvllm = true")
    result_file = tmp_path / "result.json"
    ended = caraserve("bench", write_throughput(tmp_path, text), "--json", result_file)
    assert ended.returncode == (0 if required == "1e-6" else 4), ended.stderr
    assert [line for line in ended.stdout.splitlines() if "vLLM" in line] == [
        f"Not measured: vLLM in 'base': {problem}."
    ]
    assert json.loads(result_file.read_text())["cases"][0]["peers"]["vllm"] == {"problem": problem}
