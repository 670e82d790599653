"""What is known of adapters without their weights, told from config and header when it is first asked for.

Kept for good: planning asks for it long after the weights are dropped. So are refusals: what is refused
once is never read again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

import torch

from caraserve_cli.adapters.file_stamp import FILES_CHANGED, FileStamp, stamp_files
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.packing import Packer
from caraserve_cli.adapters.weights import AdapterOutline
from caraserve_cli.core import AdapterInfo, BaseShape
from caraserve_cli.errors import AdapterError

# Name, folder, the base's shape -> the outline of an adapter; raises AdapterError.
OutlineAdapter: TypeAlias = Callable[[str, Path, BaseShape], AdapterOutline]

_IDENTITY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Description:
    """An adapter as its files were when it was first seen.

    `info.num_bytes` is what its weights take in the form in which the run holds them.
    """

    info: AdapterInfo
    outline: AdapterOutline
    folder: Path
    stamps: tuple[FileStamp | None, ...]

    def check(self, outline: AdapterOutline) -> None:
        """To be called after its weights were read, and turned out to have this outline.

        The files' stamps are compared, not their content, which would cost a hash of all of it with every
        read (128 MiB: 0.13 s). They were taken before the header was read: a change at any time since is
        seen, unless someone also sets back the file's time.

        Raises:
            AdapterError: the files are others now. What was planned with the old ones, and prefixes
                computed with them, do not hold for these.
        """
        if stamp_files(self.folder) != self.stamps or outline != self.outline:
            raise AdapterError(self.info.name, FILES_CHANGED)


class Descriptions:
    """Descriptions and refusals of a library's adapters, by name. Any thread may ask: each entry is
    written in one step, and of two threads that read the same header the first has its way.

    Args:
        library: which adapters exist.
        shape: the base that they must fit.
        dtype: of the weights in memory.
        packer: of the form in which they are held; None if they are not packed.
        outline: what tells the outline of one.
    """

    def __init__(
        self,
        library: AdapterLibrary,
        shape: BaseShape,
        dtype: torch.dtype,
        packer: Packer | None,
        outline: OutlineAdapter,
    ) -> None:
        self._library, self._shape, self._dtype, self._packer = library, shape, dtype, packer
        self._outline = outline
        self._known: dict[str, Description] = {}
        self._refused: dict[str, AdapterError] = {}

    def of(self, name: str) -> Description:
        """Description of the adapter called `name`; reads config and header the first time.

        Raises:
            AdapterError: it does not exist or is refused.
        """
        self.check(name)
        if (known := self._known.get(name)) is not None:
            return known
        folder = self._library.path(name)
        stamps = stamp_files(folder)
        try:
            outline = self._outline(name, folder, self._shape)
            info = AdapterInfo(
                name=name,
                lora_rank=outline.lora_rank,
                num_bytes=self._num_elements(outline) * self._dtype.itemsize,
                identity=blake2b(name.encode(), digest_size=_IDENTITY_BYTES).digest(),
            )
        except AdapterError as error:
            self.refuse(error)
            raise
        return self._known.setdefault(name, Description(info, outline, folder, stamps))

    def check(self, name: str) -> None:
        """Raises AdapterError if the adapter has been refused."""
        if (refused := self._refused.get(name)) is not None:
            raise AdapterError(refused.adapter, refused.reason)

    def refuse(self, error: AdapterError) -> None:
        """Remember that an adapter cannot be served; one that does not exist is known without."""
        if error.adapter in self._library:
            # Without its traceback, which would keep half-read tensors alive.
            self._refused[error.adapter] = AdapterError(error.adapter, error.reason)

    def is_hopeless(self, name: str) -> bool:
        """Whether reading the adapter would surely fail."""
        return name in self._refused or name not in self._library

    def _num_elements(self, outline: AdapterOutline) -> int:
        if self._packer is None:
            return outline.num_elements(self._shape)
        return self._packer.lay_out(outline).num_elements
