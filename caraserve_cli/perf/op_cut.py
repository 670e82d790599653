"""How one op, the LoRA part of one fused projection, is cut among CPU workers: by modules, then by tokens.

A module has its own A, B and columns of the result, so whoever owns one reads no other weights. Only where
there are more tokens than one worker is worth, and workers for them, are the rows cut too, of all modules
alike.
The paper (section 1) cuts by tokens alone, and every worker reads all weights.

Pure: the workers, their pool and the model of their time all ask here. Knows no adapters and no processes.
"""

from __future__ import annotations

from typing import NamedTuple


class Share(NamedTuple):
    """What one worker computes of an op: these rows, in the columns of these modules."""

    rows: range
    modules: range


class OpCut(NamedTuple):
    """An op cut into shares; every module of every row is in one of them.

    Attributes:
        num_rows: of the op.
        num_modules: of the op.
        num_row_runs: runs of neighbouring rows.
        num_columns: runs of neighbouring modules; each is a share in each run of rows.
    """

    num_rows: int
    num_modules: int
    num_row_runs: int
    num_columns: int

    @staticmethod
    def of(num_rows: int, num_modules: int, num_workers: int, tokens_per_worker: int) -> OpCut:
        """Cut an op; all arguments are above 0.

        Args:
            num_rows: of the op.
            num_modules: of the op.
            num_workers: that may have a share.
            tokens_per_worker: from which another worker computes a part of a module.
        """
        wanted = -(-num_rows // tokens_per_worker)
        num_row_runs = min(wanted, max(1, num_workers // num_modules))
        return OpCut(num_rows, num_modules, num_row_runs, min(num_modules, num_workers))

    @property
    def num_shares(self) -> int:
        """Workers that have something to do."""
        return self.num_row_runs * self.num_columns

    def share(self, place: int) -> Share:
        """The place-th share, `place` being below `num_shares`: as many rows and modules as in any other, or
        one more or less of each."""
        run, column = divmod(place, self.num_columns)
        return Share(
            _part(self.num_rows, run, self.num_row_runs), _part(self.num_modules, column, self.num_columns)
        )


def _part(length: int, place: int, num_parts: int) -> range:
    return range(length * place // num_parts, length * (place + 1) // num_parts)
