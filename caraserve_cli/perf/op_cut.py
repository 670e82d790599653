"""How one op, the LoRA part of one fused projection, is cut among CPU workers: by modules, then by tokens,
then within a module.

A module has its own A, B and columns of the result, so whoever owns one reads no other weights. Only where
there are more tokens than one worker is worth, and workers for them, are the rows cut too, of all modules
alike. Workers that are left over then share a module: each takes a slice of its LoRA rows, x · A, and when
all of them have that, a slice of its columns, h · B. So each weight is still read by one worker alone, and
nobody adds up what another has computed.
The paper (section 1) cuts by tokens alone, and every worker reads all weights.

Pure: the workers, their pool and the model of their time all ask here. Knows no adapters and no processes.
"""

from __future__ import annotations

from typing import NamedTuple

# What the workers of a module save has to be more than what waiting for each other costs. Chosen, not
# measured.
_LEAST_SLICE_RANK = 8
_MOST_SLICES = 4


class Slice(NamedTuple):
    """One of `num_slices` equal parts of anything that has a length, to within one."""

    place: int
    num_slices: int

    def of(self, length: int) -> range:
        """Its part; empty where there is not enough for all."""
        return range(length * self.place // self.num_slices, length * (self.place + 1) // self.num_slices)


WHOLE = Slice(0, 1)


class Share(NamedTuple):
    """What one worker computes of an op: these rows, in the columns of these modules, of each module this
    slice of its LoRA rows first and of its columns then. It is the whole where there are several modules."""

    rows: range
    modules: range
    slice: Slice


class OpCut(NamedTuple):
    """An op cut into shares; every slice of every module of every row is in one of them.

    Attributes:
        num_rows: of the op.
        num_modules: of the op.
        num_row_runs: runs of neighbouring rows.
        num_columns: runs of neighbouring modules in each run of rows.
        num_slices: shares of each run of modules in each run of rows; of one module if above 1.
    """

    num_rows: int
    num_modules: int
    num_row_runs: int
    num_columns: int
    num_slices: int

    @staticmethod
    def of(
        num_rows: int, num_modules: int, num_workers: int, tokens_per_worker: int, lora_rank: int
    ) -> OpCut:
        """Cut an op; all arguments are above 0.

        Args:
            num_rows: of the op.
            num_modules: of the op.
            num_workers: that may have a share.
            tokens_per_worker: from which another worker computes further rows of a module.
            lora_rank: the largest of any module of the op.
        """
        wanted = -(-num_rows // tokens_per_worker)
        num_row_runs = min(wanted, max(1, num_workers // num_modules))
        num_columns = min(num_modules, num_workers)
        most = min(num_workers // (num_row_runs * num_columns), lora_rank // _LEAST_SLICE_RANK, _MOST_SLICES)
        # 1, 2 or 4: widths and ranks are multiples of these.
        num_slices = 1 << max(1, most).bit_length() - 1
        return OpCut(num_rows, num_modules, num_row_runs, num_columns, num_slices)

    @property
    def num_shares(self) -> int:
        """Workers that have something to do."""
        return self.num_row_runs * self.num_columns * self.num_slices

    def share(self, place: int) -> Share:
        """The place-th share, `place` being below `num_shares`: as many rows and modules as in any other, or
        one more or less of each. The slices of the same rows and modules have neighbouring places."""
        place, part = divmod(place, self.num_slices)
        run, column = divmod(place, self.num_columns)
        return Share(
            Slice(run, self.num_row_runs).of(self.num_rows),
            Slice(column, self.num_columns).of(self.num_modules),
            Slice(part, self.num_slices),
        )
