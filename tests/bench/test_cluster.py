"""A simulated cluster: what its recipe may say, what is found, and how it is judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import orjson
import pytest
from rich.console import Console

from caraserve_cli.bench.catalogue import find_recipe
from caraserve_cli.bench.cluster import run_cluster
from caraserve_cli.bench.cluster_plot import attainment_svg
from caraserve_cli.bench.cluster_recipe import ClusterRecipe, HoldsMore, LessTime
from caraserve_cli.bench.cluster_result import ClusterPoint, ClusterResult
from caraserve_cli.bench.cluster_terminal import render_cluster
from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.errors import InputError, OptionError, ProfileError
from caraserve_cli.perf.decode_lora import DecodeLora
from caraserve_cli.perf.least_squares import FitQuality
from caraserve_cli.perf.profile_json import to_json
from tests.cli.command import run_caraserve
from tests.perf.h200 import h200_profile
from tests.perf.test_mixed import TRUE as MIXED

SMALL = """
kind = "cluster"
description = "four replicas"
policies = ["random", "rank-aware"]
lora_kernels = ["bgmv"]
requests = 120
settle_requests = 20
rates_per_s = [10, 20]
further_factor = 2
give_up_below = 0.9
kv_token_ms = 0.001
[machine]
name = "by hand"
base = "llama2-7b"
dtype = "float16"
link = { latency_ms = 0.02, gbps = 24 }
prefill = { alpha_ms = 24, beta_ms = 0, gamma_ms = 0.2, knee_tokens = 128 }
decode = { batch_sizes = [1, 32], steps_ms = [22, 24] }
[lora_kernel.bgmv]
alpha_ms = 0.01
[slo]
factor = 1.5
rate_per_s = 20
[fleet]
replicas = 4
max_running = 16
max_requests = 32
kv_memory = "3GB"
adapter_memory = "2GB"
[workload]
adapters = 100
zipf_exponent = 1.0
lora_ranks = [8, 64]
modules = ["q_proj"]
prompt = { median_tokens = 40, sigma = 1, most_tokens = 1000 }
output = { median_tokens = 30, sigma = 0.5, most_tokens = 200 }
[[require]]
lora_kernel = "bgmv"
policy = "rank-aware"
over = "random"
rate_per_s = 20
less_by_at_least = 0.01
[[require]]
lora_kernel = "bgmv"
policy = "rank-aware"
holds = 0.5
others = ["random"]
others_at_most = 1.0
"""


def load(folder: Path, text: str) -> ClusterRecipe:
    path = folder / "mine.toml"
    path.write_text(text)
    recipe = load_any_recipe(path)
    assert isinstance(recipe, ClusterRecipe)
    return recipe


def test_a_cluster_is_simulated_to_its_knee(tmp_path: Path) -> None:
    told: list[ClusterPoint] = []
    result = run_cluster(load(tmp_path, SMALL), told.append)
    assert told[0] == result.without_lora
    assert tuple(told[1:]) == result.points
    assert result.facts.slo_ms == pytest.approx(1.5 * result.without_lora.time_per_token_ms)
    for policy in ("random", "rank-aware"):
        points = result.of_policy("bgmv", policy)
        assert [point.rate_per_s for point in points] == [10 * 2**power for power in range(len(points))]
        assert points[-1].attainment < 0.9 <= points[-2].attainment
        assert {point.num_counted for point in points} == {80}
    assert result.verdict is Verdict.MET
    assert orjson.loads(orjson.dumps(result.as_json()))["modelled"] is True
    console = Console(record=True, width=200)
    console.print(render_cluster(result))
    text = console.export_text()
    assert "All work was done and every requirement is met." in text
    assert "constants of the recipe" in text


def test_every_point_is_in_the_plot(tmp_path: Path) -> None:
    points = [_point("random", 10, 1.0), _point("random", 20, 0.5), _point("rank-aware", 10, 0.99)]
    plot = ElementTree.fromstring(attainment_svg(_result(tmp_path, *points)))
    name = "{http://www.w3.org/2000/svg}"
    lines = [each.get("points") for each in plot.iter(f"{name}polyline")]
    assert lines == ["0.0,0.0 420.0,150.0", "0.0,3.0"]
    assert len(list(plot.iter(f"{name}circle"))) == len(points)
    texts = [each.text for each in plot.iter(f"{name}text")]
    assert {"random", "rank-aware", "10", "20", "100%"} <= set(texts)


def test_a_seed_gives_the_same_result(tmp_path: Path) -> None:
    text = SMALL.replace("further_factor = 2\n", "")
    first, second = (run_cluster(load(tmp_path, text), lambda _: None) for _ in range(2))
    points = [[replace(point, cpu_s=0) for point in each.points] for each in (first, second)]
    assert points[0] == points[1]


def test_a_stated_kernel_takes_the_place_of_all_that_was_measured_with_it(tmp_path: Path) -> None:
    """Also of adapters in steps, by which the simulator would go first."""
    begin, end = SMALL.index("[machine]"), SMALL.index("[slo]")
    text = SMALL[:begin] + SMALL[end:]
    text = text.replace("kv_token_ms", 'profile = "machine.json"\nkv_token_ms').replace("bgmv", "mbgmv")
    text = text.replace("further_factor = 2\n", "") + "\n[lora_kernel.mbgmv]\nalpha_ms = 0.001\n"
    slow = DecodeLora((8, 16), (500.0, 1000.0), 0.0, FitQuality(1, 0, 0))
    points = []
    for profile in (h200_profile(), replace(h200_profile(), decode_lora=slow, mixed=MIXED)):
        (tmp_path / "machine.json").write_bytes(to_json(profile))
        done = run_cluster(load(tmp_path, text), lambda _: None)
        points.append([replace(point, cpu_s=0) for point in done.points])
    assert points[0] == points[1]


def test_a_profile_takes_the_place_of_constants(tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_bytes(to_json(h200_profile()))
    begin, end = SMALL.index("[machine]"), SMALL.index("[slo]")
    text = SMALL[:begin] + SMALL[end:]
    text = text.replace("kv_token_ms", 'profile = "machine.json"\nkv_token_ms').replace("bgmv", "mbgmv")
    recipe = load(tmp_path, text)
    assert recipe.machine.is_measured
    assert recipe.machine.profile == h200_profile()
    with pytest.raises(OptionError, match="without 'bgmv', which the machine has no model of"):
        load(tmp_path, text.replace('"mbgmv"]', '"bgmv"]'))
    (tmp_path / "machine.json").write_text("{}")
    with pytest.raises(ProfileError):
        load(tmp_path, text)
    (tmp_path / "machine.json").unlink()
    with pytest.raises(InputError, match=r"machine\.json' cannot be read"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ('"random", "rank-aware"]', '"random", "best"]', "'policies' must be a list without repetition"),
        ('"bgmv"]', '"sgmv"]', "'lora_kernels' must be a list without repetition, from bgmv, mbgmv"),
        ("requests = 120", "requests = 40", "'requests' must be more than twice 'settle_requests' (20)"),
        ("[10, 20]", "[20, 10]", "'rates_per_s' must be a list that ascends"),
        ("[10, 20]", "[0, 10]", "'rates_per_s' must be a list of numbers above zero"),
        ("further_factor = 2", "further_factor = 1", "'further_factor' must be above 1"),
        ("give_up_below = 0.9", "give_up_below = 90", "'give_up_below' must be a share, from 0 to 1"),
        ("kv_token_ms", 'profile = "x"\nkv_token_ms', "'machine' has no meaning beside 'profile'"),
        ('base = "llama2-7b"', 'base = "gpt"', "[machine]: 'base' must be one of llama2-7b"),
        ("gamma_ms = 0.2", "gamma_ms = -1", "'gamma_ms' must be a number of at least zero"),
        ("[22, 24]", "[22]", "'steps_ms' must be 2 numbers, as many as 'batch_sizes'"),
        ("[1, 32]", "[32, 1]", "'batch_sizes' must be ascending"),
        ("[lora_kernel.bgmv]", "[lora_kernel.mbgmv]", "without 'bgmv', which the machine has no model of"),
        ('kv_memory = "3GB"', 'kv_memory = "100MB"', "'kv_memory' must be room for the longest request"),
        ('adapter_memory = "2GB"', 'adapter_memory = "1MB"', "room for the largest adapter"),
        ('adapter_memory = "2GB"', 'adapter_memory = "0.5"', "'adapter_memory'"),
        ("max_requests = 32", 'max_requests = 32\ncold_start = "cached"', "'cold_start' must be one of auto"),
        ("max_requests = 32", "max_requests = 32\ncpu_workers = 4", "'cpu_workers' must be 0"),
        ("max_requests = 32", 'max_requests = 32\nhost_adapter_memory = "1GB"', "no meaning without 'disk'"),
        (
            "max_requests = 32",
            "max_requests = 32\ndisk = { gbps = 2 }",
            "'host_adapter_memory' is missing",
        ),
        ("max_running = 16", "max_running = 100000", "'max_running' must be what an engine takes"),
        ("sigma = 1,", "sigmas = 1,", "[prompt]: unknown key 'sigmas'; did you mean 'sigma'?"),
        ('over = "random"\nrate_per_s = 20', 'over = "random"\nrate_per_s = 30', "one of 'rates_per_s'"),
        ('over = "random"', 'over = "dlora"', "'over' must be one of the recipe's"),
        ("holds = 0.5", "hold = 0.5", "'holds' is missing"),
    ],
)
def test_what_cannot_be_honoured_is_named(tmp_path: Path, old: str, new: str, fragment: str) -> None:
    assert old in SMALL
    with pytest.raises(OptionError) as refused:
        load(tmp_path, SMALL.replace(old, new, 1))
    assert fragment in str(refused.value)
    assert "\n" not in str(refused.value)


def test_adapters_may_be_read_from_a_disk(tmp_path: Path) -> None:
    """So that first tokens take longer."""
    disk = 'max_requests = 32\ndisk = { latency_ms = 1, gbps = 0.5 }\nhost_adapter_memory = "1GB"'
    recipes = [load(tmp_path, text) for text in (SMALL, SMALL.replace("max_requests = 32", disk))]
    fleet = recipes[1].fleet
    assert fleet.disk is not None
    assert (fleet.disk.latency_ms, fleet.disk.bytes_per_ms, fleet.host_adapter_bytes) == (1, 5e5, 10**9)
    memory, read = (run_cluster(recipe, lambda _: None).points[0].ttft_ms for recipe in recipes)
    assert read > memory


def test_the_embedded_recipe_is_the_papers_cluster() -> None:
    """Issue 5: 60 servers, four ranks, 40,000 adapters, cold starts, 340 requests a second, all seven."""
    recipe = load_any_recipe(find_recipe("paper-cluster"))
    assert isinstance(recipe, ClusterRecipe)
    assert (recipe.fleet.num_replicas, recipe.workload.adapters.num_adapters) == (60, 40_000)
    assert recipe.workload.adapters.lora_ranks == (8, 16, 32, 64)
    assert 340 in recipe.rates_per_s
    assert (recipe.slo.factor, recipe.slo.rate_per_s) == (1.5, 340)
    assert len(recipe.policies) == 7
    less = {each.over: each.less_by_at_least for each in recipe.requirements if isinstance(each, LessTime)}
    assert less == {"random": 0.22, "first-fit": 0.57}
    (holds,) = (each for each in recipe.requirements if isinstance(each, HoldsMore))
    assert (holds.policy, holds.holds, holds.others_at_most) == ("rank-aware", 0.99, 0.9)
    assert set(holds.others) == set(recipe.policies) - {"paper", "rank-aware"}


def _point(policy: str, rate_per_s: float, attainment: float, time_per_token_ms: float = 30) -> ClusterPoint:
    return ClusterPoint(
        lora_kernel="bgmv",
        policy=policy,
        rate_per_s=rate_per_s,
        num_counted=100,
        time_per_token_ms=time_per_token_ms,
        p99_time_per_token_ms=time_per_token_ms,
        attainment=attainment,
        ttft_ms=50,
        p99_ttft_ms=50,
        tpot_ms=None,
        cold_starts={},
        num_preemptions=0,
        num_steps=1,
        simulated_s=1,
        cpu_s=1,
    )


def _result(folder: Path, *points: ClusterPoint) -> ClusterResult:
    recipe = load(folder, SMALL.replace("holds = 0.5", "holds = 0.99").replace("most = 1.0", "most = 0.9"))
    facts = run_cluster(load(folder, SMALL.replace("further_factor = 2\n", "")), lambda _: None).facts
    return ClusterResult(
        facts=facts,
        policies=recipe.policies,
        without_lora=points[0],
        points=points,
        requirements=recipe.requirements,
    )


def test_the_load_that_is_held_lies_between_two(tmp_path: Path) -> None:
    points = [_point("random", 10, 1.0), _point("random", 20, 0.98), _point("rank-aware", 10, 0.98)]
    result = _result(tmp_path, *points, _point("rank-aware", 20, 0.999))
    assert result.held_rate_per_s("bgmv", "random") == pytest.approx(15)
    assert result.held_rate_per_s("bgmv", "rank-aware") is None


def test_requirements_are_judged(tmp_path: Path) -> None:
    """The other one was given up at 10, with 80%, and so has no more at 20."""
    ours = [_point("rank-aware", 10, 1.0), _point("rank-aware", 20, 0.99, 24)]
    given_up = _result(tmp_path, *ours, _point("random", 10, 0.8))
    less, holds = given_up.judged
    assert (less.found, less.verdict) == (None, Verdict.CANNOT_TELL)
    assert (holds.found, holds.verdict) == (0.8, Verdict.MET)
    near = _result(tmp_path, *ours, _point("random", 10, 1.0), _point("random", 20, 0.95, 30))
    less, holds = near.judged
    assert (less.found, less.verdict) == (pytest.approx(0.2), Verdict.MET)
    assert (holds.found, holds.rate_per_s, holds.verdict) == (0.95, 20, Verdict.MISSED)
    assert near.verdict is Verdict.MISSED


def test_the_command_writes_the_result_and_the_plot(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SMALL.replace("further_factor = 2\n", ""))
    ended = run_caraserve("bench", path, "--json", tmp_path / "found.json")
    assert ended.returncode == 0, ended.stderr
    assert orjson.loads((tmp_path / "found.json").read_bytes())["kind"] == "cluster"
    assert (tmp_path / "found.svg").read_text().startswith("<svg")
