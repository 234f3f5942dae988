"""Order policy: who is served first, who waits, who is preempted.

Virtual-time fair queueing over tenants inside priority classes: a tenant's virtual time is the
tokens it was served divided by its weight; the lowest goes first, and who arrives starts at the
time of those in service (start-time fair queueing, Goyal et al. 1996). A class is a small integer,
lower first; waiting lifts a request by one class every `aging_s`, so nothing starves but the lines of
batches: nobody waits for them, and they never come before those that somebody waits for. With one
tenant and one class this is first come, first served.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

import numpy as np

from penstock.call import BATCH_PRIORITY
from penstock.engine.requests import Request, RequestTable


class Tenants:
    """Virtual times, in an array so that a step charges all its rows at once."""

    def __init__(self, weights: dict[str, float]) -> None:
        self._weights = weights
        self._index: dict[str, int] = {}
        self._live: dict[str, int] = {}  # tenant -> unfinished requests
        self._free: list[int] = []
        self._now = 0.0  # virtual time of those in service, at their latest step
        self.virtual = np.zeros(16)
        self._per_token = np.ones(16)

    def arrive(self, tenant: str) -> int:
        """A request of `tenant` came in; one that was away gains no credit from its absence."""
        index = self._index.get(tenant)
        if index is None:
            index = self._new_index()
            self._index[tenant] = index
            self._per_token[index] = 1.0 / self._weights.get(tenant, 1.0)
            self.virtual[index] = 0.0
        if not self._live.get(tenant):
            self.virtual[index] = max(self.virtual[index], self._now)
        self._live[tenant] = self._live.get(tenant, 0) + 1
        return index

    def depart(self, tenant: str) -> None:
        """A request of `tenant` ended; a tenant without requests or debt is forgotten."""
        self._live[tenant] -= 1
        if self._live[tenant] == 0:
            del self._live[tenant]
            for name in [t for t in self._index if t not in self._live]:
                if self.virtual[self._index[name]] <= self._now or not self._live:
                    self._free.append(self._index.pop(name))

    def index(self, tenant: str) -> int:
        return self._index[tenant]

    def charge(self, tenants: np.ndarray, tokens: np.ndarray) -> None:
        """tenants: int[R] indices, tokens: int[R], R >= 1."""
        # Not the lowest of all: one that waits in a lower class would hold the time still, and every
        # newcomer of a better class would start with the credit of its whole wait.
        self._now = max(self._now, float(self.virtual[tenants].min()))
        np.add.at(self.virtual, tenants, tokens * self._per_token[tenants])

    def refund(self, tenants: np.ndarray) -> None:
        """int32[R]: one token of each row, charged and never computed."""
        np.subtract.at(self.virtual, tenants, self._per_token[tenants])

    def _new_index(self) -> int:
        if self._free:
            return self._free.pop()
        index = len(self._index)
        if index == len(self.virtual):
            self.virtual = np.concatenate([self.virtual, np.zeros(index)])
            self._per_token = np.concatenate([self._per_token, np.ones(index)])
        return index


class OrderPolicy:
    """The waiting requests, and the order of the running ones."""

    def __init__(self, weights: dict[str, float], aging_s: float) -> None:
        self.tenants = Tenants(weights)
        self._aging_s = aging_s
        # By arrival per (class, tenant): only heads need comparing.
        self._queues: dict[tuple[int, str], deque[Request]] = {}
        self.num_waiting = 0

    def push(self, request: Request) -> None:
        """Into its queue, in order of arrival: one that was preempted, or waited for its leader, goes
        before those that came after it."""
        queue = self._queues.setdefault((request.klass, request.tenant), deque())
        self.num_waiting += 1
        if not queue or queue[-1].arrival < request.arrival:
            queue.append(request)
            return
        place = 0
        while place < len(queue) and queue[place].arrival < request.arrival:
            place += 1
        queue.insert(place, request)

    def remove(self, request: Request) -> None:
        key = (request.klass, request.tenant)
        queue = self._queues[key]
        if queue[0] is request:
            queue.popleft()
        else:
            queue.remove(request)
        if not queue:
            del self._queues[key]
        self.num_waiting -= 1

    def num_waiting_calls(self) -> int:
        """Waiting requests that are no lines of batches."""
        return sum(len(queue) for (klass, _), queue in self._queues.items() if klass < BATCH_PRIORITY)

    def effective_class(self, request: Request, now: float) -> int:
        if request.klass >= BATCH_PRIORITY:
            return request.klass
        return request.klass - int((now - request.arrival_s) / self._aging_s)

    def waiting(self, now: float) -> Iterator[Request]:
        """Waiting requests, best first, lazily; the caller may `remove` what it was just given."""
        heads = []
        for number, queue in enumerate(self._queues.values()):
            heads.append(
                (*self._key(queue[0], now), number, 0, list(queue) if len(queue) > 1 else [queue[0]])
            )
        heapq.heapify(heads)
        while heads:
            *_, number, place, queue_copy = heapq.heappop(heads)
            yield queue_copy[place]
            place += 1
            if place < len(queue_copy):
                heapq.heappush(heads, (*self._key(queue_copy[place], now), number, place, queue_copy))

    def order(self, table: RequestTable, slots: np.ndarray) -> np.ndarray:
        """`slots` sorted best first: by class, the tenant's virtual time, arrival."""
        if len(slots) < 2:
            return slots
        virtual = self.tenants.virtual[table.tenant[slots]]
        return slots[np.lexsort((table.arrival[slots], virtual, table.klass[slots]))]

    def by_seniority(self, table: RequestTable, slots: np.ndarray) -> np.ndarray:
        """int64[R]: indices of `slots` in the order in which they keep what they hold: by class, then by
        how long they run. The first of the best class is never preempted, so whatever is short, it ends."""
        return np.lexsort((table.entered[slots], table.klass[slots]))

    def num_before(self, request: Request, table: RequestTable, ordered: np.ndarray, now: float) -> int:
        """How many of the running slots, `ordered` by `order`, come before a waiting request."""
        virtual = self.tenants.virtual[table.tenant[ordered]].tolist()
        keys = zip(table.klass[ordered].tolist(), virtual, table.arrival[ordered].tolist(), strict=True)
        own = self._key(request, now)
        return sum(key < own for key in keys)

    def _key(self, request: Request, now: float) -> tuple[int, float, int]:
        virtual = float(self.tenants.virtual[self.tenants.index(request.tenant)])
        return self.effective_class(request, now), virtual, request.arrival
