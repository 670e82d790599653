"""One thread for every process of the tests: several run side by side, and threads that wait for each other
on cores that others use make each operation up to 40 times slower."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
