"""A Ray cluster: one that is there already, or one on this machine that lives as long as this object.

Nothing but this file, `ray_address`, `ray_token`, `ray_crew` and what that is made of (`ray_calls`,
`ray_seat`) imports Ray, and only when a cluster is opened. Plain Ray Core: no dashboard, no Serve.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from shutil import rmtree
from typing import Any, Self

from caraserve_cli.errors import InputError, OptionError
from caraserve_cli.fleet.fleet_options import FleetOptions
from caraserve_cli.fleet.guarded_folder import GuardedFolder
from caraserve_cli.fleet.head_watch import HeadWatch

# What Ray would do otherwise: report its use over the network, hide all GPUs from who asked for none, warn of
# results that nobody looks at any more, abort at SIGTERM.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
}
# Of a local cluster. Lists of requests and results are a few hundred kilobytes. Chosen, not measured.
_OBJECT_STORE_BYTES = 128 * 2**20
# For how long a cluster's head may be away: nobody starts that of an own cluster again; another's may come
# back, for which Ray waits for 60 s before it ends this process. Chosen, not measured.
_OWN_HEAD_S, _HEAD_S = 5.0, 45.0
# In which a head says what machines there are; one that has more to do is asked again. Chosen, not measured.
_MACHINES_S = 2.0


def require_ray(options: FleetOptions) -> None:
    """Refuse what needs Ray where it is not installed.

    Raises:
        OptionError: it is not; the message says what to install.
    """
    if find_spec("ray") is None:
        raise OptionError(
            f"{options.asked_by}: replicas in processes of their own need Ray, which is not installed; "
            "pip install 'caraserve[ray]'"
        )


class RayCluster:
    """This process as a driver of a cluster.

    Args:
        address: of a cluster; None for one of its own on this machine.
        num_replicas: that a cluster of its own has room for.
        num_gpus: of this machine, for the same.

    Raises:
        OptionError: the address is malformed.
        InputError: there is no such cluster, it asks for a token that is not here, or none can be started.
    """

    def __init__(self, address: str | None, num_replicas: int = 1, num_gpus: int = 0) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        import ray

        from caraserve_cli.fleet.ray_token import own_token

        self._ray = ray
        self._token = ExitStack()
        self._folder: GuardedFolder | None = None
        self._head: HeadWatch | None = None
        own: dict[str, Any] = {"address": address}
        if address is None:
            self._folder = GuardedFolder("caraserve-ray-")
            self._token.enter_context(own_token())
            own = {
                "address": "local",
                "num_cpus": num_replicas,
                "num_gpus": num_gpus,
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
                "_temp_dir": str(self._folder.path),
            }
        try:
            self._connect(own, address)
            head = ray.get_runtime_context().gcs_address
            self._head = HeadWatch(head, _OWN_HEAD_S if address is None else _HEAD_S)
        except BaseException:
            self.close()
            raise

    def _connect(self, own: dict[str, Any], address: str | None) -> None:
        ray = self._ray
        from caraserve_cli.fleet.ray_address import check_address

        # Errors of replicas reach the driver with what it asks them; Ray prints them to stdout as well.
        ray._private.worker.print_to_stdstream = _drop
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        if address is not None:
            check_address(address)
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                **own,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.CRITICAL,
            )
        except SystemExit:  # SIGTERM, as Ray's own handler has it
            signal.signal(signal.SIGTERM, on_sigterm)
            signal.raise_signal(signal.SIGTERM)
            raise
        except (ConnectionError, ValueError, OSError, RuntimeError) as error:
            where = "on this machine" if address is None else f"at '{address}'"
            what = "no Ray cluster starts" if address is None else "there is no Ray cluster to join"
            raise InputError(
                f"{'--replicas' if address is None else '--ray'}: {what} {where}: {_first_line(error)}"
            ) from error
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def num_gpus(self) -> int:
        """Of the whole cluster."""
        return int(self._ray.cluster_resources().get("GPU", 0))

    @property
    def num_machines(self) -> int:
        """That are part of it now."""
        return sum(bool(node["Alive"]) for node in self._ray.nodes())

    def num_free(self, resource: str) -> int:
        """How many units of a resource, `GPU` or `CPU`, nobody has taken."""
        return int(self._ray.available_resources().get(resource, 0))

    def check_head(self) -> None:
        """Look for the cluster's head now and then.

        Raises:
            InputError: it is gone, and with it the cluster.
        """
        if self._head is not None:
            self._head.check()

    def check_machines(self) -> None:
        """Ask whether any machine is left.

        Raises:
            InputError: none is.
        """
        if self._head is not None and self._head.is_there and self._count_machines() == 0:
            raise InputError(
                "the Ray cluster has ended: none of its machines is alive; to go on, give the same command "
                "with --resume"
            )

    def _count_machines(self) -> int | None:
        """`num_machines`, or None where the head does not say in time.

        `ray.nodes` waits without end for a head that was stopped since it was last looked for. This call, of
        Ray's own use, has a deadline.
        """
        from ray.core.generated.gcs_pb2 import GcsNodeInfo
        from ray.exceptions import RayError

        head = self._ray._private.worker.global_worker.gcs_client
        try:
            nodes = head.get_all_node_info(timeout=_MACHINES_S)
        except RayError:
            return None
        return sum(bool(node.state == GcsNodeInfo.ALIVE) for node in nodes.values())

    def close(self) -> None:
        """Leave the cluster; one of its own ends, with all its processes. A second call does nothing."""
        if self._head is not None:
            self._head.look()
            if self._head.is_silent:
                self._leave_silent()
                return
        self._shut_down()

    def _leave_silent(self) -> None:
        """Without the leave of a head that does not answer, for which Ray would wait without end, now or when
        this process ends. The head of an own cluster ends first.

        Ray's threads go on then. Who takes the process apart under them has it end by a signal now and then
        (2 of 6 times, Ray 2.60): `program`, the command, does not."""
        if self._folder is None:
            atexit.unregister(self._ray.shutdown)
        else:
            self._folder.close()
            self._shut_down()
            # Ray makes the folder of its session anew, to leave it.
            rmtree(self._folder.path, ignore_errors=True)

    def _shut_down(self) -> None:
        with suppress(Exception):  # whatever state a start that was broken off has left
            self._ray.shutdown()
        if self._folder is not None:
            self._folder.close()
        self._token.close()


def _drop(*_args: object, **_options: object) -> None:
    """In place of what prints."""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
