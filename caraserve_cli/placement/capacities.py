"""How much each replica of a fleet holds at most, and what share of its requests is too many for one more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caraserve_cli.perf.batch_load import BoolArray, FloatArray, IntArray
from caraserve_cli.placement.replica_facts import ReplicaFacts
from caraserve_cli.placement.request_facts import RequestFacts


class Capacities:
    """Those of N replicas; they never change.

    Attributes, all of shape [N]:
        max_requests: that may be placed at once.
        max_running: of these.
        kv_tokens: in the KV cache.
        pool_bytes: of adapters on the device.

    Args:
        replicas: in the order of their indices.
    """

    def __init__(self, replicas: Sequence[ReplicaFacts]) -> None:
        configs = [replica.config for replica in replicas]
        self.max_requests = np.array([replica.max_requests for replica in replicas], dtype=np.int64)
        self.max_running = np.array([config.max_running for config in configs], dtype=np.float64)
        self.kv_tokens = np.array([config.num_kv_tokens for config in configs], dtype=np.float64)
        self.pool_bytes = np.array([config.adapter_memory_bytes for config in configs], dtype=np.float64)

    def hold_alone(self, request: RequestFacts) -> BoolArray:
        """Which replicas would hold a request and its adapter if it were alone, shape [N]."""
        fits = self.kv_tokens >= request.kv_tokens
        fits &= self.pool_bytes >= request.adapter_bytes
        return fits

    def shortage(
        self,
        request: RequestFacts,
        num_new: FloatArray | None,
        num_requests: IntArray,
        kv_tokens: FloatArray,
        pool_bytes: FloatArray,
    ) -> FloatArray:
        """The share of those on each replica that must end before a request has a place in the batch, room
        in the cache and in the adapters' pool.

        Args:
            request: that would be placed.
            num_new: 1.0 where nobody uses its adapter, 0.0 where anyone does, shape [N]; None without one.
            num_requests: on each replica, shape [N].
            kv_tokens: that all of them have in the end, shape [N].
            pool_bytes: of their adapters, each adapter once, shape [N].

        Returns:
            Shape [N]; 0 where nobody must end.
        """
        lacks_slots = num_requests + 1 - self.max_running
        lacks_tokens = kv_tokens + (request.kv_tokens - self.kv_tokens)
        shortage = np.zeros(len(kv_tokens))
        if (lacks_slots > 0).any():
            np.maximum(shortage, lacks_slots / np.maximum(num_requests, 1), out=shortage)
        if (lacks_tokens > 0).any():
            np.maximum(shortage, lacks_tokens / np.maximum(kv_tokens, 1), out=shortage)
        if num_new is not None:
            lacks_bytes = pool_bytes - self.pool_bytes
            lacks_bytes += request.adapter_bytes * num_new
            if (lacks_bytes > 0).any():
                np.maximum(shortage, lacks_bytes / np.maximum(pool_bytes, 1), out=shortage)
        return shortage
