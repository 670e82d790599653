"""The gate tried against itself, through the command, and the replica that is slow on purpose."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from caraserve_cli.bench.gate_trials import GateTrials
from caraserve_cli.bench.judged_metric import GateVerdict
from caraserve_cli.bench.slowed_replica import SlowedReplica
from caraserve_cli.core import Completion, Request, SamplingParams
from caraserve_cli.errors import ExitStatus
from caraserve_cli.events import StepRecord
from caraserve_cli.fleet.local import LocalReplica
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings
from tests.bench.paired_recipes import TINY_PAIRED, write_paired
from tests.cli.command import SAMPLE, run_caraserve
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]

HELD, REGRESSED, CANNOT_TELL = GateVerdict.HELD, GateVerdict.REGRESSED, GateVerdict.CANNOT_TELL
ONE_CASE = TINY_PAIRED.partition('[[case]]\nname = "base"')[0]


@pytest.mark.parametrize(
    ("verdicts", "slow_decode", "status"),
    [
        ([HELD] * 15 + [CANNOT_TELL] * 5, None, ExitStatus.OK),
        ([HELD] * 19 + [REGRESSED], None, ExitStatus.REGRESSED),
        ([REGRESSED] * 19 + [CANNOT_TELL], 1.1, ExitStatus.OK),
        ([REGRESSED] * 18 + [CANNOT_TELL, HELD], 1.1, ExitStatus.REGRESSED),
    ],
)
def test_what_the_gate_promises(
    verdicts: list[GateVerdict], slow_decode: float | None, status: ExitStatus
) -> None:
    trials = GateTrials(verdicts=tuple(verdicts), slow_decode=slow_decode)
    assert trials.exit_status == status
    assert ("does not keep" in trials.describe()) == (status != ExitStatus.OK)


def test_one_run_of_each_tells_nothing(tmp_path: Path) -> None:
    """A budget of a second is one run, and one gives no interval."""
    ended = run_caraserve("bench", write_paired(tmp_path, ONE_CASE), "--try-gate", "1", "--budget-s", "1")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[-1] == "try 1 of 1: cannot tell"
    assert ended.stdout.splitlines() == [
        "held 0, regressed 0, cannot tell 1",
        "The gate keeps its word: the same build held, or could not be told, in 1 of 1 tries; all must.",
    ]


def test_what_is_slow_on_purpose_says_so(caraserve: Caraserve, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    ended = caraserve("bench", write_paired(tmp_path, ONE_CASE), "--slow-decode", "3", "--json", file)
    assert ended.returncode == 0, ended.stderr
    assert "Our decoding steps were slowed on purpose, by a factor of 3." in ended.stdout
    assert json.loads(file.read_bytes())["slow_decode"] == 3.0


class Steps:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def on_step(self, record: StepRecord) -> None:
        self.records.append(record)


def test_decoding_takes_longer_and_nothing_else_changes() -> None:
    """By a clock that goes on with every look: a step takes one second by it."""
    options = ReplicaOptions(base=str(SAMPLE / "base"), device="cpu", dtype="float32", cpu_workers=0)
    surroundings, steps, looks = Surroundings.prepare(options), Steps(), itertools.count()
    plain = LocalReplica(surroundings, options, lambda: 0.0, Steps())
    slowed = SlowedReplica(4, surroundings, options, lambda: 0.0, steps, lambda: float(next(looks)))
    request = Request(
        id="a", line=1, prompt_token_ids=(5, 6, 7), sampling=SamplingParams(max_tokens=3, ignore_eos=True)
    )
    num_looks = []
    answers = {}
    for replica in (plain, slowed):
        replica.submit([request])
        while replica.num_unfinished:
            before = next(looks)
            for outcome in replica.poll():
                assert isinstance(outcome, Completion)
                answers[replica] = outcome.token_ids
            if replica is slowed:
                num_looks.append(next(looks) - before - 1)
        replica.close()
    surroundings.host_store.close()
    assert answers[plain] == answers[slowed]
    assert [(each.num_prefill_tokens, each.num_decode_tokens) for each in steps.records] == [
        (3, 0),
        (0, 1),
        (0, 1),
    ]
    assert num_looks == [2, 5, 5], "begin and end, and three more seconds"
