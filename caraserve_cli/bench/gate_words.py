"""How figures, changes and verdicts of the regression gate are worded, wherever they are written."""

from __future__ import annotations

from caraserve_cli.bench.confidence import MIN_VALUES
from caraserve_cli.bench.gate import GateResult
from caraserve_cli.bench.judged_metric import Change, GateVerdict, JudgedMetric
from caraserve_cli.bench.metric import Basis, Metric


def figure(value: float, unit: str) -> str:
    """A figure with its unit, to three or four digits."""
    digits = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.1f}"
    return f"{digits}{unit}" if unit == "x" else f"{digits} {unit}".strip()


def extremes_of(metric: Metric) -> str:
    """The lowest and the highest value."""
    low, high = (figure(end(metric.values), "") for end in (min, max))
    return f"{low} to {high}"


def percent_worse(change: Change) -> str:
    """`+3.1% (+1.9 to +4.2)`: above zero is worse, whichever way is better."""
    shift, low, high = (100 * (each - 1) for each in (change.factor, change.low, change.high))
    return f"{shift:+.1f}% ({low:+.1f} to {high:+.1f})"


def worse_of(judged: JudgedMetric) -> str:
    """The change, or a dash."""
    return "-" if judged.change is None else percent_worse(judged.change)


def allowed(metric: Metric) -> str:
    """The tolerance."""
    return f"{metric.tolerance:.0%}"


def verdict_sentence(result: GateResult) -> str:
    """The whole verdict in a line."""
    found = [each for each in result.judged if each.verdict is GateVerdict.REGRESSED]
    against = f"against {result.baseline.num_rounds} of the baseline"
    if result.baseline.commit:
        against += f" (commit {result.baseline.commit[:10]})"
    runs = f"{result.recording.num_rounds} runs {against}"
    if result.verdict is GateVerdict.REGRESSED:
        names = ", ".join(f"'{each.metric.name}'" for each in found)
        return f"Regressed: {names}; {runs}."
    if result.verdict is GateVerdict.HELD:
        return f"Held: {len(result.deciding)} metrics that decide are within their tolerance; {runs}."
    if result.undone:
        return f"Cannot tell: {result.undone[0]}; {runs}."
    open_ones = [each for each in result.deciding if each.verdict is GateVerdict.CANNOT_TELL]
    if not open_ones:
        return f"Cannot tell: the baseline has no metric that is judged; {runs}."
    return (
        f"Cannot tell: {len(open_ones)} of {len(result.deciding)} metrics that decide; {runs}. "
        f"'{open_ones[0].metric.name}': {open_ones[0].reason}.{_advice(result)}"
    )


def _advice(result: GateResult) -> str:
    """How to have enough runs."""
    if result.baseline.num_rounds < MIN_VALUES:
        return " Record the baseline anew with a larger --budget-s."
    return " Give a larger --budget-s." if result.recording.num_rounds < MIN_VALUES else ""


def notes(result: GateResult) -> list[str]:
    """What else is to be known: other hardware, other versions, absolute figures that were left out."""
    lines = [f"Other hardware: {each}." for each in result.hardware_differences]
    if new := result.not_in_baseline:
        named = ", ".join(f"'{name}'" for name in new[:3]) + (", …" if len(new) > 3 else "")
        lines.append(f"Not judged, for the baseline lacks them: {named}; record it anew.")
    lines += [f"Other version: {each}." for each in result.version_differences]
    reasons = {
        each.reason: None
        for each in result.judged
        if each.metric.basis is Basis.ABSOLUTE and each.verdict is GateVerdict.CANNOT_TELL and each.reason
    }
    if result.hardware_differences:
        lines.append("Absolute figures are not compared on other hardware; the ratios decide.")
    else:
        lines += [f"Absolute figures: {reason}." for reason in reasons if reason.startswith("the machine")]
    return lines
