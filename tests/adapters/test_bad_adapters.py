"""Every bad adapter is refused in one line that names it and what is wrong, and none costs the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.loader import load_adapter
from caraserve_cli.adapters.summary import inspect_adapter
from caraserve_cli.errors import AdapterError
from tests.adapters.bad_adapters import write_bad_adapters
from tests.adapters.bases import shape_of, tiny_llama
from tests.adapters.peft_variants import VARIANTS, write_variant

SHAPE = shape_of(tiny_llama())
# Only the weights themselves tell these.
_INVISIBLE_IN_HEADERS = {"nan", "infinite"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("bad")
    return root, write_bad_adapters(root, tiny_llama)


def test_each_is_refused_by_name(corpus: tuple[Path, dict[str, str]]) -> None:
    root, expected = corpus
    library = AdapterLibrary.scan([root])
    assert set(library.names) == expected.keys()
    store = HostStore(library, SHAPE, torch.float32, capacity_bytes=10**9)
    messages = {}
    for name in library.names:
        with pytest.raises(AdapterError) as caught:
            store.acquire(name)
        messages[name] = str(caught.value)
    wrong = {name: text for name, text in messages.items() if expected[name] not in text}
    assert wrong == {}
    for name, text in messages.items():
        assert text.startswith(f"adapter '{name}': ")
        assert "\n" not in text
        assert len(text) < 400
    store.check_integrity()


def test_headers_tell_what_the_weights_would(corpus: tuple[Path, dict[str, str]]) -> None:
    root, _ = corpus
    library = AdapterLibrary.scan([root])
    store = HostStore(library, SHAPE, torch.float32, capacity_bytes=10**9)
    served, told, expected = [], {}, {}
    for name in library.names:
        with pytest.raises(AdapterError) as loaded:
            load_adapter(name, root / name, SHAPE, torch.float32)
        try:
            store.describe(name)
            served.append(name)
        except AdapterError as error:
            told[name], expected[name] = str(error), str(loaded.value)
    assert told == expected
    assert set(served) == _INVISIBLE_IN_HEADERS
    assert all(store.is_ready(name) == (name not in served) for name in library.names)


def test_each_has_its_problem_in_its_summary(corpus: tuple[Path, dict[str, str]]) -> None:
    root, expected = corpus
    summaries = {name: inspect_adapter(name, root / name, SHAPE) for name in expected}
    problems = {name: summary.problem for name, summary in summaries.items()}
    assert {name for name, problem in problems.items() if problem is None} == _INVISIBLE_IN_HEADERS
    for name in expected.keys() - _INVISIBLE_IN_HEADERS:
        assert expected[name] in str(problems[name])


def test_good_ones_beside_them_are_served(corpus: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    write_variant(tmp_path, VARIANTS[0], tiny_llama, seed=1)
    store = HostStore(AdapterLibrary.scan([corpus[0], tmp_path]), SHAPE, torch.float32, capacity_bytes=10**9)
    with pytest.raises(AdapterError):
        store.acquire("dora")
    assert store.acquire(VARIANTS[0].name).lora_rank == 4
