"""The token that a Ray cluster may ask for, and one for a cluster of our own.

Ray's own way for a new cluster is a file in the user's home, made if it is not there: two runs that start at
once each write one, and only one of them is right; `ray start --head` asks for a token from then on; and the
environment stays changed when the cluster has gone. Nothing of that happens here.

Only `ray_cluster` and `ray_address` import this, where Ray is imported.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ray.exceptions import AuthenticationError

_raylet: Any = import_module("ray._raylet")  # whose stub leaves out what is used here

MODE, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"


@contextmanager
def own_token() -> Iterator[None]:
    """A token that is known to this process and to those that it starts meanwhile, and to nobody later; none
    where `RAY_AUTH_MODE` is `disabled`."""
    if os.environ.get(MODE, "").lower() == "disabled":
        yield
        return
    before = {name: os.environ.get(name) for name in (MODE, TOKEN)}
    set_variables({MODE: "token", TOKEN: secrets.token_hex(32)})
    try:
        yield
    finally:
        set_variables(before)


def set_variables(variables: Mapping[str, str | None]) -> None:
    """Set variables of the environment, or unset them, and have Ray read them again."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Ray has read both. The mode goes first: a thread of Ray's that is about to end would look for a token in
    # vain, and end this process.
    _raylet.Config.initialize("")
    _raylet.AuthenticationTokenLoader.instance().reset_cache()


def has_token() -> bool:
    """Whether Ray finds a token for this process, asked for or not."""
    try:
        return bool(_raylet.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    except AuthenticationError:
        return False  # RAY_AUTH_TOKEN_PATH names no file
