"""A whole serving benchmark and a whole break-even grid, tiny: the real engine on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caraserve_cli.bench.cold_starts import check_replica, emulate_link, rotated, use_cold_start
from caraserve_cli.bench.floor import DeviceSpeed
from caraserve_cli.errors import OptionError
from tests.bench.serving_recipes import GRID, POPULAR, SERVING, write
from tests.cli.command import assert_refused
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]


@pytest.fixture(autouse=True)
def quick_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of known speed, whose measuring (test_floor.py) takes longer than these benchmarks."""
    speed = DeviceSpeed(bytes_per_s=1e9, flops_per_s=1e9)
    monkeypatch.setattr("caraserve_cli.bench.engine_runs.measure_speed", lambda *_: speed)


def test_strategies_take_turns_and_all_work_is_done(caraserve: Caraserve, tmp_path: Path) -> None:
    result_file = tmp_path / "result.json"
    ended = caraserve("bench", write(tmp_path, SERVING + POPULAR), "--json", result_file)
    assert ended.returncode == 0, ended.stderr
    assert [line.split(":")[0] for line in ended.stderr.splitlines()] == [
        "warm-up  distinct, cached",
        "warm-up  distinct, stream",
        "warm-up  distinct, cached, all at once",
        "repeat 1/2  distinct, cached",
        "repeat 1/2  distinct, stream",
        "repeat 2/2  distinct, stream",
        "repeat 2/2  distinct, cached",
        "warm-up  popular, stream",
        "repeat 1/2  popular, stream",
        "repeat 2/2  popular, stream",
    ]
    result = json.loads(result_file.read_text())
    assert (result["kind"], result["verdict"], result["weights"]) == ("serving", "met", "random")
    distinct, popular = result["cases"]
    assert distinct["undone"] == popular["undone"] == []
    assert distinct["load"] == pytest.approx(50 / distinct["saturation_per_s"])
    assert popular["saturation_per_s"] is popular["load"] is None
    cached, stream = distinct["results"]
    assert cached["cold_starts"] == [{"resident": 6}] * 2
    assert all("resident" not in each and sum(each.values()) == 6 for each in stream["cold_starts"])
    for each in (cached, stream):
        values = {name: spread["values"] for name, spread in each["measured_ms"].items()}
        assert len(values["mean_ttft"]) == 2
        for ttft_ms, p99_ms, latency_ms in zip(
            values["mean_ttft"], values["p99_ttft"], values["mean_latency"], strict=True
        ):
            assert 0 < ttft_ms < latency_ms
            assert ttft_ms <= p99_ms
        assert each["slo_attainment"]["values"] == [1.0, 1.0]
    assert [each["measure"] for each in distinct["requirements"]] == ["mean_latency", "mean_ttft", "p99_ttft"]
    assert popular["results"][0]["measured_ms"]["mean_tpot"] is None, "of answers of one token"
    assert [sum(each.values()) for each in popular["results"][0]["cold_starts"]] == [6, 6]


def test_a_missed_requirement(caraserve: Caraserve, tmp_path: Path) -> None:
    text = SERVING.replace("mean_latency_at_most_ms = 1e6", "mean_latency_at_most_ms = 1e-6")
    ended = caraserve("bench", write(tmp_path, text))
    assert ended.returncode == 4
    assert "Missed: in 'distinct' stream, mean latency is" in ended.stdout


def test_adapters_that_cannot_all_be_cached_are_refused(caraserve: Caraserve, tmp_path: Path) -> None:
    text = SERVING.replace('kv_memory = "4MB"', 'kv_memory = "4MB"\nadapter_memory = "200KB"')
    ended = caraserve("bench", write(tmp_path, text))
    assert ended.returncode == 2
    assert "recipe 'mine', case 'distinct': 'adapters': with 'cached' all of them are on" in ended.stderr


def test_every_cell_of_a_grid_is_measured(caraserve: Caraserve, tmp_path: Path) -> None:
    result_file = tmp_path / "result.json"
    ended = caraserve("bench", write(tmp_path, GRID), "--json", result_file)
    assert ended.returncode == 0, ended.stderr
    assert [line.split(":")[0] for line in ended.stderr.splitlines()] == [
        f"measured  own link, {tokens} tokens, rank {lora_rank}" for lora_rank in (2, 5) for tokens in (3, 7)
    ]
    result = json.loads(result_file.read_text())
    assert (result["kind"], result["verdict"]) == ("arrivals", "met")
    (case,) = result["cases"]
    assert not case["is_link_emulated"]
    for cell in case["cells"]:
        assert cell["winner"] == "stream"
        strategies = cell["strategies"]
        assert strategies["cached"]["cold_starts"] == {"resident": 3}
        assert "resident" not in strategies["stream"]["cold_starts"]
        for each in strategies.values():
            assert each["ttft_ms"]["mean"] > 0
            assert each["others_tpot_ms"]["mean"] > 0


def test_others_that_end_before_an_arrival_are_refused(caraserve: Caraserve, tmp_path: Path) -> None:
    text = GRID.replace("decode_tokens = 40", "decode_tokens = 4")
    ended = caraserve("bench", write(tmp_path, text))
    assert ended.returncode == 2
    assert (
        "case 'own link': 'decode_tokens': 4 are done before an arrival is answered; give more"
        in ended.stderr
    )


def test_a_pool_for_too_few_adapters_is_refused(caraserve: Caraserve, tmp_path: Path) -> None:
    text = GRID.replace('kv_memory = "4MB"', 'kv_memory = "4MB"\nadapter_memory = "200KB"')
    ended = caraserve("bench", write(tmp_path, text))
    assert_refused(ended, 2, "'cold_adapters': those of rank 5 and the decoding requests' do not fit")


class Told:
    """A replica that can be told, and remembers what."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def use_cold_start(self, name: str) -> None:
        self.told.append(name)

    def emulate_link(self, gbps: float | None) -> None:
        self.told.append(gbps)


def test_a_replica_is_told_what_it_can_be_told() -> None:
    replica = Told()
    check_replica("here", Told, ["auto"], [3.0])
    use_cold_start(replica, "auto")
    emulate_link(replica, 3.0)
    assert replica.told == ["auto", 3.0]


def test_a_replica_that_cannot_be_told_only_streams() -> None:
    check_replica("here", object, ["cached", "stream"], [None])
    with pytest.raises(
        OptionError, match="here: 'strategies': the replica does not have 'auto'; leave it out"
    ):
        check_replica("here", object, ["stream", "auto"], [None])
    with pytest.raises(OptionError, match="here: 'emulate_link_gbps': the replica does not emulate a link"):
        check_replica("here", object, ["stream"], [None, 3.0])


def test_each_strategy_comes_first_in_its_turn() -> None:
    assert [rotated(("a", "b", "c"), turn)[0] for turn in range(4)] == ["a", "b", "c", "a"]
    assert sorted(rotated(("a", "b", "c"), 1)) == ["a", "b", "c"]
