"""In what the work of two runs differs, as far as report.json tells: figures of other work say little of what
did it. Knows the schema of report.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from caraserve_cli.report.metrics import share

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
# Keys that users type in another way: requests are an argument.
_OTHER_NAMES = {"adapter_roots": "--adapters", "requests": "REQUESTS"}
_MOST_NAMED = 3
# Of equal requests two logits that are nearly equal may end an answer earlier or later; of other numbers of
# them the mean differs by chance. Chosen, not measured.
_LENGTHS_SAME_WITHIN = 0.02
# As little may the shares of other numbers of requests that have a bound.
_BOUND_SAME_WITHIN = 0.02


@dataclass(frozen=True, slots=True)
class WorkDifference:
    """`work`: all figures are of other work; `bounds`: only those of the SLO are."""

    work: list[Difference]
    bounds: list[Difference]


def option_name(key: str) -> str:
    """As a user types it: what rows get that do not say is an option like any other."""
    return _OTHER_NAMES.get(key) or f"--{key.removeprefix('default_').replace('_', '-')}"


def differing_work(before: Json, after: Json) -> WorkDifference:
    """Of two reports as read from report.json."""
    first, second = before["run"], after["run"]
    work = [(name, first[key], second[key]) for key, name in _FACTS.items()]
    work += [(name, _last_parts(first[key]), _last_parts(second[key])) for key, name in _PLACES.items()]
    work += _of_options(_work_options(first, second), first["options"], second["options"])
    work += _of_requests(before, after)
    bounds = _of_options(_BOUNDS, first["options"], second["options"])
    bounds += _of_carried(before, after)
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
    num_before, num_after = _num_requests(before), _num_requests(after)
    ranks_before, ranks_after = _by_adapter(before, "lora_rank"), _by_adapter(after, "lora_rank")
    compared: list[Difference] = [
        ("number of requests", num_before, num_after),
        _listed("ranks", ranks_before, ranks_after, [name for name in ranks_before if name in ranks_after]),
    ]
    if num_before != num_after:
        return [*compared, *_of_other_number(before, after)]
    # Those that one run answered more of an adapter may all have failed in the other.
    if (of_before - of_after).total() > failed_after or (of_after - of_before).total() > failed_before:
        compared.append(_listed("requests of adapters", of_before, of_after, {**of_before, **of_after}))
    if not failed_before + failed_after:
        of_prompts, of_answers = (
            (before["tokens"][key], after["tokens"][key]) for key in ("prompt_tokens", "completion_tokens")
        )
        compared.append(("prompt tokens", *of_prompts))
        if not _is_same_length(*of_answers):
            compared.append(("output tokens", *of_answers))
    return compared


def _of_other_number(before: Json, after: Json) -> list[Difference]:
    """Of which adapters only one run had requests, and how long those that were answered were on average:
    with other numbers of requests those of every adapter and all tokens differ anyway.
    """
    of_before, of_after = _by_adapter(before, "answered"), _by_adapter(after, "answered")
    only_before = Counter({name: num for name, num in of_before.items() if name not in of_after})
    only_after = Counter({name: num for name, num in of_after.items() if name not in of_before})
    compared: list[Difference] = []
    if only_before.total() > after["requests"]["failed"] or only_after.total() > before["requests"]["failed"]:
        compared.append(_listed("requests of adapters", of_before, of_after, {**only_before, **only_after}))
    for name, key in (("prompt", "prompt_tokens"), ("output", "completion_tokens")):
        means = [share(of["tokens"][key], of["requests"]["answered"]) for of in (before, after)]
        if means[0] is not None and means[1] is not None and not _is_same_length(means[0], means[1]):
            compared.append((f"mean {name} tokens", round(means[0], 1), round(means[1], 1)))
    return compared


def _of_carried(before: Json, after: Json) -> list[Difference]:
    """How many of the requests had a bound."""
    carried_before, carried_after = before["slo"]["carried"], after["slo"]["carried"]
    num_before, num_after = _num_requests(before), _num_requests(after)
    if num_before == num_after:
        return [("requests with a bound", carried_before, carried_after)]
    share_before, share_after = share(carried_before, num_before), share(carried_after, num_after)
    if abs((share_after or 0.0) - (share_before or 0.0)) <= _BOUND_SAME_WITHIN:
        return []
    of_before, of_after = f"{carried_before:,} of {num_before:,}", f"{carried_after:,} of {num_after:,}"
    return [("requests with a bound", of_before, of_after)]


def _num_requests(report: Json) -> int:
    return _by_adapter(report, "answered").total() + int(report["requests"]["failed"])


def _is_same_length(before: float, after: float) -> bool:
    return abs(after - before) <= _LENGTHS_SAME_WITHIN * before


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
