"""Ops of a layer on the CPU: each as its own model says, cut as workers would cut it."""

from __future__ import annotations

import pytest

from caraserve_cli.perf.adapter_ops import AdapterOp
from caraserve_cli.perf.cpu_lora import CpuLoraModel, CpuLoraOp
from caraserve_cli.perf.cpu_ops import cpu_ops_ms
from caraserve_cli.perf.least_squares import FitQuality


def test_each_op_is_cut_among_all_free_workers() -> None:
    model = CpuLoraModel(0.1, 0.01, 1e-8, 1e-7, 1e-7, 0.001, 1e-8, 0.02, FitQuality(1, 0, 9))
    qkv = AdapterOp(64, (64, 16, 16), 96, 0.75)
    out = AdapterOp(64, (64,), 64, 0.25)
    ops_ms = cpu_ops_ms(model, (qkv, out), 32, 8, 6, 16)
    assert ops_ms == pytest.approx(
        (
            model.predict_ms(CpuLoraOp(32, 64, (64, 16, 16), 8, 6, 16, 96)),
            model.predict_ms(CpuLoraOp(32, 64, (64,), 8, 2, 16, 64)),
        )
    )
