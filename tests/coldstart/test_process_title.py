from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SHOW = """
import sys
from caraserve_cli.coldstart.process_title import set_process_title
set_process_title(sys.argv[1] * int(sys.argv[2]))
sys.stdout.write(open("/proc/self/cmdline").read().rstrip("\\0"))
"""


def _seen_title(word: str, times: int) -> str:
    command = [sys.executable, "-c", _SHOW, word, str(times)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout


def test_the_title_is_what_others_see():
    assert _seen_title("caraserve-worker 3", 1) == "caraserve-worker 3"


def test_a_long_title_is_cut_to_the_room_there_is():
    seen = _seen_title("w", 100_000)
    assert 0 < len(seen) < 100_000
    assert set(seen) == {"w"}
