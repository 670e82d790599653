"""From simulations to the table of a cluster and a verdict. Knows no torch and no files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from caraserve_cli.bench.cluster_recipe import CLUSTER, ClusterRequirement, HoldsMore, LessTime
from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.result_facts import ResultFacts
from caraserve_cli.simulation.tally import AnswerTally

# The attainment whose load is told of each policy, as in the paper.
HELD_ATTAINMENT = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFacts(ResultFacts):
    """What was simulated; all numbers of a result are modelled.

    Attributes:
        is_measured: whether the machine's profile is, or stated constants.
        num_settling: requests at the begin and at the end that are not counted.
        slo_ms: bound on latency over the answer's tokens.
    """

    machine: str
    is_measured: bool
    num_replicas: int
    num_adapters: int
    cold_start: str
    num_requests: int
    num_settling: int
    seed: int
    slo_factor: float
    slo_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPoint:
    """One policy at one load.

    Attributes:
        lora_kernel: `none` for a fleet without LoRA.
        attainment: share of the requests whose time per token is within the SLO; 0 where there is none.
        cold_starts: how adapters came, in requests.
        num_steps: of all replicas.
        simulated_s: virtual time.
        cpu_s: real time of one core.
    """

    lora_kernel: str
    policy: str
    rate_per_s: float
    num_counted: int
    time_per_token_ms: float
    p99_time_per_token_ms: float
    attainment: float
    ttft_ms: float
    p99_ttft_ms: float
    tpot_ms: float | None
    cold_starts: Mapping[str, int]
    num_preemptions: int
    num_steps: int
    simulated_s: float
    cpu_s: float

    @property
    def name(self) -> str:
        """Which simulation it was."""
        return f"{self.lora_kernel}, {self.policy}, {self.rate_per_s:g} requests/s"

    def as_json(self) -> dict[str, object]:
        return {"name": self.name, **dataclasses.asdict(self)}

    @staticmethod
    def of(
        tally: AnswerTally,
        *,
        lora_kernel: str,
        policy: str,
        rate_per_s: float,
        num_steps: int,
        simulated_s: float,
        cpu_s: float,
    ) -> ClusterPoint:
        """From a tally of at least one answer."""
        num_counted = tally.time_per_token_ms.count
        return ClusterPoint(
            lora_kernel=lora_kernel,
            policy=policy,
            rate_per_s=rate_per_s,
            num_counted=num_counted,
            time_per_token_ms=_defined(tally.time_per_token_ms.mean),
            p99_time_per_token_ms=_defined(tally.time_per_token_ms.quantile(0.99)),
            attainment=tally.num_attained / num_counted,
            ttft_ms=_defined(tally.ttft_ms.mean),
            p99_ttft_ms=_defined(tally.ttft_ms.quantile(0.99)),
            tpot_ms=tally.tpot_ms.mean,
            cold_starts=dict(tally.cold_starts),
            num_preemptions=tally.num_preemptions,
            num_steps=num_steps,
            simulated_s=simulated_s,
            cpu_s=cpu_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCluster:
    """One requirement.

    Attributes:
        found: for `LessTime` the share by which it is less; for `HoldsMore` the least that the best of the
            others attains at a load at which the policy holds. None where nothing was simulated that says it.
        rate_per_s: the load that says it.
    """

    requirement: ClusterRequirement
    found: float | None
    rate_per_s: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterResult:
    """All simulations of a recipe."""

    facts: ClusterFacts
    policies: tuple[str, ...]
    without_lora: ClusterPoint
    points: tuple[ClusterPoint, ...]
    requirements: tuple[ClusterRequirement, ...]

    @property
    def lora_kernels(self) -> tuple[str, ...]:
        """Those simulated, in their order."""
        return tuple(dict.fromkeys(point.lora_kernel for point in self.points))

    def of_policy(self, lora_kernel: str, policy: str) -> tuple[ClusterPoint, ...]:
        """By load."""
        return tuple(p for p in self.points if (p.lora_kernel, p.policy) == (lora_kernel, policy))

    def at(self, lora_kernel: str, policy: str, rate_per_s: float) -> ClusterPoint | None:
        """At one load; None where it was not simulated."""
        points = self.of_policy(lora_kernel, policy)
        return next((point for point in points if point.rate_per_s == rate_per_s), None)

    def held_rate_per_s(self, lora_kernel: str, policy: str) -> float | None:
        """The load up to which a policy holds `HELD_ATTAINMENT`: where the line between the last load at
        which it does and the next one crosses it. The highest load, if it holds at all; None if at none."""
        points = self.of_policy(lora_kernel, policy)
        if not points or points[0].attainment < HELD_ATTAINMENT:
            return None
        for low, high in pairwise(points):
            if high.attainment < HELD_ATTAINMENT:
                share = (low.attainment - HELD_ATTAINMENT) / (low.attainment - high.attainment)
                return low.rate_per_s + share * (high.rate_per_s - low.rate_per_s)
        return points[-1].rate_per_s

    @property
    def judged(self) -> tuple[JudgedCluster, ...]:
        """Every requirement."""
        return tuple(
            self._judge_less_time(each) if isinstance(each, LessTime) else self._judge_holds(each)
            for each in self.requirements
        )

    @property
    def verdict(self) -> Verdict:
        verdicts = {each.verdict for each in self.judged}
        worst_first = (Verdict.CANNOT_TELL, Verdict.MISSED)
        return next((verdict for verdict in worst_first if verdict in verdicts), Verdict.MET)

    def as_json(self) -> dict[str, object]:
        """The content of the file that `--json` writes."""
        held = {
            kernel: {policy: self.held_rate_per_s(kernel, policy) for policy in self.policies}
            for kernel in self.lora_kernels
        }
        return {
            "kind": CLUSTER,
            "modelled": True,
            **self.facts.as_json(),
            "without_lora": self.without_lora.as_json(),
            "points": [point.as_json() for point in self.points],
            "held_attainment": HELD_ATTAINMENT,
            "held_rate_per_s": held,
            "requirements": [dataclasses.asdict(each) for each in self.judged],
            "verdict": self.verdict,
        }

    def _judge_less_time(self, required: LessTime) -> JudgedCluster:
        ours = self.at(required.lora_kernel, required.policy, required.rate_per_s)
        theirs = self.at(required.lora_kernel, required.over, required.rate_per_s)
        if ours is None or theirs is None:
            return JudgedCluster(
                requirement=required, found=None, rate_per_s=required.rate_per_s, verdict=Verdict.CANNOT_TELL
            )
        less = less_time(ours, theirs)
        verdict = Verdict.MET if less >= required.less_by_at_least else Verdict.MISSED
        return JudgedCluster(
            requirement=required, found=less, rate_per_s=required.rate_per_s, verdict=verdict
        )

    def _judge_holds(self, required: HoldsMore) -> JudgedCluster:
        found: list[tuple[float, float]] = []
        for ours in self.of_policy(required.lora_kernel, required.policy):
            if ours.attainment >= required.holds:
                others = [
                    self._at_or_below(required.lora_kernel, each, ours.rate_per_s) for each in required.others
                ]
                found.append((max(others), ours.rate_per_s))
        if not found:
            return JudgedCluster(requirement=required, found=None, rate_per_s=None, verdict=Verdict.MISSED)
        best, rate_per_s = min(found)
        verdict = Verdict.MET if best <= required.others_at_most else Verdict.MISSED
        return JudgedCluster(requirement=required, found=best, rate_per_s=rate_per_s, verdict=verdict)

    def _at_or_below(self, lora_kernel: str, policy: str, rate_per_s: float) -> float:
        """A policy's attainment at a load, or at the last one before it at which it was given up."""
        points = [point for point in self.of_policy(lora_kernel, policy) if point.rate_per_s <= rate_per_s]
        return points[-1].attainment


def less_time(ours: ClusterPoint, theirs: ClusterPoint) -> float:
    """By which share of theirs our time per token is less."""
    return 1 - ours.time_per_token_ms / theirs.time_per_token_ms


def _defined(value: float | None) -> float:
    assert value is not None
    return value
