"""Where profiles lie: one file for each machine, base and dtype, below the user's cache folder."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from caraserve_cli.errors import OutputError, ProfileError
from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.perf.profile_json import from_json, to_json

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9.-]+")
_HASH_BYTES = 4


def default_folder() -> Path:
    """`caraserve/profiles` in XDG_CACHE_HOME, or in ~/.cache where that is not set."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "caraserve" / "profiles"


def machine_id(device: str, num_cores: int) -> str:
    """Names a kind of machine: equal machines that share a home folder share a profile."""
    return f"{_NOT_IN_NAMES.sub('-', device).strip('-').lower()}-{num_cores}-cores"


class ProfileStore:
    """The profiles below a folder.

    Args:
        folder: need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, machine: str, base: str, dtype: str) -> Path:
        """The file of a profile, whether it is there or not. A base that is a folder or a hub id has its hash
        in the name, so that no two share a file."""
        name = base
        if _NOT_IN_NAMES.search(base):
            digest = blake2b(base.encode(), digest_size=_HASH_BYTES).hexdigest()
            name = f"{_NOT_IN_NAMES.sub('-', base).strip('-')[-100:]}-{digest}"
        return self._folder / machine / f"{name}-{dtype}.json"

    def load(self, machine: str, base: str, dtype: str) -> MachineProfile | None:
        """The profile; None where none was stored.

        Raises:
            ProfileError: there is a file, and it cannot be read as a profile of this base and version.
        """
        path = self.path(machine, base, dtype)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ProfileError(
                f"profile '{path}' cannot be read: {error.strerror}; make it readable, or remove it and run "
                "`caraserve profile` again"
            ) from error
        profile = from_json(content, str(path))
        if (profile.base, profile.dtype) != (base, dtype):
            raise ProfileError(
                f"profile '{path}' is of '{profile.base}' in {profile.dtype}; run `caraserve profile` again"
            )
        return profile

    def save(self, machine: str, profile: MachineProfile) -> Path:
        """Write a profile, in place of an earlier one; nobody ever reads half of it. Where it lies now.

        Raises:
            OutputError: it cannot be written.
        """
        path = self.path(machine, profile.base, profile.dtype)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(to_json(profile))
            unfinished.replace(path)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            raise OutputError(
                f"profile '{path}' cannot be written: {error.strerror}; free it, or set XDG_CACHE_HOME to a "
                "folder that can be written"
            ) from error
        return path
