"""One thread for every process of the tests: several run side by side, and threads that wait for each other
on cores that others use make each operation up to 40 times slower."""

import os
import sys

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"
# How long an example takes is no matter: the machine may be busy.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")


@pytest.fixture(autouse=True)
def the_same_draws() -> None:
    """What a test draws of torch without a seed of its own depends on no test before it, and on no chance."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)
