"""Requests and the host's request table.

A `Request` exists from submission to its last delta. While it runs it owns one *slot*: a row of
`RequestTable`, plain arrays so that a step over hundreds of rows is a handful of vector operations.
A slot carries a *generation*, bumped each time it is left: the result of a step that was in flight
when a request ended names an old generation and is dropped.

Lengths of a slot, all counted from the start of the request:

    computed  KV written and applied
    planned   KV written or in flight          computed <= planned
    known     tokens the host knows            planned <= known + pending
    pending   drawn tokens in flight
    limit     prompt_len + max_tokens          known + pending <= limit

A step with drafts is planned beyond `known`; while it is in flight it is its request's only one.
"""

from __future__ import annotations

import numpy as np

from penstock.engine.messages import Submit, unpack_tokens
from penstock.errors import InvalidRequest

MAX_TABLE_STOPS = 8  # stop ids checked by vector; a request with more is checked one by one


def check_lengths(submit: Submit, room: int) -> None:
    """Raises InvalidRequest unless a request has tokens and ends within `room` of them."""
    num_tokens, rest = divmod(len(submit.tokens), 4)
    if num_tokens == 0 or rest:
        raise InvalidRequest(
            f"prompt: {len(submit.tokens)} bytes of token ids; send at least one id of 4 bytes each"
        )
    if submit.sampling.max_tokens < 1:
        raise InvalidRequest(f"max_tokens: {submit.sampling.max_tokens} is below 1; ask for one or more")
    if num_tokens + submit.sampling.max_tokens > room:
        raise InvalidRequest(
            f"prompt of {num_tokens} tokens and max_tokens {submit.sampling.max_tokens} exceed "
            f"the context of {room}"
        )


class Request:
    """One submitted request (a `penstock.resource.Holder`)."""

    __slots__ = (
        "announced",
        "arrival",
        "arrival_s",
        "cache_read",
        "cache_salt",
        "cache_store",
        "cached_tokens",
        "client",
        "drafts",
        "expires_s",
        "grammar",
        "has_many_stops",
        "held_tokens",
        "id",
        "is_finished",
        "is_stepwise",
        "klass",
        "prompt_len",
        "prompt_logprobs_sent",
        "queue_s",
        "sampling",
        "slot",
        "stop_set",
        "submit",
        "table",
        "tenant",
    )

    def __init__(self, client: str, submit: Submit, arrival: int, now: float) -> None:
        self.client = client
        self.id = submit.id
        self.submit = submit
        self.sampling = submit.sampling
        self.tenant = submit.tenant
        self.arrival = arrival
        self.arrival_s = now
        self.expires_s = None if submit.deadline_s is None else now + submit.deadline_s
        self.klass = submit.priority
        self.held_tokens = unpack_tokens(submit.tokens)
        self.prompt_len = len(self.held_tokens)
        self.cache_salt = submit.cache_salt
        # A cached block has no logits: a request that wants them for its prompt computes it all.
        self.cache_read = submit.cache_read and submit.sampling.prompt_logprobs < 0
        self.cache_store = submit.cache_store
        self.stop_set = frozenset(submit.sampling.stop_token_ids)
        self.has_many_stops = len(self.stop_set) > MAX_TABLE_STOPS
        # Its tokens are sent one by one: somebody reads them so, or each needs more than the vectors hold.
        self.is_stepwise = submit.stream or self.has_many_stops or submit.sampling.logprobs >= 0
        self.grammar: object = None  # keeps what its grammar was compiled to alive
        self.slot = -1
        self.table: RequestTable | None = None
        self.cached_tokens: int | None = None
        self.queue_s: float | None = None
        self.announced = False
        self.is_finished = False  # it came to its own end: nobody aborted it, nothing failed
        self.drafts: tuple[int, int] | None = None  # verified and accepted since the last delta
        self.prompt_logprobs_sent = 1  # nothing predicts the first prompt token

    @property
    def known(self) -> np.ndarray:
        if self.table is None:
            return self.held_tokens
        return self.table.tokens[self.slot, : self.table.known[self.slot]]

    @property
    def limit(self) -> int:
        return self.prompt_len + self.sampling.max_tokens


class RequestTable:
    """Fixed arrays over slots. int32 unless said otherwise; `active` rows may be planned."""

    def __init__(self, num_slots: int, max_context: int) -> None:
        # One spare column: the device writes a drawn token at `known`, which may be max_context.
        # Untouched pages of this array cost no memory.
        self.tokens = np.empty((num_slots, max_context + 1), np.int32)
        self.occupant: list[Request | None] = [None] * num_slots
        self.generation = np.zeros(num_slots, np.int32)
        self.computed = np.zeros(num_slots, np.int32)
        self.planned = np.zeros(num_slots, np.int32)
        self.known = np.zeros(num_slots, np.int32)
        self.pending = np.zeros(num_slots, np.int32)
        self.limit = np.zeros(num_slots, np.int32)
        self.in_flight = np.zeros(num_slots, np.int32)  # launched steps that contain the slot
        self.min_known = np.zeros(num_slots, np.int32)  # stop ids count once known exceeds it
        self.stop_ids = np.full((num_slots, MAX_TABLE_STOPS), -1, np.int32)
        self.klass = np.zeros(num_slots, np.int32)
        self.tenant = np.zeros(num_slots, np.int32)
        self.arrival = np.zeros(num_slots, np.int64)
        self.entered = np.zeros(num_slots, np.int64)  # counts entries: the lowest runs longest
        self.active = np.zeros(num_slots, bool)
        self.stepwise = np.zeros(num_slots, bool)  # tokens are sent one by one
        self.many_stops = np.zeros(num_slots, bool)  # more than `stop_ids` holds
        self.alone = np.zeros(num_slots, bool)  # draws only when no step of its own is in flight
        self.host_upto = np.zeros(num_slots, np.int32)  # the host draws the tokens at positions below it
        self.prompt_logits_upto = np.zeros(num_slots, np.int32)  # logits of positions below it are wanted
        self._free = list(range(num_slots - 1, -1, -1))
        self._entries = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    def enter(self, request: Request, tenant_index: int) -> int:
        """Give `request` a slot and write its row. The caller checked `num_free`."""
        slot = self._free.pop()
        known = len(request.held_tokens)
        sampling = request.sampling
        self.tokens[slot, :known] = request.held_tokens
        self.occupant[slot] = request
        self.computed[slot] = self.planned[slot] = self.pending[slot] = self.in_flight[slot] = 0
        self.known[slot] = known
        self.limit[slot] = request.limit
        self.min_known[slot] = request.prompt_len + sampling.min_tokens
        stops = sampling.stop_token_ids[:MAX_TABLE_STOPS]
        self.stop_ids[slot] = -1
        self.stop_ids[slot, : len(stops)] = stops
        self.tenant[slot] = tenant_index
        self.arrival[slot] = request.arrival
        self.entered[slot] = self._entries
        self._entries += 1
        self.active[slot] = True
        self.stepwise[slot] = request.is_stepwise
        self.many_stops[slot] = request.has_many_stops
        self.alone[slot] = False
        self.host_upto[slot] = request.prompt_len + sampling.host_tokens
        # The prompt's last token predicts no token of the prompt.
        self.prompt_logits_upto[slot] = request.prompt_len - 1 if sampling.prompt_logprobs >= 0 else 0
        request.slot, request.table = slot, self
        return slot

    def leave(self, request: Request) -> None:
        """The request gives up its slot, keeping a copy of its known tokens."""
        slot = request.slot
        request.held_tokens = request.known.copy()
        request.slot, request.table = -1, None
        self.occupant[slot] = None
        self.active[slot] = False
        self.generation[slot] += 1
        self._free.append(slot)
