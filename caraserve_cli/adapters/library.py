"""Which adapters exist: every folder below the given roots that holds an adapter_config.json.

A walk over folders and nothing more: no file is opened, no torch is imported.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePath

from caraserve_cli.adapters.peft_config import CONFIG_NAME
from caraserve_cli.errors import AdapterError, OptionError

# (device, inode) of a folder
_FolderId = tuple[int, int]


class AdapterLibrary:
    """Adapters by name. The name is the folder's path relative to its root, with forward slashes; a root that
    is an adapter itself goes by its own folder's name."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = {name: folders[name] for name in sorted(folders)}
        # Among ten thousand names a search takes 0.1 s, and a file may ask for one wrong name in every line.
        self._search = lru_cache(maxsize=1024)(self._search_closest)

    def __reduce__(self) -> tuple[type[AdapterLibrary], tuple[Mapping[str, Path]]]:
        """What another process needs to have the same library; not what was searched for."""
        return AdapterLibrary, (self._folders,)

    @classmethod
    def scan(cls, roots: Sequence[Path]) -> AdapterLibrary:
        """All adapters below `roots`. Hidden folders are left out, links to folders are followed.

        Raises:
            OptionError: a root is no readable folder, or two adapters share a name. The same folder, given
                twice, is one adapter.
        """
        folders: dict[str, Path] = {}
        for root in roots:
            if not root.is_dir():
                problem = "is not a folder" if root.exists() else "does not exist"
                raise OptionError(f"--adapters: {root} {problem}")
            for folder in _adapter_folders(root):
                name = root.resolve().name if folder == root else folder.relative_to(root).as_posix()
                if name in folders:
                    if folders[name].samefile(folder):
                        continue
                    raise OptionError(
                        f"--adapters: the name '{name}' belongs to both {folders[name]} and {folder}; "
                        "rename one or give only one of the folders"
                    )
                folders[name] = folder
        return cls(folders)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(self._folders)

    def __len__(self) -> int:
        return len(self._folders)

    def __contains__(self, name: object) -> bool:
        return name in self._folders

    def path(self, name: str) -> Path:
        """The folder of the adapter called `name`.

        Raises:
            AdapterError: there is none; the message suggests the nearest name.
        """
        folder = self._folders.get(name)
        if folder is None:
            nearest = self.closest(name)
            hint = f"did you mean '{nearest}'?" if nearest else f"there are {len(self)} others"
            raise AdapterError(name, f"no such adapter; {hint}")
        return folder

    def closest(self, name: str) -> str | None:
        """The existing name most like `name`, or None where nothing is like it."""
        return self._search(name)

    def _search_closest(self, name: str) -> str | None:
        # Whoever leaves out the folders that it is in is far from its name.
        same = (known for known in self._folders if PurePath(known).name == name)
        close = difflib.get_close_matches(name, self._folders, n=1)
        return next(chain(same, close), None)


def _adapter_folders(root: Path) -> Iterator[Path]:
    """Folders with an adapter_config.json, `root` included, whether they lie in one another or not."""
    pending: list[tuple[Path, frozenset[_FolderId]]] = [(root, frozenset())]
    while pending:
        folder, ancestors = pending.pop()
        try:
            status = folder.stat()
            folder_id = (status.st_dev, status.st_ino)
            if folder_id in ancestors:
                continue  # A link back to a folder that this one lies in.
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name == CONFIG_NAME:
                        yield folder
                    elif not entry.name.startswith(".") and _is_folder(entry):
                        pending.append((folder / entry.name, ancestors | {folder_id}))
        except OSError as error:
            raise OptionError(f"--adapters: {folder} cannot be read: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A link to itself or to nowhere is no folder; `entry.is_dir` would raise for the first.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
