"""A dataset on the Hugging Face Hub, or on the server that HF_ENDPOINT names: its name, and its opening.

Knows nothing of rows and columns.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from typing import Any

from caraserve_cli.errors import InputError

HUB_PREFIX = "hf://"
# As in `huggingface_hub`'s own paths.
_KIND = "datasets/"
# A read that is under way when no more is wanted: how long it is waited for, how often it is looked for, and
# how often in a row nothing must be found, for Arrow reads part after part. Chosen, not measured.
_LAST_READ_S = 10.0
_LOOK_S = 0.01
_LOOKS = 5
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def hub_name(path: str) -> str:
    """OWNER/NAME of `hf://OWNER/NAME` and of `hf://datasets/OWNER/NAME`."""
    return path.removeprefix(HUB_PREFIX).removeprefix(_KIND)


def check_hub_name(source: str, name: str) -> None:
    """Refuse what names no dataset.

    Raises:
        InputError: it is not of the form OWNER/NAME.
    """
    if _NAME.fullmatch(name) is None:
        raise InputError(
            f"dataset '{source}': a dataset's name is OWNER/NAME; ?split=, config= and revision= choose in "
            "it, and a single file of it has to be downloaded first"
        )


def open_on_hub(name: str, config: str | None, revision: str | None, source: str) -> Any:
    """Its builder, as `datasets` calls what can be streamed.

    Args:
        name: OWNER/NAME.
        config: None takes the default one.
        revision: None takes the newest.
        source: what messages call it.

    Raises:
        InputError: there is only a copy in the cache, of whatever revision, and the user has not asked for
            that by HF_HUB_OFFLINE.
    """
    import datasets
    import huggingface_hub
    from datasets.packaged_modules.cache.cache import Cache

    # It tells of each of five tries.
    huggingface_hub.logging.set_verbosity(logging.CRITICAL)
    # With the prefix a folder of that name is not looked for.
    builder = datasets.load_dataset_builder(f"{HUB_PREFIX}{_KIND}{name}", name=config, revision=revision)
    if not isinstance(builder, Cache):
        return builder
    if not datasets.config.HF_HUB_OFFLINE:
        raise InputError(
            f"{source} cannot be reached, and only the copy of an earlier download is there; "
            "check the network, or take the copy by HF_HUB_OFFLINE=1"
        )
    if revision is not None:
        raise InputError(
            f"{source}: HF_HUB_OFFLINE is set, and of which revision the downloaded copy is cannot be told; "
            "leave out revision=, or unset the variable"
        )
    return builder


def told_by_hub(error: BaseException) -> str:
    """What to do about an error while a dataset of the Hub was opened or read."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, DatasetNotFoundError | GatedRepoError | RepositoryNotFoundError):
        return "; a private or gated one needs a token: `hf auth login`, or the variable HF_TOKEN"
    if isinstance(error, ConnectionError):
        endpoint = os.environ.get("HF_ENDPOINT")
        return "; check the network" + (f", and HF_ENDPOINT, which is {endpoint}" if endpoint else "")
    return ""


def wait_for_readers() -> None:
    """Wait until Arrow's threads have left Python, where they read the files of the Hub.

    One that is there when the interpreter ends makes the process hang, or die of it: of three runs that had
    left a Parquet file in the middle two were ended by SIGABRT (pyarrow 26).
    """
    until_s = time.monotonic() + _LAST_READ_S
    num_quiet = 0
    while num_quiet < _LOOKS and time.monotonic() < until_s:
        of_python = {each.ident for each in threading.enumerate() if not _is_foreign(each)}
        num_quiet = 0 if sys._current_frames().keys() - of_python else num_quiet + 1
        time.sleep(_LOOK_S)


def _is_foreign(thread: threading.Thread) -> bool:
    """Whether Python knows it only from its asking which thread it is."""
    return isinstance(thread, threading._DummyThread)
