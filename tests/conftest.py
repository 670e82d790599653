"""One thread for every process of the tests: several run side by side, and threads that wait for each other
on cores that others use make each operation up to 40 times slower."""

import os

from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"
# How long an example takes is no matter: the machine may be busy.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")
