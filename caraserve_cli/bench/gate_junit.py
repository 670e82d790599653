"""The regression gate's result as JUnit XML: a test a metric. What cannot be told is skipped, not failed."""

from __future__ import annotations

from xml.etree import ElementTree

from caraserve_cli.bench.gate import GateResult
from caraserve_cli.bench.gate_words import allowed, figure, notes, verdict_sentence, worse_of
from caraserve_cli.bench.judged_metric import GateVerdict, JudgedMetric


def gate_junit(result: GateResult) -> bytes:
    """The file's content."""
    suite = ElementTree.Element(
        "testsuite",
        name=f"caraserve bench {result.recording.recipe}",
        tests=str(len(result.judged)),
        failures=_count(result, GateVerdict.REGRESSED),
        errors="0",
        skipped=_count(result, GateVerdict.CANNOT_TELL),
        timestamp=result.recording.recorded_at.removesuffix("+00:00"),
    )
    for each in result.judged:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"bench.{result.recording.recipe}", name=each.metric.name
        )
        if each.verdict is GateVerdict.REGRESSED:
            ElementTree.SubElement(case, "failure", message=_sentence(each)).text = _values(each)
        elif each.verdict is GateVerdict.CANNOT_TELL:
            ElementTree.SubElement(case, "skipped", message=each.reason or "")
        ElementTree.SubElement(case, "system-out").text = _sentence(each)
    output = ElementTree.SubElement(suite, "system-out")
    output.text = "\n".join([verdict_sentence(result), *notes(result)])
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    for element in root.iter():
        element.text = element.text and _printable(element.text)
        for key, value in element.items():
            element.set(key, _printable(value))
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _printable(text: str) -> str:
    """XML has no place for control characters, escaped or not."""
    return "".join(each if each.isprintable() or each in "\n\t " else "\ufffd" for each in text)


def _count(result: GateResult, verdict: GateVerdict) -> str:
    return str(sum(each.verdict is verdict for each in result.judged))


def _sentence(each: JudgedMetric) -> str:
    before = figure(each.before.median, each.before.unit)
    now = "not measured" if each.now is None else figure(each.now.median, each.now.unit)
    return f"before {before}, now {now}, worse by {worse_of(each)}, {allowed(each.metric)} allowed"


def _values(each: JudgedMetric) -> str:
    now = each.now.values if each.now else ()
    return f"before: {list(each.before.values)}\nnow: {list(now)}"
