"""In what the settings and machines of two runs differ. Knows the schema of report.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from caraserve_cli.report.work_difference import Difference, option_name

Json = Mapping[str, Any]

# Options of which a report also says what came of them (`auto`, a folder that is written in another way):
# where that differs it says more.
_OUTCOMES = {
    "base": "base",
    "weights": "weights",
    "device": "device",
    "dtype": "dtype",
    "emulate_link_gbps": "emulated_link_gbps",
    "requests": "requests_source",
}
# Nobody gives the second: --seed is that of the run.
_UNTOLD_OPTIONS = ("out", "default_seed")
# What a plan of the memory says last.
_FREE = re.compile(r"; of [\d.]+ [MG]B")
# Sizes that no option sets are shares of what was free. Chosen, not measured; options are told anyway.
_SIZES_SAME_WITHIN = 0.1
_NUMBER = re.compile(r"\d[\d,.]*")


def differing_settings(before: Json, after: Json) -> list[Difference]:
    """Of two reports as read from report.json: facts and machine first, then options by the names that users
    type, each once.
    """
    first, second = before["run"], after["run"]
    told = [_flat(report) for report in (before, after)]
    for key, fact in _OUTCOMES.items():
        if first[fact] != second[fact]:
            told[0][option_name(key)], told[1][option_name(key)] = first[fact], second[fact]
    if _is_same_memory(told[0]["memory"], told[1]["memory"]):
        told[1]["memory"] = told[0]["memory"]
    return [
        (name, told[0].get(name), told[1].get(name))
        for name in dict.fromkeys([*told[0], *told[1]])
        if told[0].get(name) != told[1].get(name)
    ]


def _flat(report: Json) -> dict[str, Any]:
    run = report["run"]
    options = {option_name(key): value for key, value in run["options"].items() if key not in _UNTOLD_OPTIONS}
    if "--adapters" in options:
        options["--adapters"] = ", ".join(options["--adapters"])
    # How much was free is chance, and may be all by which the plans of replicas differ.
    memory = "; ".join(dict.fromkeys(_FREE.sub("", run["memory"]).split("; ")))
    facts = {"caraserve": report["caraserve_version"], "memory": memory}
    return {**facts, **run.get("machine", {}), **options}


def _is_same_memory(before: str, after: str) -> bool:
    """Whether both plans have the same parts, and these about the same sizes."""
    if _NUMBER.sub("", before) != _NUMBER.sub("", after):
        return False
    sizes = ([float(size.replace(",", "")) for size in _NUMBER.findall(plan)] for plan in (before, after))
    return all(abs(two - one) <= _SIZES_SAME_WITHIN * one for one, two in zip(*sizes, strict=True))
