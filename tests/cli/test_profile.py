"""`caraserve profile` as a user meets it, on the CPU with the embedded base."""

from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.errors import ProfileError
from caraserve_cli.fleet import profiling
from caraserve_cli.fleet.cold_start import TOKENS_PER_WORKER, profile_base, this_machine
from caraserve_cli.job.sample import find_sample
from caraserve_cli.perf import least_squares
from caraserve_cli.perf.profile_json import from_json
from caraserve_cli.perf.profile_store import ProfileStore, default_folder
from tests.cli.command import assert_refused
from tests.cli.conftest import Caraserve


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Steps of a millisecond on a machine that tests share follow no model reliably; the plumbing is tested.
    monkeypatch.setattr(least_squares, "LEAST_R2", -1000.0)


def test_a_profile_is_measured_printed_and_stored(caraserve: Caraserve, tmp_path: Path) -> None:
    base, written = find_sample().base, tmp_path / "profile.json"
    ended = caraserve(
        "profile", "--base", base, "--device", "cpu", "--dtype", "float32", "--max-running", "4",
        "--kv-memory", "64MiB", "--json", written,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "prefill step" in ended.stdout
    assert "LoRA on the CPU" in ended.stdout
    assert "No link" in ended.stdout
    told = [line for line in ended.stderr.splitlines() if not line.startswith("left out: ")]
    parts = "LoRA on the CPU", "LoRA in decoding steps", "prefill steps", "decoding steps"
    last = "contexts of decoding steps", "prompts beside decoding requests"
    assert told == [f"measuring: {part}" for part in (*parts, *last)]

    profile = from_json(written.read_bytes(), "written")
    machine = this_machine(profile.measured_on.device)
    stored = ProfileStore(default_folder()).load(machine, profile_base(str(base)), "float32")
    assert stored == profile
    assert str(tmp_path / "cache") in ended.stdout.splitlines()[-1]
    assert profile.link is None
    assert profile.decode.batch_sizes == (1, 2, 4)
    assert profile.cpu_lora is not None
    assert profile.prefill.step_ms(64) > 0


def test_a_base_on_the_cpu_needs_no_model_of_cpu_workers(
    caraserve: Caraserve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is copied to it that they could hide; on a GPU they would be refused."""

    def too_late(*_: object) -> object:
        raise ProfileError("LoRA on the CPU: 56 of 56 sizes of ops came too late every time")

    monkeypatch.setattr(profiling, "measure_round_trips", too_late)
    written = tmp_path / "profile.json"
    ended = caraserve(
        "profile", "--base", find_sample().base, "--device", "cpu", "--max-running", "1",
        "--kv-memory", "64MiB", "--json", written,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "LoRA on the CPU" not in ended.stdout
    told = next(line for line in ended.stderr.splitlines() if line.startswith("left out: LoRA on the CPU"))
    assert "a base on the CPU needs none" in told
    assert "again" not in told, "it would come out the same"
    profile = from_json(written.read_bytes(), "written")
    assert profile.cpu_lora is None
    assert profile.tokens_per_worker == TOKENS_PER_WORKER


def test_a_base_must_be_named(caraserve: Caraserve) -> None:
    assert_refused(caraserve("profile"), 2, "--base")


def test_a_base_that_is_not_there(caraserve: Caraserve) -> None:
    assert_refused(caraserve("profile", "--base", "./no-such-base"), 1, "./no-such-base", "does not exist")


def test_json_is_refused_before_anything_is_measured(caraserve: Caraserve, tmp_path: Path) -> None:
    ended = caraserve("profile", "--base", find_sample().base, "--json", tmp_path)
    assert_refused(ended, 1, "--json", "it is a folder")
