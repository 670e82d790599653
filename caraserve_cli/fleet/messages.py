"""What a fleet's driver and its replicas tell each other, in lists. Data and nothing but data."""

from __future__ import annotations

from dataclasses import dataclass, field

from caraserve_cli.config import EngineConfig
from caraserve_cli.core import BaseShape, Completion, Failure
from caraserve_cli.events import StepRecord
from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.perf.step_correction import StepCorrections

Outcome = Completion | Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """Where the process of a replica runs, before it has any replica.

    Attributes:
        host_name: of the machine.
        boot_id: of its kernel; processes with the same one read the same monotonic clock.
        pid: of the process.
        cores: that the process may use.
        free_bytes: of host memory.
        version: of the program there.
        missing_paths: those that were asked about and are not there.
    """

    host_name: str
    boot_id: str
    pid: int
    cores: tuple[int, ...]
    free_bytes: int
    version: str
    missing_paths: tuple[str, ...] = ()

    @property
    def machine(self) -> tuple[str, str]:
        """Equal for processes that share cores and memory."""
        return self.host_name, self.boot_id


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineShare:
    """What one of the replicas on a machine may use of it.

    Attributes:
        cores: its own, or all of them where there are fewer cores than replicas.
        num_threads: of torch.
        host_bytes: of memory.
    """

    cores: tuple[int, ...]
    num_threads: int
    host_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaDescription:
    """A replica that is ready to answer.

    Attributes:
        device: in words.
        memory: how it is shared out, in words.
        config: of its engine.
        shape: of the base.
        dtype: of its weights.
        profile: of its machine with its base; None where none was measured.
        is_padded: whether its LoRA kernel pads.
        is_on_gpu: whether its base is.
        num_cpu_workers: that assist cold starts.
        startup_s: how long it took to start.
    """

    device: str
    memory: str
    config: EngineConfig
    shape: BaseShape
    dtype: str
    profile: MachineProfile | None
    is_padded: bool
    is_on_gpu: bool
    num_cpu_workers: int
    startup_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """The `CaraServeError` for which a replica did not start, as it passes between processes."""

    message: str
    exit_status: int


@dataclass(slots=True, kw_only=True)
class ReplicaNews:
    """What happened on a replica since it last told.

    Attributes:
        outcomes: what has ended.
        started: ids of requests with their first token, in no particular order.
        records: of its steps.
        adapters_came, adapters_left: by name, to the device or on their way there, and off it; none is in
            both.
        link_free_ms: when its link will have done all that it has to copy, on the run's clock.
        corrections: what its steps so far say of the model of its machine.
        num_running: requests that were part of its last step.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    records: list[StepRecord] = field(default_factory=list)
    adapters_came: list[str] = field(default_factory=list)
    adapters_left: list[str] = field(default_factory=list)
    link_free_ms: float | None = None
    corrections: StepCorrections | None = None
    num_running: int = 0
