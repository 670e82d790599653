"""Benchmarks of the simulator: what is read and refused, a whole tiny one on the CPU, the verdict, and
recipes that are simulated instead of measured."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.floor import DeviceSpeed
from caraserve_cli.bench.metric_finder import find_metrics
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.bench.serving_requests import make_arrivals
from caraserve_cli.bench.serving_run import ServingRun
from caraserve_cli.bench.simulator_recipe import SimulatorCase, SimulatorRecipe
from caraserve_cli.bench.simulator_result import SimulatorCaseResult, compare_rate
from caraserve_cli.bench.synthetic import adapters_of
from caraserve_cli.bench.virtual_replica import adapter_infos, serve_virtually
from caraserve_cli.core import Bounds
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.cold_start import this_machine
from caraserve_cli.fleet.machine import describe_device
from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.perf.profile_json import to_json
from caraserve_cli.perf.profile_store import ProfileStore, default_folder
from tests.bench.serving_recipes import write
from tests.bench.simulator_recipes import SIMULATOR
from tests.bench.slo_recipes import SLO
from tests.cli.command import SAMPLE, assert_refused
from tests.cli.conftest import Caraserve, caraserve
from tests.perf.test_mixed import TRUE as MIXED
from tests.placement.fleets import PROFILE, replica, step_model

__all__ = ["caraserve"]


@pytest.fixture(autouse=True)
def own_cache_and_quick_floor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No profile is stored, and the device's speed is known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    speed = DeviceSpeed(bytes_per_s=1e9, flops_per_s=1e9)
    monkeypatch.setattr("caraserve_cli.bench.engine_runs.measure_speed", lambda *_: speed)


def load(path: Path) -> SimulatorRecipe:
    recipe = load_any_recipe(path)
    assert isinstance(recipe, SimulatorRecipe)
    return recipe


def sample_profile() -> MachineProfile:
    """Of the sample's base on this CPU, with times that are made up."""
    config = json.loads((SAMPLE / "base" / "config.json").read_text())
    shape = dataclasses.replace(
        PROFILE.shape,
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim", config["hidden_size"] // config["num_attention_heads"]),
        intermediate_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
    )
    on = dataclasses.replace(PROFILE.measured_on, device=describe_device(torch.device("cpu")))
    return dataclasses.replace(
        PROFILE,
        measured_on=on,
        base=str((SAMPLE / "base").resolve()),
        dtype="float32",
        shape=shape,
        link=None,
        exchange=None,
        cpu_lora=None,
    )


def test_every_key_is_read(tmp_path: Path) -> None:
    more = 'scheduling = "fcfs"\ncold_start = "stream"\nemulate_link_gbps = 3\n'
    (case,) = load(write(tmp_path, SIMULATOR + more)).cases
    assert (case.scheduling, case.cold_start, case.link_gbps) == ("fcfs", "stream", 3)
    assert (case.rates_per_s, case.within, case.attainment_within) == ((40, 80), 1e9, 1)
    plain = SIMULATOR.replace("within = 1e9\nattainment_within = 1\n", "")
    (case,) = load(write(tmp_path, plain)).cases
    assert (case.scheduling, case.cold_start, case.link_gbps) == ("slack", "auto", None)
    assert (case.within, case.attainment_within) == (1.1, 0.1)


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ("[40, 80]", "[80, 40]", "'rates_per_s' must be ascending"),
        ("within = 1e9", "within = 1", "'within' must be above 1"),
        ("attainment_within = 1", "attainment_within = 2", "'attainment_within' must be a share"),
        ("requests = 6", 'requests = 6\ncold_start = "cached"', "'cold_start' must be one of auto"),
        ("requests = 6", "requests = 6\nload = 0.8", "'load' has no meaning in a benchmark of the simulator"),
        ("requests = 6", "requests = 6\nrate = 3", "unknown key 'rate'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, old: str, new: str, fragment: str) -> None:
    assert old in SIMULATOR
    with pytest.raises(OptionError, match=r"mine\.toml") as refused:
        load(write(tmp_path, SIMULATOR.replace(old, new, 1)))
    assert fragment in str(refused.value)


def test_without_a_profile_it_is_said_what_to_run(caraserve: Caraserve, tmp_path: Path) -> None:
    ended = caraserve("bench", write(tmp_path, SIMULATOR))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "no profile of this machine" in line
    command = f"caraserve profile --base {SAMPLE / 'base'} --weights random --device cpu --dtype float32"
    assert f"run `{command}` first" in line


def test_a_kernel_that_was_not_measured_is_not_simulated_by_the_other(
    caraserve: Caraserve, tmp_path: Path
) -> None:
    profile = dataclasses.replace(sample_profile(), padded_kernel=None)
    ProfileStore(default_folder()).save(this_machine(profile.measured_on.device), profile)
    padded = SIMULATOR.replace('dtype = "float32"', 'dtype = "float32"\nlora_kernel = "bgmv"')
    ended = caraserve("bench", write(tmp_path, padded))
    assert_refused(ended, 2, "case 'mixed': 'lora_kernel' is 'bgmv'", "says nothing of its time")


def test_the_engine_and_the_simulator_answer_the_same_requests(caraserve: Caraserve, tmp_path: Path) -> None:
    profile = sample_profile()
    ProfileStore(default_folder()).save(this_machine(profile.measured_on.device), profile)
    result_file, page = tmp_path / "result.json", tmp_path / "result.md"
    ended = caraserve(
        "bench",
        write(tmp_path, SIMULATOR),
        "--json",
        result_file,
        "--markdown",
        page,
        "--html",
        tmp_path / "p",
    )
    assert ended.returncode == 0, ended.stderr
    assert [line.split(": ")[0] for line in ended.stderr.splitlines()] == [
        "warm-up  mixed, 40/s",
        "warm-up  mixed, 80/s",
        "repeat 1/1  mixed, 40/s, measured",
        "repeat 1/1  mixed, 40/s, simulated",
        "repeat 1/1  mixed, 80/s, measured",
        "repeat 1/1  mixed, 80/s, simulated",
    ]
    result = json.loads(result_file.read_text())
    assert (result["kind"], result["verdict"]) == ("simulator", "met")
    assert result["profile_measured_at"] == profile.measured_on.measured_at
    (case,) = result["cases"]
    assert [rate["name"] for rate in case["rates"]] == ["40/s", "80/s"]
    for rate in case["rates"]:
        assert (
            set(rate["measures"])
            == {"mean_ttft", "mean_tpot", "mean_latency"}
            == set(rate["corrected_ratios"])
        )
        for measure in rate["measures"].values():
            ratio = measure["simulated"]["median"] / measure["measured"]["median"]
            assert measure["ratio"] == pytest.approx(ratio)
        assert rate["attainment"]["measured"]["values"] == [1.0] == rate["attainment"]["simulated"]["values"]
    assert "mixed: rates: 40/s: measures: mean_ttft: simulated" in page.read_text()


def _simulated(case: SimulatorCase, step_ms: float) -> ServingRun:
    """By a machine whose decoding steps take so long."""
    facts = replica("r", step_model(step_ms=step_ms))
    requests = make_arrivals(case, 1, 40, 100)
    return serve_virtually(facts, adapter_infos(adapters_of(case), PROFILE), "stream", "fcfs", requests)


@pytest.mark.parametrize(
    ("step_ms", "tpot_slo_ms", "within", "verdict"),
    [
        (20, None, 1.01, Verdict.MET),
        (22, None, 1.2, Verdict.MET),
        (26, None, 1.2, Verdict.MISSED),
        (26, 24, 2.0, Verdict.MISSED),  # all within the bound, or none
        (26, 30, 2.0, Verdict.MET),
    ],
)
def test_means_and_attainment_must_be_near_enough(
    tmp_path: Path, step_ms: float, tpot_slo_ms: float | None, within: float, verdict: Verdict
) -> None:
    (parsed,) = load(write(tmp_path, SIMULATOR.replace("adapters = 4", "adapters = 2", 1))).cases
    bounds = dataclasses.replace(parsed.bounds, tpot_slo_ms=tpot_slo_ms)
    # One after the other: a step is never of more than one.
    case = dataclasses.replace(
        parsed, bounds=bounds, within=within, attainment_within=0.1, num_requests=3, output_tokens=30
    )
    spread = dataclasses.replace(case, num_requests=1)
    measured, simulated = _simulated(spread, 20), _simulated(spread, step_ms)
    rate = compare_rate(case, 40, [measured], [simulated], [])
    result = SimulatorCaseResult(case=case, has_lora_model=True, rates=(rate,), undone=())
    assert result.verdict is verdict
    undone = dataclasses.replace(result, undone=("it was not",))
    assert undone.verdict is Verdict.CANNOT_TELL


@pytest.mark.parametrize(("num_met", "is_within"), [(7, True), (6, False)])
def test_ten_points_apart_are_near_enough(tmp_path: Path, num_met: int, is_within: bool) -> None:
    """8 of 10 bounds met and 7: as floats 0.8 - 0.7 is more than 0.1."""
    (parsed,) = load(write(tmp_path, SIMULATOR)).cases
    case = dataclasses.replace(parsed, attainment_within=0.1)
    (completion,) = _simulated(dataclasses.replace(parsed, num_requests=1), 20).completions
    bounds = Bounds(ttft_slo_ms=1e6), Bounds(ttft_slo_ms=1e-6)

    def run_with(num_met: int) -> ServingRun:
        completions = [
            dataclasses.replace(
                completion, request=dataclasses.replace(completion.request, bounds=bounds[n >= num_met])
            )
            for n in range(10)
        ]
        return ServingRun(started_ms=0, completions=completions, steps=(), undone=None)

    attainment = compare_rate(case, 40, [run_with(8)], [run_with(num_met)], []).attainment
    assert attainment is not None
    assert (attainment.measured.median, attainment.simulated.median) == (0.8, num_met / 10)
    assert attainment.is_within is is_within


# Recipes that are simulated instead of measured

VIRTUAL = SLO.replace('kv_memory = "4MB"', 'kv_memory = "40MB"\nadapter_memory = "3MB"')


def test_a_benchmark_of_scheduling_on_virtual_time(caraserve: Caraserve, tmp_path: Path) -> None:
    """It is the same every time, and starts nothing."""
    profile_file, results = tmp_path / "profile.json", []
    profile_file.write_bytes(to_json(sample_profile()))
    for number in range(2):
        result_file = tmp_path / f"{number}.json"
        ended = caraserve("bench", write(tmp_path, VIRTUAL), "--profile", profile_file, "--json", result_file)
        assert ended.returncode == 0, ended.stderr
        assert "SIMULATED, nothing was measured" in ended.stdout
        results.append(json.loads(result_file.read_text()))
    assert results[0] == results[1]
    assert results[0]["is_simulated"] is True
    (case,) = results[0]["cases"]
    assert case["held_rate_per_s"] == {"slack": 80, "fcfs": 80}
    assert case["bounds"]["tpot_slo_ms"] == pytest.approx(1e6 * case["base_tpot_ms"])
    metrics = {metric.name: metric.values for metric in find_metrics(results[0])}
    assert metrics["mixed: results: fcfs: 80/s: attainment"] == (1.0,)


def test_a_page_says_that_it_is_simulated(caraserve: Caraserve, tmp_path: Path) -> None:
    """This machine's name is on it, and nothing was measured on this machine."""
    profile_file = tmp_path / "profile.json"
    profile_file.write_bytes(to_json(sample_profile()))
    pages = tmp_path / "page.md", tmp_path / "page.html"
    asked = ("bench", write(tmp_path, VIRTUAL), "--profile", profile_file)
    ended = caraserve(*asked, "--markdown", pages[0], "--html", pages[1])
    assert ended.returncode == 0, ended.stderr
    for page in pages:
        assert f"Simulated on virtual time by the profile {profile_file}" in page.read_text()
        assert "mixed: results: slack: 40/s: attainment" in page.read_text()
    refused = caraserve(*asked, "--github-benchmark", tmp_path / "b.json")
    assert_refused(refused, 2, "--github-benchmark: it is for what was measured")


@pytest.mark.parametrize("has_kernel", [True, False])
def test_what_a_profile_says_nothing_of_is_told(
    caraserve: Caraserve, tmp_path: Path, has_kernel: bool
) -> None:
    kernel = PROFILE.unpadded_kernel
    assert kernel is not None
    profile = dataclasses.replace(
        sample_profile(),
        unpadded_kernel=kernel if has_kernel else None,
        decode_lora=None,
        mixed=MIXED if has_kernel else None,
    )
    profile_file = tmp_path / "profile.json"
    profile_file.write_bytes(to_json(profile))
    ended = caraserve("bench", write(tmp_path, VIRTUAL), "--profile", profile_file)
    assert ended.returncode == 0, ended.stderr
    assert ("adapters cost nothing here" in ended.stdout) is not has_kernel
    assert ("nothing of prompts beside decoding requests" in ended.stdout) is not has_kernel


def test_what_cannot_be_simulated_is_refused(caraserve: Caraserve, tmp_path: Path) -> None:
    profile_file, other = tmp_path / "profile.json", tmp_path / "other.json"
    profile_file.write_bytes(to_json(dataclasses.replace(sample_profile(), padded_kernel=None)))
    other.write_bytes(to_json(PROFILE))
    recipe = write(tmp_path, VIRTUAL)

    def refusal(*args: str | Path) -> str:
        ended = caraserve("bench", *args)
        assert ended.returncode in (1, 2), ended.stdout
        (line,) = ended.stderr.splitlines()
        return line

    assert "only recipes of the kind 'slo'" in refusal("quick", "--profile", profile_file)
    assert "cannot be read" in refusal(recipe, "--profile", tmp_path / "none.json")
    assert "is of 'llama2-7b' in bfloat16" in refusal(recipe, "--profile", other)
    assert "leave out --record" in refusal(recipe, "--profile", profile_file, "--record", tmp_path / "r")
    bare = write(tmp_path, SLO)
    assert "'adapter_memory' is missing" in refusal(bare, "--profile", profile_file)
    for before, after, said in (
        ('"40MB"', '"1KB"', "'kv_memory' is 1,000 bytes, and a block of the cache takes"),
        ('"40MB"', '"0.5"', "'kv_memory': 0.5 is a share of a device's memory"),
        ('device = "cpu"', 'device = "cuda"', "'device' is 'cuda', and the profile"),
        ('dtype = "float32"', 'dtype = "float32"\ngpu_memory = "1GB"', "'gpu_memory' has no meaning"),
        ('dtype = "float32"', 'dtype = "float32"\nlora_kernel = "bgmv"', "says nothing of its time"),
    ):
        assert before in VIRTUAL
        line = refusal(write(tmp_path, VIRTUAL.replace(before, after)), "--profile", profile_file)
        assert said in line
        assert "case 'mixed'" in line
    small = write(tmp_path, VIRTUAL.replace("tpot_within = 1e6\n", "").replace('"3MB"\nhost', '"1KB"\nhost'))
    line = refusal(small, "--profile", profile_file)
    assert "case 'mixed'" in line
    assert "give more 'kv_memory' or 'adapter_memory'" in line
    assert os.environ["XDG_CACHE_HOME"].startswith(str(tmp_path))


def test_what_exceeds_the_context_is_refused_as_a_replica_would(caraserve: Caraserve, tmp_path: Path) -> None:
    """The sample has a context of 512, a base that is named by its short name is not looked for."""
    of_sample, of_llama2 = tmp_path / "sample.json", tmp_path / "llama2.json"
    of_sample.write_bytes(to_json(sample_profile()))
    of_llama2.write_bytes(to_json(PROFILE))
    short = VIRTUAL.replace(str(SAMPLE / "base"), "llama2-7b").replace('"cpu"', '"auto"')
    short = short.replace('"float32"', '"bfloat16"').replace('"40MB"', '"40GB"').replace('"3MB"', '"3GB"')

    def ran(text: str, prompt_tokens: int, profile: Path) -> CompletedProcess[str]:
        assert "prompt_tokens = 6" in text
        text = text.replace("prompt_tokens = 6", f"prompt_tokens = {prompt_tokens}")
        return caraserve("bench", write(tmp_path, text), "--profile", profile)

    words = "'prompt_tokens' and 'output_tokens' are {} together", "context of '{}' has {}"
    for text, context_tokens, base, profile in (
        (VIRTUAL, 512, str(SAMPLE / "base"), of_sample),
        (short, 4096, "llama2-7b", of_llama2),
    ):
        over = ran(text, context_tokens - 3, profile)
        said = words[0].format(context_tokens + 1), words[1].format(base, context_tokens)
        assert_refused(over, 2, "case 'mixed'", *said)
        assert ran(text, context_tokens - 4, profile).returncode == 0
