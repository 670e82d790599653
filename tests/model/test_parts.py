"""A decoder in parts: each loads its own slices, and together they compute what the whole one does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caraserve_cli.errors import BaseModelError
from caraserve_cli.model.checkpoint import load_decoder, random_decoder
from caraserve_cli.model.config import load_decoder_config
from caraserve_cli.model.decoder import Decoder
from caraserve_cli.shard import Shard
from tests.model.tiny import CPU, FAMILIES, logits_of, some_token_ids, write_checkpoint


class _Threads:
    """What the threads of this process have put down for each other."""

    def __init__(self, num_threads: int) -> None:
        self.values: list[Tensor] = [torch.empty(0)] * num_threads
        self.barrier = threading.Barrier(num_threads, timeout=60)


class _ThreadCollective:
    """A `Collective` of threads, without torch.distributed: one process can be in one group only."""

    def __init__(self, threads: _Threads, tp_index: int) -> None:
        self._threads, self._tp_index = threads, tp_index

    def all_reduce_(self, summand: Tensor) -> None:
        summand.copy_(self._together(summand, lambda values: torch.stack(values).sum(dim=0)))

    def gather_columns(self, columns: Tensor) -> Tensor:
        return self._together(columns, lambda values: torch.cat(values, dim=1))

    def broadcast_(self, values: Tensor) -> None:
        values.copy_(self._together(values, lambda all_values: all_values[0]))

    def _together(self, own: Tensor, combine: Callable[[list[Tensor]], Tensor]) -> Tensor:
        self._threads.values[self._tp_index] = own.clone()
        self._threads.barrier.wait()
        combined = combine(self._threads.values)
        self._threads.barrier.wait()
        return combined


Load = Callable[[Path, Shard, _ThreadCollective], Decoder]


def load_part(folder: Path, shard: Shard, collective: _ThreadCollective) -> Decoder:
    return load_decoder(folder, load_decoder_config(folder).sharded(shard), torch.float32, CPU, collective)


def random_part(folder: Path, shard: Shard, collective: _ThreadCollective) -> Decoder:
    return random_decoder(load_decoder_config(folder).sharded(shard), torch.float32, CPU, 3, collective)


def make_parts(folder: Path, load: Load, tp_size: int = 2) -> list[Decoder]:
    threads = _Threads(tp_size)
    return [load(folder, Shard(i, tp_size), _ThreadCollective(threads, i)) for i in range(tp_size)]


def logits_together(parts: list[Decoder], token_ids: Tensor) -> list[Tensor]:
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(lambda part: logits_of(part, token_ids), parts))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_parts_compute_what_the_whole_does(tmp_path: Path, family: str, max_shard_size: str) -> None:
    # An odd vocabulary: the last row of the second part is padding.
    write_checkpoint(tmp_path, family, max_shard_size=max_shard_size, vocab_size=127)
    whole = load_decoder(tmp_path, load_decoder_config(tmp_path), torch.float32, CPU)
    parts = make_parts(tmp_path, load_part)
    token_ids = some_token_ids(12) % 127
    token_ids[:3] = torch.tensor([0, 126, 64])
    expected = logits_of(whole, token_ids)
    for logits in logits_together(parts, token_ids):
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-5)
    assert max(part.weights.num_bytes for part in parts) < 0.56 * whole.weights.num_bytes


@pytest.mark.parametrize("family", ["llama-biased", "llama-gqa-tied"])
def test_random_parts_are_those_of_the_whole(tmp_path: Path, family: str) -> None:
    write_checkpoint(tmp_path, family)
    whole = random_decoder(load_decoder_config(tmp_path), torch.float32, CPU, 3)
    expected = logits_of(whole, some_token_ids(9))
    for logits in logits_together(make_parts(tmp_path, random_part), some_token_ids(9)):
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_a_tensor_of_another_shape_is_refused_by_every_part(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "narrow", intermediate_size=48)
    write_checkpoint(tmp_path / "wide", intermediate_size=64)
    (tmp_path / "narrow" / "config.json").write_bytes((tmp_path / "wide" / "config.json").read_bytes())
    with pytest.raises(
        BaseModelError, match=r"has shape \[48, 32\], config.json asks for \[64, 32\]|\[32, 48\]"
    ):
        make_parts(tmp_path / "narrow", load_part)
