"""Profiles on disk: what is written is read again, and what is no profile is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from caraserve_cli.errors import OutputError, ProfileError
from caraserve_cli.perf.cpu_lora import CpuLoraOp
from caraserve_cli.perf.profile_json import PROFILE_VERSION, from_json, to_json
from caraserve_cli.perf.profile_store import ProfileStore, default_folder, machine_id
from tests.perf.h200 import h200_profile

MACHINE = machine_id("NVIDIA H200", 16)


@pytest.fixture
def store(tmp_path: Path) -> ProfileStore:
    return ProfileStore(tmp_path / "caraserve" / "profiles")


def test_json_and_back() -> None:
    profile = h200_profile()
    assert from_json(to_json(profile), "x") == profile
    on_cpu = replace(profile, link=None, exchange=None, cpu_lora=None, unpadded_kernel=None)
    assert from_json(to_json(on_cpu), "x") == on_cpu


def test_a_profile_of_before_the_newer_fields_is_read_without_them() -> None:
    newer = ("padded_kernel", "unpadded_kernel", "kv_cost")
    table = orjson.loads(to_json(h200_profile()))
    for name in newer:
        del table[name]
    read = from_json(orjson.dumps(table), "x")
    assert read == replace(h200_profile(), padded_kernel=None, unpadded_kernel=None, kv_cost=None)


def test_an_emulated_link_is_told() -> None:
    slow = h200_profile().emulated(3)
    assert slow.link is not None
    assert slow.exchange is not None
    assert (slow.link.gbps, slow.exchange.gbps) == pytest.approx((3, 3))
    assert orjson.loads(to_json(slow))["measured_on"]["emulated_link_gbps"] == 3


def test_a_slower_link_carries_the_rows_of_cpu_workers_too() -> None:
    """x there, then the result back, each at the difference of both links; the workers are the same."""
    profile = h200_profile()
    slow, slower = profile.emulated(6), profile.emulated(6).emulated(3)
    assert profile.exchange is not None
    assert profile.cpu_lora is not None
    assert slow.cpu_lora is not None
    assert slower.cpu_lora is not None
    op = CpuLoraOp(16, 4096, (4096,), 64, 1, group_out_width=3 * 4096)
    x_bytes, result_bytes = 16 * 4096 * 2, 16 * 3 * 4096 * 2
    own_ms = profile.cpu_lora.predict_ms(op)
    for gbps, model in ((6, slow.cpu_lora), (3, slower.cpu_lora)):
        more_ms = sum(
            size / (gbps * 1e6) - size / profile.exchange.bytes_per_ms for size in (x_bytes, result_bytes)
        )
        assert model.predict_ms(op) == pytest.approx(own_ms + more_ms)
    assert profile.emulated(1000).cpu_lora == profile.cpu_lora
    at_once = profile.emulated(3).cpu_lora
    assert at_once is not None
    assert at_once.predict_ms(op) == pytest.approx(slower.cpu_lora.predict_ms(op))


def test_what_is_stored_is_found(store: ProfileStore, tmp_path: Path) -> None:
    path = store.save(MACHINE, h200_profile())
    assert path == tmp_path / "caraserve/profiles/nvidia-h200-16-cores/llama2-7b-bfloat16.json"
    assert store.load(MACHINE, "llama2-7b", "bfloat16") == h200_profile()
    assert store.load(MACHINE, "llama2-7b", "float32") is None
    assert store.load(machine_id("NVIDIA H200", 8), "llama2-7b", "bfloat16") is None


def test_the_last_one_stays_and_nothing_else(store: ProfileStore) -> None:
    store.save(MACHINE, h200_profile())
    path = store.save(MACHINE, replace(h200_profile(), tokens_per_worker=7))
    stored = store.load(MACHINE, "llama2-7b", "bfloat16")
    assert stored is not None
    assert stored.tokens_per_worker == 7
    assert list(path.parent.iterdir()) == [path]


def test_bases_with_like_names_do_not_share_a_file(store: ProfileStore) -> None:
    paths = {store.path(MACHINE, base, "float32") for base in ("a/b", "a-b", "/a/b", "a b")}
    assert len(paths) == 4
    assert len({path.parent for path in paths}) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is unreadable: "),
        (b"[]", "it is no JSON object"),
        (b"{}", "has version None, and this program reads"),
        (b'{"version": 999}', "has version 999"),
        (b'{"version": 1, "cpu_lora": {}}', "has version 1, and this program reads 2"),
        (f'{{"version": {PROFILE_VERSION}}}'.encode(), "lacks or does not know: base, "),
    ],
)
def test_what_is_no_profile_is_refused(store: ProfileStore, content: bytes, reason: str) -> None:
    path = store.save(MACHINE, h200_profile())
    path.write_bytes(content)
    with pytest.raises(ProfileError) as refused:
        store.load(MACHINE, "llama2-7b", "bfloat16")
    assert reason in str(refused.value)
    assert str(path) in str(refused.value)
    assert str(refused.value).endswith("run `caraserve profile` again")


@pytest.mark.parametrize(
    ("key", "value"), [("latency_ms", "fast"), ("latency_ms", None), ("quality", 1), ("bytes_per_ms", True)]
)
def test_a_wrong_value_is_named(key: str, value: object) -> None:
    content = orjson.loads(to_json(h200_profile()))
    content["link"][key] = value
    with pytest.raises(ProfileError, match=f"'{key}' is no"):
        from_json(orjson.dumps(content), "x")


def test_a_profile_under_a_wrong_name_is_refused(store: ProfileStore) -> None:
    path = store.save(MACHINE, h200_profile())
    path.rename(store.path(MACHINE, "llama2-13b", "bfloat16"))
    with pytest.raises(ProfileError, match="is of 'llama2-7b' in bfloat16"):
        store.load(MACHINE, "llama2-13b", "bfloat16")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written: .*XDG_CACHE_HOME"):
        ProfileStore(tmp_path / "file").save(MACHINE, h200_profile())


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "caraserve/profiles"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_folder() == Path("/home/someone/.cache/caraserve/profiles")
