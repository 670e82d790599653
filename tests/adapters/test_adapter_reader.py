"""What is wished for is read before it is asked for, in order; no failure is lost, and nothing hangs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch

from caraserve_cli.adapters.adapter_reader import AdapterReader
from caraserve_cli.adapters.description import OutlineAdapter
from caraserve_cli.adapters.host_arena import ALIGNMENT_BYTES as PAGE
from caraserve_cli.adapters.host_store import HostStore, LoadAdapter
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.loader import load_adapter, outline_adapter
from caraserve_cli.adapters.module_key import ModuleKey
from caraserve_cli.adapters.packing import Packer, UnpaddedForm
from caraserve_cli.adapters.weights import AdapterOutline, AdapterWeights, LoraPair
from caraserve_cli.core import BaseShape
from caraserve_cli.errors import AdapterError
from tests.adapters.bad_adapters import edit_tensors
from tests.adapters.bases import shape_of, tiny_llama
from tests.adapters.contents import content_of
from tests.adapters.peft_variants import Variant, write_variant

Pairs = Mapping[ModuleKey, LoraPair]

SHAPE = shape_of(tiny_llama())
NAMES = tuple("abcdefgh")
# Far more than anything here takes: nothing waits for it unless it is broken.
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight adapters of a page each, one of four pages, and one of NaNs."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate((*NAMES, "nan")):
        config = {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
        write_variant(root, Variant(name, config), tiny_llama, seed)
    write_variant(root, Variant("large", {"r": 32, "target_modules": ["q_proj"]}), tiny_llama, seed=9)
    edit_tensors(root / "nan", lambda tensors: next(iter(tensors.values())).fill_(float("nan")))
    return root


class SlowDisk:
    """Reads adapters only when it is let, and knows in which order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.threads: set[int] = set()
        self._allowed = threading.Semaphore(0)

    def load(
        self, name: str, folder: Path, shape: BaseShape, dtype: torch.dtype, pairs: Pairs | None
    ) -> AdapterWeights:
        self.begun.append(name)
        self.threads.add(threading.get_ident())
        assert self._allowed.acquire(timeout=PATIENCE_S)
        return load_adapter(name, folder, shape, dtype, pairs)

    def let(self, num_reads: int) -> None:
        self._allowed.release(num_reads)


@pytest.fixture
def disk() -> SlowDisk:
    return SlowDisk()


MakeStore = Callable[..., HostStore]


@pytest.fixture(params=[True, False], ids=["packed", "plain"])
def make_store(request: pytest.FixtureRequest, folders: Path) -> Iterator[MakeStore]:
    """Stores with room for so many small adapters, closed at the end."""
    stores: list[HostStore] = []

    def make(
        num_small: int, load: LoadAdapter = load_adapter, outline: OutlineAdapter = outline_adapter
    ) -> HostStore:
        packer = Packer(SHAPE, UnpaddedForm(), pinned=False) if request.param else None
        # Packed, each takes a page; the weights alone take a kilobyte.
        capacity_bytes = num_small * (PAGE if request.param else PAGE // 4)
        library = AdapterLibrary.scan([folders])
        stores.append(HostStore(library, SHAPE, torch.float32, capacity_bytes, packer, load, outline))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def until(condition: Callable[[], object]) -> None:
    """Waits for what another thread does."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.001)


def use(store: HostStore, name: str) -> AdapterWeights:
    weights = store.acquire(name)
    store.release(name)
    return weights


def test_wishes_are_read_in_their_order_by_another_thread(make_store: MakeStore, disk: SlowDisk) -> None:
    store = make_store(4, disk.load)
    assert not any(store.is_ready(name) for name in NAMES)
    disk.let(3)
    store.prefetch(["c", "a", "b", "a"])
    until(lambda: all(map(store.is_ready, "abc")))
    assert disk.begun == ["c", "a", "b"]
    assert all(store.kept_ms(name) > 0.0 for name in "abc")
    assert store.kept_ms("d") == 0.0
    assert threading.get_ident() not in disk.threads
    assert (store.counters.prefetched, store.counters.misses) == (3, 0)
    use(store, "a")
    assert store.counters.hits == 1
    store.check_integrity()


def test_what_was_prefetched_is_what_is_in_the_files(make_store: MakeStore, folders: Path) -> None:
    store = make_store(8)
    store.prefetch(NAMES)
    until(lambda: all(map(store.is_ready, NAMES)))
    for name in NAMES:
        expected = load_adapter(name, folders / name, SHAPE, torch.float32)
        assert content_of(use(store, name)) == content_of(expected)
    assert store.counters.misses == 0


def test_new_wishes_replace_those_that_have_not_begun(make_store: MakeStore, disk: SlowDisk) -> None:
    store = make_store(4, disk.load)
    store.prefetch(["a", "b", "c"])
    until(lambda: disk.begun)
    store.prefetch(["d"])
    disk.let(2)
    until(lambda: store.is_ready("d"))
    assert disk.begun == ["a", "d"]
    assert store.is_ready("a")
    store.check_integrity()


def test_an_adapter_that_is_being_read_is_waited_for_and_read_once(
    make_store: MakeStore, disk: SlowDisk
) -> None:
    store = make_store(4, disk.load)
    store.prefetch(["a"])
    until(lambda: disk.begun)
    acquired: list[AdapterWeights] = []
    asking = [threading.Thread(target=lambda: acquired.append(store.acquire("a"))) for _ in range(3)]
    for thread in asking:
        thread.start()
    assert not store.is_ready("a")
    disk.let(1)
    for thread in asking:
        thread.join(PATIENCE_S)
    assert len(acquired) == 3
    assert len(set(map(id, acquired))) == 1
    assert disk.begun == ["a"]
    for _ in range(3):
        store.release("a")
    store.check_integrity()


def test_an_adapter_that_is_asked_for_is_read_beside_a_wish(make_store: MakeStore, disk: SlowDisk) -> None:
    store = make_store(4, disk.load)
    store.prefetch(["a", "b"])
    until(lambda: disk.begun)
    disk.let(1)
    asking = threading.Thread(target=store.acquire, args=("b",))
    asking.start()
    until(lambda: len(disk.begun) == 2)
    disk.let(1)
    asking.join(PATIENCE_S)
    until(lambda: store.is_ready("a"))
    assert sorted(disk.begun) == ["a", "b"]


def test_wishes_take_the_room_of_what_nobody_wishes_for(make_store: MakeStore) -> None:
    store = make_store(4)
    store.acquire("a")
    for name in "bcd":
        use(store, name)
    store.prefetch(["b", "e", "f"])
    until(lambda: store.is_ready("e") and store.is_ready("f"))
    assert set(store.kept_names) == {"a", "b", "e", "f"}
    store.check_integrity()


def test_later_wishes_wait_for_earlier_ones_to_be_used(make_store: MakeStore, disk: SlowDisk) -> None:
    store = make_store(2, disk.load)
    disk.let(100)
    store.prefetch("abcd")
    until(lambda: store.is_ready("b"))
    store.wait_until_ready(0.05)
    store.wait_until_ready(0.05)
    assert disk.begun == ["a", "b"], "the others have no room before these are used"
    assert not store.is_ready("c")
    use(store, "a")
    store.prefetch("bcd")
    until(lambda: store.is_ready("c"))
    assert store.kept_names == ("b", "c")
    store.check_integrity()


def test_who_waits_for_a_read_that_finds_no_room_goes_on(make_store: MakeStore) -> None:
    has_begun, may_go_on = threading.Event(), threading.Event()

    def outline(name: str, folder: Path, shape: BaseShape) -> AdapterOutline:
        if name == "c":
            has_begun.set()
            assert may_go_on.wait(PATIENCE_S)
        return outline_adapter(name, folder, shape)

    store = make_store(2, outline=outline)
    store.prefetch("abc")
    assert has_begun.wait(PATIENCE_S)
    user = threading.Thread(target=use, args=(store, "c"), daemon=True)
    user.start()
    # Until it waits; should it not by then, this shows nothing, and is right all the same.
    time.sleep(0.05)
    may_go_on.set()
    user.join(PATIENCE_S)
    assert not user.is_alive()
    store.check_integrity()


def test_earlier_wishes_take_the_room_of_later_ones(make_store: MakeStore) -> None:
    store = make_store(2)
    store.prefetch("cd")
    until(lambda: store.is_ready("c") and store.is_ready("d"))
    store.prefetch("acd")
    until(lambda: store.is_ready("a"))
    assert set(store.kept_names) == {"a", "c"}
    assert not store.is_ready("d")
    assert use(store, "d").name == "d", "who needs it at once need not wait"
    store.check_integrity()


def test_nobody_waits_for_room_that_pins_take(make_store: MakeStore) -> None:
    """On a CPU an adapter is pinned for as long as it is in its slot."""
    store = make_store(2)
    store.acquire("a")
    store.acquire("b")
    store.prefetch("abcd")
    until(lambda: store.is_ready("c") and store.is_ready("d"))
    assert store.kept_names == ("a", "b")
    assert store.acquire("c").name == "c"
    assert store.kept_names == ("a", "b")
    store.prefetch("cd")
    store.release("a")
    until(lambda: store.kept_names == ("b", "d"))
    store.check_integrity()


def test_nobody_waits_for_what_is_too_large(make_store: MakeStore) -> None:
    store = make_store(2)
    store.prefetch(["a", "large", "b"])
    until(lambda: store.is_ready("large") and store.is_ready("b"))
    assert set(store.kept_names) == {"a", "b"}
    assert use(store, "large").lora_rank == 32
    store.check_integrity()


def test_a_failed_read_comes_out_where_the_adapter_is_needed(make_store: MakeStore) -> None:
    store = make_store(2)
    store.prefetch(["nan", "unknown", "a"])
    until(lambda: store.is_ready("a"))
    assert store.is_ready("nan")
    assert store.is_ready("unknown")
    for name, message in (("nan", "NaN"), ("unknown", "no such adapter")):
        with pytest.raises(AdapterError, match=message):
            store.acquire(name)
    assert store.counters.misses <= 1, "what is known to fail is not read again"
    store.check_integrity()


def test_an_unexpected_failure_is_raised_where_the_adapter_is_needed(make_store: MakeStore) -> None:
    def load(
        name: str, folder: Path, shape: BaseShape, dtype: torch.dtype, pairs: Pairs | None
    ) -> AdapterWeights:
        if name == "a" and broken.is_set():
            raise MemoryError("none left")
        return load_adapter(name, folder, shape, dtype, pairs)

    broken = threading.Event()
    broken.set()
    store = make_store(4, load)
    store.prefetch("ab")
    until(lambda: store.is_ready("b"))
    assert store.is_ready("a")
    with pytest.raises(MemoryError, match="none left"):
        store.acquire("a")
    broken.clear()
    assert use(store, "a").name == "a"
    store.check_integrity()


def test_waiting_ends_when_something_has_become_ready(make_store: MakeStore, disk: SlowDisk) -> None:
    store = make_store(4, disk.load)
    store.prefetch(["a", "nan", "b"])
    for name in ("a", "nan", "b"):
        until(partial(lambda name: disk.begun[-1:] == [name], name))
        disk.let(1)
        store.wait_until_ready(PATIENCE_S)
        assert store.is_ready(name)
    start_s = time.monotonic()
    store.wait_until_ready(0.02)
    assert time.monotonic() - start_s >= 0.02, "nothing more has"


def test_closing_waits_for_the_read_under_way_and_begins_no_other(
    make_store: MakeStore, disk: SlowDisk
) -> None:
    before = set(threading.enumerate())  # with readers of stores that earlier tests have left open
    store = make_store(4, disk.load)
    store.prefetch("abc")
    until(lambda: disk.begun)
    (reader,) = set(threading.enumerate()) - before
    closing = threading.Thread(target=store.close)
    closing.start()
    until(lambda: store._reader._is_closed)
    disk.let(10)
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert disk.begun == ["a"]
    assert not reader.is_alive()
    store.prefetch("bc")
    store.close()
    assert disk.begun == ["a"]


_LEAVES_AMIDST_A_READ = """
import sys, threading, torch
from pathlib import Path
from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.loader import load_adapter
from tests.adapters.bases import shape_of, tiny_llama

def load(*arguments):
    begun.set()
    for _ in range(20):
        torch.ones(2**20).cumsum(0)
    return load_adapter(*arguments)

begun = threading.Event()
library = AdapterLibrary.scan([Path(sys.argv[1])])
store = HostStore(library, shape_of(tiny_llama()), torch.float32, 10**6, load=load)
store.prefetch(["a", "b"])
begun.wait()
"""


def test_a_process_may_end_without_closing_its_store(folders: Path) -> None:
    command = [sys.executable, "-c", _LEAVES_AMIDST_A_READ, str(folders)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["kernels", *sys.path])}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_store_that_never_prefetches_has_no_thread(make_store: MakeStore) -> None:
    before = threading.active_count()
    store = make_store(4)
    use(store, "a")
    assert threading.active_count() == before


@pytest.mark.parametrize("seed", range(3))
def test_threads_that_do_as_they_like_see_right_weights_and_lose_no_room(
    make_store: MakeStore, folders: Path, seed: int
) -> None:
    expected = {name: content_of(load_adapter(name, folders / name, SHAPE, torch.float32)) for name in NAMES}
    store = make_store(3)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        try:
            for _ in range(60):
                if chance.random() < 0.4:
                    store.prefetch(chance.sample([*NAMES, "large", "nan"], chance.randint(0, 6)))
                name = chance.choice(NAMES)
                weights = store.acquire(name)
                time.sleep(chance.choice([0, 0, 0.001]))
                assert content_of(weights) == expected[name], "an extent was given to another meanwhile"
                store.release(name)
                store.is_ready(chance.choice(NAMES))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert failures == []
    store.prefetch([])
    store.check_integrity()


def test_a_reader_reads_what_is_chosen_until_it_is_closed() -> None:
    changed = threading.Condition()
    to_read: list[str] = ["a", "b"]
    read: list[str] = []
    reader = AdapterReader(changed, lambda: to_read.pop(0) if to_read else None, read.append)
    reader.close()
    with changed:
        reader.wake()
    assert read == [], "once closed it stays so"
    reader = AdapterReader(changed, lambda: to_read.pop(0) if to_read else None, read.append)
    with changed:
        reader.wake()
    until(lambda: read == ["a", "b"])
    with changed:
        to_read.append("c")
        reader.wake()
    until(lambda: read == ["a", "b", "c"])
    reader.close()
