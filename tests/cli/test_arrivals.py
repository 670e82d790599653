"""`caraserve run --rate … --arrivals …`: when rows are submitted, with which adapter, and what is refused.

No test looks at a clock: each sees with which arrival a request is submitted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest

from caraserve_cli.core import Request
from caraserve_cli.fleet.local import LocalReplica
from caraserve_cli.job.arrival_options import ArrivalOptions
from caraserve_cli.job.arrival_plan import ArrivalPlan
from tests.cli.command import SAMPLE, Row, assert_refused, read_rows, rows_by_id, write_rows
from tests.cli.conftest import Caraserve
from tests.requests.traces import write_trace

BASE_JOB = ("run", "--base", SAMPLE / "base", "--dtype", "float32")
JOB = (*BASE_JOB, "--adapters", SAMPLE / "adapters")
SAMPLE_ROWS = read_rows(SAMPLE / "requests.jsonl")
ROW: Row = {"prompt": "Input: a\nOutput: ", "max_tokens": 1}
RATE_PER_S = 400.0


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The arrival of each request that was submitted, by id; milliseconds. None came before its time."""
    arrivals_ms: dict[str, float] = {}
    submit = LocalReplica.submit

    def recording(replica: LocalReplica, requests: Sequence[Request]) -> None:
        arrivals_ms.update({request.id: request.arrival_ms for request in requests})
        submit(replica, requests)

    monkeypatch.setattr(LocalReplica, "submit", recording)
    return arrivals_ms


def planned_ms(options: ArrivalOptions, number: int, seed: int = 0) -> list[float]:
    arrivals = ArrivalPlan(options, seed, ()).row_arrivals()
    assert arrivals is not None
    return [arrival.ms for arrival in islice(arrivals, number)]


def report_in(out: Path) -> Row:
    report: Row = json.loads((out / "report.json").read_text())
    return report


def test_the_sample_arrives_as_the_process_says(
    caraserve: Caraserve, submitted: dict[str, float], tmp_path: Path
) -> None:
    """In the order of the file; the report and the summary say how."""
    out = tmp_path / "out"
    process = ("--rate", "400", "--arrivals", "gamma", "--burstiness", "2", "--seed", "3")
    ended = caraserve(*JOB, "--out", out, *process, SAMPLE / "requests.jsonl")
    assert ended.returncode == 0, ended.stderr
    options = ArrivalOptions(named="gamma", rate_per_s=RATE_PER_S, burstiness=2.0)
    assert [submitted[row["id"]] for row in SAMPLE_ROWS] == planned_ms(options, len(SAMPLE_ROWS), seed=3)
    answers = rows_by_id(out / "outputs.jsonl")
    assert answers.keys() == submitted.keys()
    assert all(answer["queue_ms"] >= 0 for answer in answers.values()), "none is scheduled before it arrives"
    report = report_in(out)
    assert report["run"]["arrival"] == "gamma, 400 requests/s, burstiness 2"
    assert report["definitions"]["arrival"].startswith("gamma, 400 requests/s, burstiness 2, seed 3; ")
    assert report["run"]["options"]["rate"] == 400
    assert report["requests"]["submitted_late"] == 0
    assert "Arrivals: gamma, 400 requests/s, burstiness 2\n" in ended.stdout


def test_a_rate_alone_is_a_poisson_process_and_without_one_nothing_changes(
    caraserve: Caraserve, submitted: dict[str, float], tmp_path: Path
) -> None:
    """Rejected rows take their place in the process, so that the others stay where they are."""
    rows = [{**ROW, "id": f"r{number}"} for number in range(4)]
    rows[1] |= {"adapter": "nobody"}
    requests = write_rows(tmp_path / "r.jsonl", rows)
    assert caraserve(*JOB, "--out", tmp_path / "rate", "--rate", "400", requests).returncode == 3
    times_ms = planned_ms(ArrivalOptions(rate_per_s=RATE_PER_S), 4)
    assert submitted == {"r0": times_ms[0], "r2": times_ms[2], "r3": times_ms[3]}
    submitted.clear()
    ended = caraserve(*JOB, "--out", tmp_path / "none", requests)
    assert submitted == {"r0": 0, "r2": 0, "r3": 0}
    assert "Arrivals:" not in ended.stdout
    assert report_in(tmp_path / "none")["run"]["arrival"] is None


def test_after_resume_every_row_has_the_time_it_had(
    caraserve: Caraserve, submitted: dict[str, float], tmp_path: Path
) -> None:
    job = (*JOB, "--out", tmp_path / "out", "--rate", "400", SAMPLE / "requests.jsonl")
    assert caraserve(*job, "--limit", "30").returncode == 0
    before = dict(submitted)
    assert len(before) == 30
    submitted.clear()
    assert caraserve(*job, "--resume").returncode == 0
    assert before.keys().isdisjoint(submitted)
    times_ms = planned_ms(ArrivalOptions(rate_per_s=RATE_PER_S), len(SAMPLE_ROWS))
    assert [(before | submitted)[row["id"]] for row in SAMPLE_ROWS] == times_ms


def test_a_resumed_run_does_not_wait_again_for_what_is_dealt_with(
    caraserve: Caraserve, submitted: dict[str, float], tmp_path: Path
) -> None:
    """The first session rejects its rows at once; the row that is left arrives after a day or more."""
    rows = [{**ROW, "id": "late"}]
    rows = [{**ROW, "id": f"r{number}", "adapter": "nobody"} for number in range(100)] + rows
    requests = write_rows(tmp_path / "r.jsonl", rows)
    job = (*JOB, "--out", tmp_path / "out", "--rate", "0.001", requests)
    assert caraserve(*job, "--limit", "100").returncode == 3
    assert caraserve(*job, "--resume").returncode == 3
    assert submitted == {"late": planned_ms(ArrivalOptions(rate_per_s=0.001), 101)[-1]}
    assert submitted["late"] > 50_000_000
    (answer,) = read_rows(tmp_path / "out" / "outputs.jsonl")
    assert 0 <= answer["queue_ms"] < submitted["late"]
    assert report_in(tmp_path / "out")["run"]["duration_s"] < submitted["late"] / 1000


def test_other_arrivals_are_another_run(caraserve: Caraserve, tmp_path: Path) -> None:
    requests = write_rows(tmp_path / "r.jsonl", [{**ROW, "id": "a"}])
    job = (*JOB, "--out", tmp_path / "out", requests)
    assert caraserve(*job, "--rate", "400").returncode == 0
    ended = caraserve(*job, "--resume", "--rate", "300")
    assert_refused(ended, 1, 'arrivals was "poisson, 400 requests/s", now is "poisson, 300 requests/s"')
    assert_refused(caraserve(*job, "--resume"), 1, 'arrivals was "poisson, 400 requests/s", now is null')


def test_a_trace_decides_times_and_the_adapters_of_rows_that_name_none(
    caraserve: Caraserve, submitted: dict[str, float], tmp_path: Path
) -> None:
    """Its functions by popularity have the adapters in the order of their names: caesar, consonants."""
    trace = write_trace(tmp_path / "t.csv", {"less": [2, 1], "most": [6, 3]})
    rows = [{**ROW, "id": f"r{number}"} for number in range(12)]
    rows += [{**ROW, "id": "base", "adapter": None}, {**ROW, "id": "own", "adapter": "upper"}]
    requests, out = write_rows(tmp_path / "r.jsonl", rows), tmp_path / "out"
    process = ("--arrivals", "trace", "--arrival-trace", trace, "--rate", "400")
    ended = caraserve(*JOB, "--out", out, *process, "--trace-adapters", requests)
    assert ended.returncode == 0, ended.stderr
    options = ArrivalOptions(named="trace", trace=trace, rate_per_s=RATE_PER_S)
    assert [submitted[row["id"]] for row in rows] == planned_ms(options, len(rows))
    answers = rows_by_id(out / "outputs.jsonl")
    assert (answers.pop("base")["adapter"], answers.pop("own")["adapter"]) == (None, "upper")
    assert Counter(answer["adapter"] for answer in answers.values()) == {"caesar": 9, "consonants": 3}
    assert f"Arrivals: trace, 400 requests/s, {trace} (" in ended.stdout
    assert report_in(out)["run"]["arrival"].startswith(f"trace, 400 requests/s, {trace} (")


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_a_row_with_an_arrival_of_its_own_is_refused_by_its_line(
    caraserve: Caraserve, tmp_path: Path, more: Sequence[str]
) -> None:
    """And without the option the same folder can be used."""
    rows = [{**ROW, "id": "a"}, {**ROW, "id": "b", "arrival_ms": None}, {**ROW, "id": "c", "arrival_ms": 0}]
    job = (*BASE_JOB, "--out", tmp_path / "out", write_rows(tmp_path / "r.jsonl", rows))
    ended = caraserve(*job, "--rate", "9", *more)
    assert_refused(ended, 2, "--rate", "line 3 of the requests has an arrival_ms of its own")
    assert caraserve(*job).returncode == 0


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ("--rate 0", ("--rate: must be above 0",)),
        ("--rate -3", ("--rate: must be above 0",)),
        ("--rate fast", ("--rate", "valid number")),
        ("--arrivals poisson", ("--arrivals poisson: it needs --rate",)),
        ("--arrivals gamma", ("--arrivals gamma: it needs --rate",)),
        (
            "--arrivals weibull --rate 9",
            ("'--arrivals': 'weibull' is not one of 'poisson', 'gamma', 'trace'",),
        ),
        ("--arrivals trace", ("--arrivals trace: it needs --arrival-trace",)),
        ("--rate 9 --burstiness 2", ("--burstiness: it goes with --arrivals gamma",)),
        ("--rate 9 --arrivals gamma --burstiness 0", ("--burstiness: must be from 0.01 to 100",)),
        ("--arrival-trace t.csv", ("--arrival-trace: it goes with --arrivals trace",)),
        ("--arrivals trace --arrival-trace none.csv", ("--arrival-trace: 'none.csv'", "cannot be read")),
        ("--arrivals trace --arrival-trace README.md", ("--arrival-trace: 'README.md' line 1",)),
        ("--rate 9 --trace-adapters", ("--trace-adapters: it goes with --arrivals trace",)),
        (
            "--arrivals trace --arrival-trace t.csv --trace-adapters --adapter upper",
            ("--trace-adapters", "leave out --adapter"),
        ),
        ("--arrivals trace --arrival-trace t.csv --trace-adapters", ("no adapters were found",)),
    ],
)
def test_options_that_do_not_fit(
    caraserve: Caraserve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    fragments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path / "t.csv", {"f": [1]})
    (tmp_path / "README.md").write_text("# A trace\n")
    requests = write_rows(tmp_path / "r.jsonl", [ROW])
    assert_refused(caraserve(*BASE_JOB, "--out", "out", *options.split(), requests), 2, *fragments)
    assert not (tmp_path / "out").exists()
