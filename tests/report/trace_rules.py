"""What Perfetto's reader of JSON traces asks of events, after the Trace Event Format's document.

Not the reader itself: the wheel `perfetto` (0.59.1) holds no trace processor and fetches one at run time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

Event = Mapping[str, Any]
_NAMED = {"process_name", "process_labels", "thread_name"}


def broken_rules(events: Sequence[Event]) -> list[str]:
    """What a reader would drop or draw wrongly; empty is right. Readers sort by time, and of equal times keep
    the order."""
    known = [event for event in events if event.get("ph") in "MXCibe"]
    broken = [f"unknown phase: {event}" for event in events if event not in known]
    for event in known:
        broken += [
            f"{key} is no whole number: {event}" for key in ("pid",) if type(event.get(key)) is not int
        ]
        if not isinstance(event.get("name"), str):
            broken.append(f"it has no name: {event}")
        if event["ph"] != "M" and not _is_time(event.get("ts")):
            broken.append(f"ts is no time: {event}")
    if broken:
        return broken
    in_time = sorted((event for event in known if event["ph"] != "M"), key=lambda event: float(event["ts"]))
    return [*_metadata(known), *_slices(in_time), *_spans(in_time), *_others(in_time)]


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53


def _metadata(events: Sequence[Event]) -> list[str]:
    """Names of processes and threads that events lie in, each once."""
    names = [event for event in events if event["ph"] == "M"]
    broken = [f"unknown metadata: {event}" for event in names if event["name"] not in _NAMED]
    broken += [f"no args.name: {event}" for event in names if not isinstance(event["args"].get("name"), str)]
    keys = [(event["name"], event["pid"], event["tid"]) for event in names]
    broken += [f"named twice: {key}" for key in set(keys) if keys.count(key) > 1]
    named = {event["pid"] for event in names if event["name"] == "process_name"}
    rows = {(event["pid"], event["tid"]) for event in names if event["name"] == "thread_name"}
    for event in events:
        if event["ph"] != "M" and event["pid"] not in named:
            broken.append(f"its process has no name: {event}")
        if event["ph"] in "Xi" and (event["pid"], event["tid"]) not in rows:
            broken.append(f"its row has no name: {event}")
    return broken


def _slices(events: Sequence[Event]) -> list[str]:
    """Complete events of one row lie beside one another or within one another."""
    broken: list[str] = []
    open_until: dict[tuple[int, int], list[float]] = defaultdict(list)
    for event in (event for event in events if event["ph"] == "X"):
        if not _is_time(event.get("dur")):
            broken.append(f"dur is no time: {event}")
            continue
        stack, start = open_until[event["pid"], event["tid"]], event["ts"]
        while stack and stack[-1] <= start + 0.11:  # times are rounded to 0.1 us
            stack.pop()
        if stack and start + event["dur"] > stack[-1] + 0.11:
            broken.append(f"it lies across the end of another: {event}")
        stack.append(start + event["dur"])
    return broken


def _spans(events: Sequence[Event]) -> list[str]:
    """Nestable asynchronous events: of one category, id and process the innermost ends first."""
    broken: list[str] = []
    open_names: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for event in (event for event in events if event["ph"] in "be"):
        if "id" not in event or "cat" not in event:
            broken.append(f"it has no id and category: {event}")
            continue
        stack = open_names[event["cat"], event["id"], event["pid"]]
        if event["ph"] == "b":
            stack.append(event["name"])
        elif not stack or stack.pop() != event["name"]:
            broken.append(f"it ends what is not the innermost: {event}")
    return broken + [f"never ended: {key} {names}" for key, names in open_names.items() if names]


def _others(events: Sequence[Event]) -> list[str]:
    """Instants have a scope, counters have numbers."""
    broken = [f"no scope: {event}" for event in events if event["ph"] == "i" and event.get("s") not in "tpg"]
    for event in (event for event in events if event["ph"] == "C"):
        values = event["args"].values()
        if not values or not all(isinstance(each, int | float) for each in values):
            broken.append(f"a counter without numbers: {event}")
    return broken
