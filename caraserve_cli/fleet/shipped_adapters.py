"""Adapters whose folders a replica's machine does not see: their files come through the driver, each once.

Configs come before the replica starts, so that all names are known; weights with the first request that needs
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.peft_config import CONFIG_NAME
from caraserve_cli.adapters.weight_file import BIN_NAME, SAFETENSORS_NAME
from caraserve_cli.fleet.guarded_folder import GuardedFolder

# Name of a file -> what is in it.
Files = Mapping[str, bytes]


def pack_config(folder: Path) -> bytes:
    """The config of the adapter in `folder`; empty where it cannot be read, which whoever needs it tells."""
    try:
        return (folder / CONFIG_NAME).read_bytes()
    except OSError:
        return b""


def pack_weights(folder: Path) -> dict[str, bytes]:
    """The weight file of the adapter in `folder`, the one that would be read there; empty where it cannot
    be."""
    for name in (SAFETENSORS_NAME, BIN_NAME):
        if (folder / name).exists():
            try:
                return {name: (folder / name).read_bytes()}
            except OSError:
                return {}
    return {}


class ShippedAdapters:
    """The replica's side: a folder of its own, which ends with its process.

    Args:
        configs: of all adapters, by name.

    Attributes:
        library: of these.
    """

    def __init__(self, configs: Mapping[str, bytes]) -> None:
        self._folder = GuardedFolder("caraserve-adapters-")
        folders = {name: self._folder.path / str(number) for number, name in enumerate(configs)}
        for name, folder in folders.items():
            folder.mkdir()
            (folder / CONFIG_NAME).write_bytes(configs[name])
        self.library = AdapterLibrary(folders)

    def unpack(self, adapter: str, files: Files) -> None:
        """The weights of an adapter have come."""
        for name, content in files.items():
            (self.library.path(adapter) / name).write_bytes(content)

    def close(self) -> None:
        """Remove all files."""
        self._folder.close()
