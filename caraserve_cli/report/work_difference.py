"""In what the work of two runs differs, as far as report.json tells: figures of other work say little of what
did it. Knows the schema of report.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

# Name, and what it is in the first run and in the second.
Difference = tuple[str, object, object]

_FACTS = {"weights": "weights", "arrival": "arrival"}
# Of these the last part of each path: the same file may be written in several ways.
_PLACES = {"base": "base", "requests_source": "requests"}
_BOUNDS = ("default_deadline_ms", "default_ttft_slo_ms", "default_tpot_slo_ms")
# Beside the defaults of rows: what prompts, and for which adapters. What came of --limit and --adapters the
# requests tell, of --rate and its like the arrival.
_OPTIONS = ("map", "template", "trace_adapters")
_MOST_NAMED = 3
# Of equal requests: two logits that are nearly equal may end an answer earlier or later.
_ANSWERS_SAME_WITHIN = 0.02


@dataclass(frozen=True, slots=True)
class WorkDifference:
    """`work`: all figures are of other work; `bounds`: only those of the SLO are."""

    work: list[Difference]
    bounds: list[Difference]


def option_name(key: str) -> str:
    """As a user types it: what rows get that do not say is an option like any other."""
    if key == "adapter_roots":
        return "--adapters"
    return f"--{key.removeprefix('default_').replace('_', '-')}"


def differing_work(before: Json, after: Json) -> WorkDifference:
    """Of two reports as read from report.json."""
    first, second = before["run"], after["run"]
    work = [(name, first[key], second[key]) for key, name in _FACTS.items()]
    work += [(name, _last_parts(first[key]), _last_parts(second[key])) for key, name in _PLACES.items()]
    work += _of_options(_work_options(first, second), first["options"], second["options"])
    work += _of_requests(before, after)
    bounds = _of_options(_BOUNDS, first["options"], second["options"])
    if not _unequal(work):
        bounds.append(("requests with a bound", before["slo"]["carried"], after["slo"]["carried"]))
    return WorkDifference(_unequal(work), _unequal(bounds))


def _last_parts(places: str) -> str:
    """Of `day-1/a.jsonl, day-1/b.jsonl` the names of the files."""
    return ", ".join(place.rstrip("/").rpartition("/")[2] for place in places.split(", "))


def _unequal(compared: Iterable[Difference]) -> list[Difference]:
    return [(name, before, after) for name, before, after in compared if before != after]


def _of_options(keys: Iterable[str], before: Json, after: Json) -> list[Difference]:
    """Those that both know: another version may have more."""
    return [(option_name(key), before[key], after[key]) for key in keys if key in before and key in after]


def _work_options(*runs: Json) -> list[str]:
    """Keys of the options that say what is asked for."""
    defaults = dict.fromkeys(key for run in runs for key in run["options"] if key.startswith("default_"))
    keys = [*_OPTIONS, *(key for key in defaults if key not in (*_BOUNDS, "default_seed"))]
    by_chance = (run["arrival"] is not None or run["options"].get("default_temperature") for run in runs)
    return [*keys, "seed"] if any(by_chance) else keys


def _of_requests(before: Json, after: Json) -> list[Difference]:
    """How many there were, of which adapters, and how long; a failed row tells neither adapter nor length."""
    of_before, of_after = _by_adapter(before, "answered"), _by_adapter(after, "answered")
    failed_before, failed_after = before["requests"]["failed"], after["requests"]["failed"]
    num_before, num_after = of_before.total() + failed_before, of_after.total() + failed_after
    ranks_before, ranks_after = _by_adapter(before, "lora_rank"), _by_adapter(after, "lora_rank")
    compared: list[Difference] = [
        ("number of requests", num_before, num_after),
        _listed("ranks", ranks_before, ranks_after, [name for name in ranks_before if name in ranks_after]),
    ]
    if num_before != num_after:
        if not failed_before + failed_after:
            compared.append(_listed("requests of adapters", of_before, of_after, {*of_before} ^ {*of_after}))
        return compared
    # Those that one run answered more of an adapter may all have failed in the other.
    if (of_before - of_after).total() > failed_after or (of_after - of_before).total() > failed_before:
        compared.append(_listed("requests of adapters", of_before, of_after, {**of_before, **of_after}))
    if not failed_before + failed_after:
        of_prompts, of_answers = (
            (before["tokens"][key], after["tokens"][key]) for key in ("prompt_tokens", "completion_tokens")
        )
        compared.append(("prompt tokens", *of_prompts))
        if abs(of_answers[1] - of_answers[0]) > _ANSWERS_SAME_WITHIN * of_answers[0]:
            compared.append(("output tokens", *of_answers))
    return compared


def _by_adapter(report: Json, key: str) -> Counter[str]:
    """A number of each adapter that was answered."""
    values = {entry["adapter"]: entry[key] for entry in report["by_adapter"] if entry[key] is not None}
    return Counter({"(base)" if name is None else name: value for name, value in values.items()})


def _listed(name: str, before: Counter[str], after: Counter[str], adapters: Iterable[str]) -> Difference:
    """Both as `sort 3, spell 4`: the first few of these adapters whose numbers differ."""
    unequal = sorted(each for each in adapters if before[each] != after[each])
    more = [] if len(unequal) <= _MOST_NAMED else ["…"]
    shown = unequal[:_MOST_NAMED]
    return (
        name,
        ", ".join([*(f"{each} {before[each]:,}" for each in shown), *more]),
        ", ".join([*(f"{each} {after[each]:,}" for each in shown), *more]),
    )
