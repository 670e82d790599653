"""For tests that compare a GPU's float32 with another's: imported, the fixture is of all of a module's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """TensorFloat-32 would not be float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before
