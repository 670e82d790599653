"""Whether a Ray cluster can be joined, looked at before Ray tries: it would try for minutes, write a line
every few seconds, and at last say nothing of the cause; or abort.

Only `ray_cluster` imports this, where it imports Ray.
"""

from __future__ import annotations

import os
import socket
from importlib import import_module
from typing import Any

from ray.exceptions import AuthenticationError, RayError

from caraserve_cli.errors import InputError, OptionError
from caraserve_cli.fleet.head_watch import GREETING, is_greeting
from caraserve_cli.fleet.ray_token import MODE, TOKEN, has_token, set_variables

_raylet: Any = import_module("ray._raylet")  # whose stub leaves out what is used here

_CONNECT_S = 5.0
# Of no cluster. A client that has to ask for a cluster's identity first writes a refusal to stderr.
_NO_CLUSTER = "ab" * 28
# An idle head has answered in 2 to 8 ms; it may be busy.
_ANSWER_S = 10.0
_TOKEN_PLACES = f"{TOKEN}, from the file that RAY_AUTH_TOKEN_PATH names, or from ~/.ray/auth_token"


def check_address(address: str) -> None:
    """Look whether this process can join.

    Args:
        address: of a cluster: HOST:PORT, or `auto`, for one on this machine, to which, as Ray has it, this
            process shows the user's token, asked for or not.

    Raises:
        OptionError: it is no address.
        InputError: no cluster's head is there, or it asks for a token, and this process has none, or another.
    """
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal()):
        raise OptionError(f"--ray: '{address}' is no address; write HOST:PORT, or auto")
    is_told = os.environ.get(MODE, "").lower() == "token"
    if is_told and not has_token():
        raise InputError(f"--ray: {MODE} is token, and there is none; Ray takes it from {_TOKEN_PLACES}")
    if address == "auto":
        found = _find_cluster()
        if found is None:
            return  # who joins it is told
        address = found
        if MODE not in os.environ and has_token():
            is_told = True
            set_variables({MODE: "token"})
    _check_listener(address)
    _check_head(address, is_told)


def _find_cluster() -> str | None:
    """Where `auto` leads."""
    services = import_module("ray._private.services")
    try:
        found: str | None = services.canonicalize_bootstrap_address("auto")
    except (ConnectionError, ValueError, OSError, RuntimeError):
        return None
    return found


def _check_listener(address: str) -> None:
    """Whether somebody there speaks as a head does."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S) as connection:
            connection.sendall(GREETING)
            # With TLS it would answer another greeting.
            is_head = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true") or is_greeting(connection)
    except TimeoutError:
        is_head = False
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--ray: no Ray cluster listens at '{address}' ({error}); start one with `ray start --head`, or "
            "give the address that it printed"
        ) from error
    if not is_head:
        raise _no_head(address)


def _check_head(address: str, is_told: bool) -> None:
    """Whether it is one, and answers this process."""
    try:
        _raylet.GcsClient(address=address, cluster_id=_NO_CLUSTER).get_all_node_info(timeout=_ANSWER_S)
    except AuthenticationError as error:
        if "InvalidAuthToken" not in str(error):
            return  # it minds the cluster's identity, and so the token was right
        what = "the one here is another" if is_told else f"set {MODE}=token"
        raise InputError(
            f"--ray: the Ray cluster at '{address}' asks for a token; {what}; Ray takes it from "
            f"{_TOKEN_PLACES}"
        ) from error
    except RayError as error:
        raise _no_head(address) from error


def _no_head(address: str) -> InputError:
    return InputError(
        f"--ray: what listens at '{address}' does not answer as the head of a Ray cluster; give the address "
        "that `ray start --head` printed, with port 6379 unless it was told another (8265 is the dashboard's)"
    )
