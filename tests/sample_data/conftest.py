"""The scripts of the sample import each other as plain siblings; let the tests do so too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).resolve().parents[2] / "sample_data"

sys.path.insert(0, str(SAMPLE))


@pytest.fixture
def sample() -> Path:
    """The folder of the embedded sample."""
    return SAMPLE
