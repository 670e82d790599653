from __future__ import annotations

import gc
import subprocess
import sys

import torch

from caraserve_cli.import_pause import import_pause
from tests.cli.command import user_environment

_IN_A_NEW_PROCESS = """
import gc
from caraserve_cli.import_pause import import_pause
num_collections = sum(each["collections"] for each in gc.get_stats())
with import_pause():
    kept = [[] for _ in range(100_000)]
assert sum(each["collections"] for each in gc.get_stats()) == num_collections
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000
import atexit
atexit.register(lambda: print(gc.get_freeze_count()))
atexit._run_exitfuncs()
print(gc.get_freeze_count())
"""


def test_nothing_is_collected_and_what_is_there_is_frozen_until_the_end() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _IN_A_NEW_PROCESS],
        env=user_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(int, ended.stdout.split())
    assert before > 100_000
    assert after == 0


def test_where_torch_is_imported_already_nothing_happens() -> None:
    assert torch.__name__ in sys.modules
    num_frozen = gc.get_freeze_count()
    with import_pause():
        assert gc.isenabled()
    assert gc.get_freeze_count() == num_frozen
