"""A replica in a process of its own: the engine steps in a thread that waits for nobody but its requests.

What its process is told and asked comes in other threads, which only take from and add to lists. Knows no
Ray.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from caraserve_cli.core import Request
from caraserve_cli.errors import CaraServeError, ExitStatus, InputError
from caraserve_cli.events import StepRecord
from caraserve_cli.fleet.host import host_facts
from caraserve_cli.fleet.host_clock import HostedClock, monotonic_ms
from caraserve_cli.fleet.messages import HostFacts, MachineShare, Refusal, ReplicaDescription, ReplicaNews
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.shipped_adapters import Files, ShippedAdapters
from caraserve_cli.import_pause import import_pause

if TYPE_CHECKING:
    from caraserve_cli.fleet.hosted_engine import HostedEngine

# News are told no more often, so that a list has several, and the engine's thread is seldom interrupted.
# Chosen, not measured.
NEWS_INTERVAL_S = 0.005


class HostedReplica:
    """What runs in the process of a replica."""

    def __init__(self) -> None:
        self._clock = HostedClock()
        # Guards all that follows, and is notified of every change to it.
        self._changed = threading.Condition()
        self._arrived: list[Request] = []
        self._news = ReplicaNews()
        self._description: ReplicaDescription | Refusal | None = None
        self._error: BaseException | None = None
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._told_s = 0.0
        self._shipped: ShippedAdapters | None = None

    def where(self, paths: Sequence[str] = ()) -> HostFacts:
        """Where this process is; see `host_facts`."""
        return host_facts(paths)

    def now_ms(self) -> float:
        """This process's monotonic clock."""
        return monotonic_ms()

    def start(
        self, options: ReplicaOptions, share: MachineShare, configs: Mapping[str, bytes] | None = None
    ) -> ReplicaDescription | Refusal:
        """Load the base and be ready.

        Args:
            options: of the replica.
            share: what it may use of its machine.
            configs: of all adapters, where they are shipped here; None where their folders are to be seen.

        Raises:
            Exception: what went wrong and is no user's to cause.
        """
        options = replace(options, host_memory_bytes=share.host_bytes)
        if configs is not None:
            self._shipped = ShippedAdapters(configs)
        self._thread = threading.Thread(
            target=self._work, args=(options, share), name="caraserve-engine", daemon=True
        )
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._description is not None or self._error is not None)
            if self._description is None:
                self._raise_error()
            assert self._description is not None
            return self._description

    def submit(
        self, requests: Sequence[Request], origin_ms: float, shipped: Sequence[str] = (), *files: Files
    ) -> None:
        """Queue requests.

        Args:
            requests: in the order in which they are to be served.
            origin_ms: what this process's clock shows when the run's is at 0.
            shipped: adapters of which the weights come with these requests.
            files: of each of them.
        """
        for adapter, of_adapter in zip(shipped, files, strict=True):
            assert self._shipped is not None, "its machine sees the adapters"
            self._shipped.unpack(adapter, of_adapter)
        with self._changed:
            self._clock.set(origin_ms)
            self._arrived += requests
            self._changed.notify_all()

    def poll(self, most_wait_s: float) -> ReplicaNews:
        """What happened since the last call; waits for something to have ended or started.

        Raises:
            Exception: what ended the engine and is no user's to cause.
        """
        with self._changed:
            self._changed.wait_for(self._has_news, most_wait_s)
            until_due_s = self._told_s + NEWS_INTERVAL_S - time.monotonic()
        if until_due_s > 0:
            time.sleep(until_due_s)
        with self._changed:
            self._raise_error()
            news, self._news = self._news, ReplicaNews(num_running=self._news.num_running)
        self._told_s = time.monotonic()
        return news

    def close(self) -> None:
        """End the engine after its step, and its CPU workers; it answers nothing any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._shipped is not None:
            self._shipped.close()

    def _has_news(self) -> bool:
        news = self._news
        return bool(news.outcomes or news.started or self._error)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self, options: ReplicaOptions, share: MachineShare) -> None:
        """All of the engine's life is in this one thread: CPU workers die with the one that started them."""
        try:
            _stay_within(share)
            self._serve(options)
        except BaseException as error:  # handed to the thread that asks
            with self._changed:
                if self._description is None and isinstance(error, CaraServeError):
                    self._description = Refusal(str(error), error.exit_status)
                # Of ours some are made of more than their message, and do not pass between processes.
                self._error = RuntimeError(str(error)) if isinstance(error, CaraServeError) else error
                self._changed.notify_all()

    def _serve(self, options: ReplicaOptions) -> None:
        with import_pause():
            from caraserve_cli.fleet.hosted_engine import HostedEngine

        library = None if self._shipped is None else self._shipped.library
        engine = HostedEngine(options, self._clock, self._on_step, library)
        try:
            with self._changed:
                self._description = engine.description
                self._changed.notify_all()
            while self._next_step(engine):
                pass
        finally:
            engine.close()

    def _next_step(self, engine: HostedEngine) -> bool:
        """Wait for something to do, and do one step of it; False when it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or engine.replica.num_unfinished or self._is_closed)
            if self._is_closed:
                return False
            arrived, self._arrived = self._arrived, []
        if arrived:
            engine.replica.submit(arrived)
        outcomes = engine.replica.poll()
        started = engine.take_started()
        came, left = engine.take_moved_adapters()
        link_free_ms = engine.link_free_ms()
        corrections = engine.replica.step_corrections
        with self._changed:
            news = self._news
            news.outcomes += outcomes
            news.started += started
            _merge(came, news.adapters_came, news.adapters_left)
            _merge(left, news.adapters_left, news.adapters_came)
            news.link_free_ms = link_free_ms
            news.corrections = corrections
            news.num_running = engine.replica.num_running
            if outcomes or started:
                self._changed.notify_all()
        return True

    def _on_step(self, record: StepRecord) -> None:
        with self._changed:
            self._news.records.append(record)


def _merge(names: Sequence[str], here: list[str], there: list[str]) -> None:
    """What moved back was never away."""
    for name in names:
        if name in there:
            there.remove(name)
        else:
            here.append(name)


def _stay_within(share: MachineShare) -> None:
    """Of all that this thread starts, nothing uses other cores."""
    import torch

    os.sched_setaffinity(0, share.cores)
    torch.set_num_threads(share.num_threads)


def as_error(refusal: Refusal, where: str) -> CaraServeError:
    """What a replica refused, with its exit status, as the driver raises it."""
    from caraserve_cli.errors import OptionError

    kind = OptionError if refusal.exit_status == ExitStatus.WRONG_OPTIONS else InputError
    return kind(f"{refusal.message} ({where})")
