"""A fleet of Ray actors, before it is started: what its driver knows without touching any device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from caraserve_cli.adapters.description import Descriptions
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.packing import Packer
from caraserve_cli.core import AdapterInfo, Request
from caraserve_cli.errors import AdapterError, OptionError, RowError, RowErrorCode
from caraserve_cli.events import EventSink
from caraserve_cli.fleet.account import FleetAccount
from caraserve_cli.fleet.cold_start import check_cold_start
from caraserve_cli.fleet.fleet import Fleet
from caraserve_cli.fleet.fleet_options import DEFAULT_PLACEMENT, MODEL_PLACEMENTS, FleetOptions
from caraserve_cli.fleet.machine import choose_device, choose_dtype, dtype_name
from caraserve_cli.fleet.messages import ReplicaDescription
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.ray_cluster import RayCluster, require_ray
from caraserve_cli.fleet.replica import Replica
from caraserve_cli.fleet.surroundings import AdapterSource, check_lora_kernel, copies_adapters
from caraserve_cli.model.resolve import resolve_base
from caraserve_cli.model.tokenizer import load_tokenizer
from caraserve_cli.placement.catalogue import placement

if TYPE_CHECKING:
    from caraserve_cli.fleet.ray_crew import RayCrew


class FleetSource:
    """See `ReplicaSource`. Device and dtype are the same for all replicas: those of `options`, where `auto`
    is a GPU each if there are any, and the dtype that suits this machine's processor or any GPU.

    Args:
        options: of each replica.
        fleet: how many, where, and how they are chosen.
        on_note: as in `Fleet`.

    Raises:
        OptionError: an option cannot be met, or Ray is not installed.
        InputError: there is no such cluster.
        BaseModelError: the base is missing or cannot be honoured.
    """

    def __init__(self, options: ReplicaOptions, fleet: FleetOptions, on_note: Callable[[str], None]) -> None:
        require_ray(fleet)
        self._fleet, self._on_note = fleet, on_note
        self._placement = placement(fleet.placement or DEFAULT_PLACEMENT, options.seed)
        self.base = resolve_base(options.base, options.weights)
        adapters = AdapterSource(AdapterLibrary.scan(options.adapter_roots))
        self.library = adapters.library
        self.tokenizer = None if self.base.folder is None else load_tokenizer(self.base.folder)
        self._cluster: RayCluster | None = None
        self._crew: RayCrew | None = None
        self.account: FleetAccount | None = None
        self._descriptions: Sequence[ReplicaDescription] = ()
        try:
            if fleet.ray is not None:
                self._cluster = RayCluster(fleet.ray)
            device = self._choose_device(options.device)
            self._num_replicas = self._count_replicas(device)
        except BaseException:
            self.close()
            raise
        self.dtype = choose_dtype(options.dtype, device, self.base.config.dtype)
        check_lora_kernel(options.lora_kernel, device)
        if fleet.ray is None:
            check_cold_start(options, device)
        self._options = replace(
            options,
            device="cuda" if device.type == "cuda" else "cpu",
            dtype=dtype_name(self.dtype),
            # Actors have other working folders.
            base=str(Path(options.base).resolve()) if Path(options.base).is_dir() else options.base,
            adapter_roots=tuple(root.resolve() for root in options.adapter_roots),
        )
        shape = self.base.config.shape
        packer = None
        if copies_adapters(device):
            packer = Packer(shape, adapters.choose_form(options.lora_kernel, shape), pinned=False)
        self._known = Descriptions(self.library, shape, self.dtype, packer, adapters.outline)

    @property
    def most_running(self) -> int:
        return self._num_replicas * self._options.max_running

    @property
    def device_description(self) -> str:
        devices = Counter(description.device for description in self._descriptions)
        if not devices:
            return f"{self._num_replicas} on {self._options.device}"
        return ", ".join(f"{device} ({count} replicas)" for device, count in devices.items())

    @property
    def memory_description(self) -> str:
        plans = list(dict.fromkeys(description.memory for description in self._descriptions))
        return "; ".join(plans)

    @property
    def notes(self) -> Sequence[str]:
        """See `ReplicaSource`."""
        if self.account is None or self.account.has_measured_models:
            return ()
        if self.account.placement not in MODEL_PLACEMENTS:
            return ()
        return (
            f"placement {self.account.placement} goes by assumed step times: not every machine has a profile "
            "of this base; `caraserve profile` measures one",
        )

    def start(self, clock_ms: Callable[[], float], events: EventSink) -> Replica:
        """See `ReplicaSource.start`."""
        is_on_gpu = self._options.device == "cuda"
        if self._cluster is None:
            self._cluster = RayCluster(None, self._num_replicas, self._num_replicas if is_on_gpu else 0)
        from caraserve_cli.fleet.ray_crew import RayCrew

        self._crew = RayCrew(
            self._cluster,
            self._options,
            self._num_replicas,
            is_on_gpu=is_on_gpu,
            library=self.library,
            clock_ms=clock_ms,
        )
        self._descriptions = self._crew.descriptions
        fleet = Fleet(
            self._crew,
            self._placement,
            self._describe_adapter,
            clock_ms,
            events,
            self._on_note,
            clock_error_ms=self._crew.clock_error_ms,
        )
        self.account = fleet.account
        return fleet

    def close(self) -> None:
        """See `ReplicaSource.close`."""
        if self._cluster is not None:
            self._cluster.close()

    def _choose_device(self, name: str) -> torch.device:
        if self._cluster is None:
            return choose_device(name)
        if name == "cuda" and not self._cluster.num_gpus:
            raise OptionError("--device: 'cuda' was asked for and the cluster has no GPU; use --device cpu")
        return torch.device("cpu" if name == "cpu" or not self._cluster.num_gpus else "cuda")

    def _count_replicas(self, device: torch.device) -> int:
        """How many there will be.

        Raises:
            OptionError: there is no room for so many.
        """
        asked, cluster = self._fleet.replicas, self._cluster
        is_on_gpu = device.type == "cuda"
        if cluster is None:
            num_gpus = torch.cuda.device_count() if is_on_gpu else 0
            if is_on_gpu and asked is not None and asked > num_gpus:
                raise OptionError(
                    f"--replicas: {asked} are asked for, each with a GPU, and there are {num_gpus}; use at "
                    f"most {num_gpus}, or --device cpu"
                )
            return asked or 1
        if asked is None:
            asked = cluster.num_gpus if is_on_gpu else cluster.num_machines
        resource = "GPU" if is_on_gpu else "CPU"
        num_free = cluster.num_free(resource)
        if asked > num_free:
            raise OptionError(
                f"--replicas: {asked} are asked for, each with a {resource}, and of those of the cluster "
                f"{num_free} are free; ask for fewer"
            )
        return asked

    def _describe_adapter(self, request: Request) -> AdapterInfo | None:
        """As `Surroundings.describe_adapter`."""
        if request.adapter is None:
            return None
        try:
            return self._known.of(request.adapter).info
        except AdapterError as error:
            raise RowError(RowErrorCode.ADAPTER_REFUSED, str(error), request.id) from error
