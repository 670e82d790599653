"""The dry run: every row and every adapter it names is checked, nothing is answered or written."""

from __future__ import annotations

from collections.abc import Iterator

from caraserve_cli.core import Request, RequestRow
from caraserve_cli.errors import RowError
from caraserve_cli.fleet.surroundings import Surroundings
from caraserve_cli.job.arrival_plan import ArrivalPlan
from caraserve_cli.job.options import RunOptions
from caraserve_cli.job.prepare import Preparer, rejected
from caraserve_cli.requests.many_sources import open_all
from caraserve_cli.requests.stream import RejectedRow, RowStream


def check(options: RunOptions) -> Iterator[RejectedRow | None]:
    """One item per row, in order: why it would be rejected, or None if it can be answered.

    Raises:
        OptionError: an option is wrong.
        InputError: the base or the input cannot be used.
    """
    surroundings = Surroundings.prepare(options.replica)
    plan = ArrivalPlan(options.arriving, options.replica.seed, surroundings.library.names)
    preparer = Preparer.of(surroundings, options.replica.seed)
    with open_all(options.sources, options.columns) as source:
        for row in RowStream(source, options.defaults, options.limit, plan.row_arrivals()):
            yield row if isinstance(row, RejectedRow) else _check_row(row, preparer, surroundings)


def _check_row(row: RequestRow, preparer: Preparer, surroundings: Surroundings) -> RejectedRow | None:
    (prepared,) = preparer.prepare([row])
    if isinstance(prepared, Request):
        try:
            surroundings.check(prepared)
        except RowError as error:
            return rejected(row, error)
        return None
    return prepared
