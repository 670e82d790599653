"""The token that a Ray cluster may ask for: one for a cluster of our own, a word where another's is missing.

Ray's own way for a new cluster is a file in the user's home, made if it is not there: two runs that start at
once each write one, and only one of them is right; `ray start --head` asks for a token from then on; and the
environment stays changed when the cluster has gone. Nothing of that happens here.

Only `ray_cluster` imports this, where it imports Ray.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ray.exceptions import AuthenticationError, RayError

from caraserve_cli.errors import InputError

_raylet: Any = import_module("ray._raylet")  # whose stub leaves out what is used here

_MODE, _TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
# Of no cluster. A client that has to ask for a cluster's identity first writes a refusal to stderr.
_NO_CLUSTER = "ab" * 28
_ANSWER_S = 2.0


@contextmanager
def own_token() -> Iterator[None]:
    """A token that is known to this process and to those that it starts meanwhile, and to nobody later; none
    where `RAY_AUTH_MODE` is `disabled`."""
    if os.environ.get(_MODE, "").lower() == "disabled":
        yield
        return
    before = {name: os.environ.get(name) for name in (_MODE, _TOKEN)}
    _set({_MODE: "token", _TOKEN: secrets.token_hex(32)})
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Ray has read both. The mode goes first: a thread of Ray's that is about to end would look for a token in
    # vain, and end this process.
    _raylet.Config.initialize("")
    _raylet.AuthenticationTokenLoader.instance().reset_cache()


def check_token(address: str) -> None:
    """Without a token Ray itself would try for 20 s and write as many lines, or abort.

    Args:
        address: of a cluster that is there: HOST:PORT, or `auto`.

    Raises:
        InputError: it asks for a token, and this process has none, or another one.
    """
    places = f"{_TOKEN}, from the file that RAY_AUTH_TOKEN_PATH names, or from ~/.ray/auth_token"
    is_told = os.environ.get(_MODE, "").lower() == "token"
    if is_told and not _has_token():
        raise InputError(f"--ray: {_MODE} is token, and there is none; Ray takes it from {places}")
    if address == "auto":
        found = _find_cluster()
        if found is None:
            return  # who joins it is told
        address = found
        if _MODE not in os.environ and _has_token():
            is_told = True  # Ray's rule for `auto`
            _set({_MODE: "token"})
    try:
        _raylet.GcsClient(address=address, cluster_id=_NO_CLUSTER).get_all_node_info(timeout=_ANSWER_S)
    except AuthenticationError as error:
        if "InvalidAuthToken" not in str(error):
            return  # it minds the cluster's identity, and so the token was right
        what = "the one here is another" if is_told else f"set {_MODE}=token"
        raise InputError(
            f"--ray: the Ray cluster at '{address}' asks for a token; {what}; Ray takes it from {places}"
        ) from error
    except RayError:
        return  # whatever it is, who joins it is told


def _has_token() -> bool:
    try:
        return bool(_raylet.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    except AuthenticationError:
        return False  # RAY_AUTH_TOKEN_PATH names no file


def _find_cluster() -> str | None:
    """Where `auto` leads."""
    services = import_module("ray._private.services")
    try:
        found: str | None = services.canonicalize_bootstrap_address("auto")
    except (ConnectionError, ValueError, OSError):
        return None
    return found
