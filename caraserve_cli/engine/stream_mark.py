"""A point in a GPU's stream of work that the host can wait for. On the CPU, where work is done when its call
returns, there is nothing to wait for."""

from __future__ import annotations

import torch


class StreamMark:
    """Set by `record`, waited for by `wait`; not set, it is no reason to wait."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def record(self) -> None:
        """All work queued so far comes before this point."""
        if self._event is not None:
            self._event.record()

    @property
    def is_past(self) -> bool:
        """Whether the work before the point is done; True where no point was recorded."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Until the work before the point is done."""
        if self._event is not None:
            self._event.synchronize()
