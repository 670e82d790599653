"""Files of results keep the order of their keys, so that one can be laid beside one of long ago."""

from __future__ import annotations

import dataclasses

import pytest

from caraserve_cli.bench.assist_result import AssistFacts
from caraserve_cli.bench.benchmark import BenchFacts
from caraserve_cli.bench.cluster_result import ClusterFacts
from caraserve_cli.bench.engine_result import EngineFacts
from caraserve_cli.bench.kernel_result import KernelFacts
from caraserve_cli.bench.paired_result import PairedFacts
from caraserve_cli.bench.result_facts import MeasuredFacts, ResultFacts
from caraserve_cli.bench.virtual_machine import VirtualFacts

# What files began with before kinds of results shared their facts.
FIRST_KEYS = {
    BenchFacts: "recipe description caraserve_version commit versions device num_threads num_cores "
    "load_average dtype",
    EngineFacts: "recipe description weights caraserve_version commit versions device num_threads num_cores "
    "load_average base dtype",
    KernelFacts: "recipe description caraserve_version commit versions device num_cores load_average base",
    AssistFacts: "recipe description caraserve_version commit versions device cpu num_cores load_average "
    "base",
    PairedFacts: "recipe description caraserve_version commit versions device num_threads num_cores "
    "load_average dtype",
    ClusterFacts: "recipe description caraserve_version commit machine is_measured",
    VirtualFacts: "recipe description caraserve_version commit machine profile",
    MeasuredFacts: "recipe description caraserve_version commit versions num_cores load_average",
}


@pytest.mark.parametrize("kind", FIRST_KEYS, ids=lambda kind: kind.__name__)
def test_keys_come_in_the_order_of_their_kind(kind: type[ResultFacts]) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    written = kind(**dict.fromkeys(names)).as_json()
    expected = FIRST_KEYS[kind].split()
    assert list(written)[: len(expected)] == expected
    assert sorted(written) == sorted(names)
