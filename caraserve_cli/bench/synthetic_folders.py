"""Synthetic adapters as folders on disk, for several processes that each read their part of every adapter.

Adapters of equal sizes have equal content, so that only one of them takes room.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.bench.peft_folders import write_adapter
from caraserve_cli.core import BaseShape
from caraserve_cli.fleet.surroundings import AdapterSource
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter


class SyntheticFolders:
    """Writes adapters in PEFT's format, each to the folder that has its name.

    Args:
        root: an empty folder; its owner removes it.
        adapters: those that can be asked for.
        shape: of the whole base.
        dtype: of the files.

    Raises:
        OSError: there is no room for them.
    """

    def __init__(
        self, root: Path, adapters: Iterable[SyntheticAdapter], shape: BaseShape, dtype: torch.dtype
    ) -> None:
        first: dict[tuple[int, tuple[str, ...]], Path] = {}
        for adapter in adapters:
            folder, size = root / adapter.name, (adapter.lora_rank, adapter.modules)
            if size not in first:
                folder.parent.mkdir(parents=True, exist_ok=True)
                write_adapter(folder, adapter, shape, dtype)
                first[size] = folder
            elif not folder.exists():
                folder.mkdir()
                for file in first[size].iterdir():
                    os.link(file, folder / file.name)
        self.source = AdapterSource(AdapterLibrary.scan((root,)))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.source.library.names)

    def forget_content(self) -> None:
        """Nothing is in memory."""
