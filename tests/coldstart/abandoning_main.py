"""A main process that ends without closing its workers: `python -m tests.coldstart.abandoning_main HOW`."""

from __future__ import annotations

import os
import sys
import time

from caraserve_cli.coldstart.process_title import set_process_title
from caraserve_cli.coldstart.worker_pool import AssistRows
from tests.coldstart.worker_pools import OPS, open_bench


def main(how: str) -> None:
    """Say "ready" when there are workers, have some work done, and end in the way named."""
    opened = open_bench(2)
    bench = opened.__enter__()
    rows = [AssistRows(0, 20, bench.tables[0])]
    assert bench.compute(bench.pool.submit(rows, OPS, 20), rows, 20)
    bench.pool.submit(rows, OPS, 20)
    if how == "kill-forked" and os.fork() == 0:
        # It has all of this process's sockets, and lives on.
        set_process_title("forked-child-of-abandoning-main")
        os.close(1)
        time.sleep(60)
        os._exit(0)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    if how == "exception":
        raise RuntimeError("as a bug would")
    if how == "exit":
        return
    while True:
        bench.pool.poll()


if __name__ == "__main__":
    main(sys.argv[1])
