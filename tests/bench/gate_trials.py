"""Whether the regression gate keeps its word, over and over: `python -m tests.bench.gate_trials --tries 20`.

Each try records the recipe anew and compares with that recording: the same build, which must hold or not be
told, or with `--slow 1.1` one whose decoding steps take 10% longer on purpose, which must be found. Says what
became of each try, and ends with status 1 where the target is missed: 20 of 20, and 19 of 20. A try takes two
budgets. The tests beside this judge made-up recordings instead.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from caraserve_cli.errors import ExitStatus

_ROOT = Path(__file__).parents[2]
_BUILD = ("caraserve_cli", "kernels", "recipes", "sample_data")
_VERDICTS = {
    ExitStatus.OK: "held",
    ExitStatus.REGRESSED: "regressed",
    ExitStatus.CANNOT_TELL: "cannot tell",
}

# Appended to the engine of a copy: whatever a step took in which nobody prefills, it takes so much more.
_SLOW_STEPS = """

def _slow_down(more: float) -> None:
    import time

    quick_step, quick_launch = Engine.step, Engine._launch
    decodes = False

    def launch(engine, plan):
        nonlocal decodes
        decodes = all(chunk.num_tokens == 1 for chunk in plan.chunks)
        return quick_launch(engine, plan)

    def step(engine):
        nonlocal decodes
        decodes, began_s = False, time.perf_counter()
        outcomes = quick_step(engine)
        ended_s = time.perf_counter()
        while decodes and time.perf_counter() < ended_s + more * (ended_s - began_s):
            pass
        return outcomes

    Engine.step, Engine._launch = step, launch


_slow_down({more})
"""


def copy_build(folder: Path, slowed_by: float) -> Path:
    """This build in a folder of its own, its decoding steps slowed by a factor."""
    for name in _BUILD:
        shutil.copytree(_ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    if slowed_by > 1:
        engine = folder / "caraserve_cli" / "engine" / "engine.py"
        engine.write_text(engine.read_text() + _SLOW_STEPS.format(more=slowed_by - 1))
    return folder


def bench(build: Path, *arguments: str) -> int:
    """Exit status of `caraserve bench` of a build."""
    environment = {**os.environ, "PYTHONPATH": f"{build}:{build / 'kernels'}"}
    command = [sys.executable, "-m", "caraserve_cli", "bench", *arguments]
    # In its folder: -m looks there first.
    return subprocess.run(command, cwd=build, env=environment, check=False).returncode


def main() -> int:
    """Do the tries; 1 if the target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--slow", type=float, default=1.0, help="factor of the decoding steps' time")
    parser.add_argument("--budget-s", type=float, default=180)
    parser.add_argument("--recipe", default="quick")
    given = parser.parse_args()
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="gate-trials-") as name:
        folder = Path(name)
        true_build = copy_build(folder / "true", 1)
        build = copy_build(folder / "slowed", given.slow)
        baseline = str(folder / "baseline.json")
        for number in range(1, given.tries + 1):
            options = (given.recipe, "--budget-s", str(given.budget_s))
            if status := bench(true_build, *options, "--record", baseline):
                return status
            verdict = _VERDICTS.get(bench(build, *options, "--baseline", baseline), "failed")
            found[verdict] += 1
            print(f"try {number} of {given.tries}: {verdict}", flush=True)  # noqa: T201
    print(dict(found))  # noqa: T201
    if given.slow > 1:
        return int(found["regressed"] < 0.95 * given.tries)
    return int(found["held"] + found["cannot tell"] < given.tries)


if __name__ == "__main__":
    sys.exit(main())
