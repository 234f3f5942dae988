"""FeatureDrafter: a draft network beside the engine, fed with the target's hidden states.

    device ── features of a step ──> Speculation (only verified tokens) ── feed ──> pending ─┐
    propose_all: network.context(pending) -> keys and values of the request (`ContextPool`) <┘
                 network.draft(anchors)   -> tokens

What is pending becomes context in batches: when drafts are wanted, or when many tokens wait; a request that
decodes plainly for a while costs little, and has no hole in its context when it is drafted for again.

A prefix that the target found in its cache has no features. The drafter looks for a context of the same
tokens among those of running and finished requests that the tenant may see (`engine/drafts/context.py`);
what it does not find stays absent and is reported (`DraftStats.missing`), and a request that lacks more than
the network bears (`DraftNetwork.most_missing`) is not drafted for until it has grown.

All runs on the engine's thread between steps, in numpy over the reference ops; the embedding and the head
are the target's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from penstock.decoding.drafting.drafter import NOTHING, Proposal
from penstock.engine.drafts.context import Context, ContextPool, Shelved
from penstock.models.drafters.network import Anchor, DraftNetwork

BATCH = 256  # tokens that wait at most before they become context


class _Request:
    """tokens: known ones; pending: (first position, features float32[n, w]) that are no context yet;
    last: features of the last position that was fed."""

    __slots__ = (
        "adopted",
        "context",
        "keep",
        "last",
        "pending",
        "tokens",
        "waiting",
        "whose",
    )

    def __init__(self, tokens: list[int], whose: str, context: Context) -> None:
        self.tokens = tokens
        self.whose = whose
        self.context = context
        self.keep = False  # others may use its context
        self.adopted = False  # it has what others could give
        self.pending: list[tuple[int, np.ndarray]] = []
        self.waiting = 0  # tokens of `pending`
        self.last: np.ndarray | None = None

    @property
    def is_ready(self) -> bool:
        """What is pending follows its context."""
        return self.adopted or bool(self.pending and self.pending[0][0] == 0)


class FeatureDrafter:
    """See `penstock.decoding.drafting.drafter.FeatureDrafter`."""

    def __init__(self, network: DraftNetwork, pool: ContextPool, shelve: bool) -> None:
        """shelve: contexts of finished requests are kept, for an engine with a prefix cache."""
        self.name = network.name
        self.pool = pool
        self._network = network
        self._shelve = shelve
        self._requests: dict[int, _Request] = {}

    def admit(self, slot: int, tokens: np.ndarray, tenant: str, prompt_len: int | None = None) -> None:
        self.release(slot)
        self._requests[slot] = _Request(tokens.tolist(), tenant, Context(self.pool.shape))

    def keep(self, slot: int) -> None:
        self._requests[slot].keep = True

    def extend(self, slot: int, tokens: Sequence[int]) -> None:
        self._requests[slot].tokens.extend(tokens)

    def feed(self, slot: int, first: int, features: np.ndarray) -> None:
        request = self._requests[slot]
        # A copy: a view would keep the features of all requests of the step.
        request.pending.append((first, features.copy()))
        request.waiting += len(features)
        if request.waiting >= BATCH:
            self._absorb(request)

    def missing(self, slot: int) -> int:
        request = self._requests[slot]
        return len(request.tokens) - 1 - request.context.length - request.waiting

    def release(self, slot: int, finished: bool = False) -> None:
        request = self._requests.pop(slot, None)
        if request is None:
            return
        if request.keep and self._shelve:
            self._absorb(request)
            self.pool.shelve(request.whose, np.array(request.tokens, np.int32), request.context)
        else:
            self.pool.drop(request.context)

    def propose(self, slot: int, most: int) -> Proposal:
        return self.propose_all([slot], [most])[0]

    def propose_all(self, slots: Sequence[int], most: Sequence[int]) -> list[Proposal]:
        anchors = {}
        for slot, count in zip(slots, most, strict=True):
            anchor = self._anchor(self._requests[slot], count) if count > 0 else None
            if anchor is not None:
                anchors[slot] = anchor
        drafts: dict[int, list[int]] = {}
        if anchors:
            drafts = dict(zip(anchors, self._network.draft(list(anchors.values())), strict=True))
        return [
            Proposal(drafts[slot], [1.0] * len(drafts[slot]), 1) if drafts.get(slot) else NOTHING
            for slot in slots
        ]

    def _anchor(self, request: _Request, most: int) -> Anchor | None:
        """None if the request sits out: too much of its context is missing, or there is no room for it."""
        self._absorb(request)
        context, known = request.context, len(request.tokens)
        # Without the newest position, for which there was no room, a network has nothing to begin with.
        if request.last is None or context.last_position != known - 2:
            return None
        if context.length < (1 - self._network.most_missing) * (known - 1):
            return None
        if not self.pool.reach(context, context.length + self._network.scratch_rows):
            return None
        return Anchor(
            keys=context.keys,
            values=context.values,
            positions=context.positions,
            length=context.length,
            token=request.tokens[-1],
            position=known - 1,
            features=request.last,
            most=most,
        )

    def _absorb(self, request: _Request) -> None:
        """What is pending becomes context, after what others have of the positions before it."""
        if not request.pending:
            return
        ahead = int(self._network.looks_ahead)
        tokens = np.array(request.tokens, np.int32)
        if not request.is_ready:
            self._adopt(request, tokens, request.pending[0][0], ahead)
        request.adopted = True
        features = np.concatenate([part for _, part in request.pending])
        positions = np.concatenate(
            [np.arange(first, first + len(part), dtype=np.int32) for first, part in request.pending]
        )
        # The context of the last known token has to wait for the token after it.
        ready = int(np.searchsorted(positions, len(tokens) - ahead))
        request.pending = [(int(positions[ready]), features[ready:].copy())] if ready < len(positions) else []
        request.waiting = len(positions) - ready
        if not ready:
            return
        request.last = features[ready - 1].copy()
        context, following = request.context, tokens[np.minimum(positions[:ready] + 1, len(tokens) - 1)]
        if self.pool.reach(context, context.length + ready):
            keys, values = self._network.context(features[:ready], following, positions[:ready])
            context.append(positions[:ready], keys, values)

    def _adopt(self, request: _Request, tokens: np.ndarray, upto: int, ahead: int) -> None:
        """The context of positions [0, upto), which the target did not compute for this request."""
        found = self.pool.find(request.whose, tokens, upto, ahead, self._running(request))
        if found is None:
            return
        context, rows = found
        # Taken out before room is made: making it may end the shelved one.
        positions = context.positions[rows].copy()
        keys, values = context.keys[:, rows].copy(), context.values[:, rows].copy()
        if self.pool.reach(request.context, rows.stop):
            request.context.append(positions, keys, values)

    def _running(self, request: _Request) -> Iterator[Shelved]:
        """Contexts of other requests that may be seen by those of the same tenant."""
        for other in self._requests.values():
            if other is not request and other.keep and other.whose == request.whose:
                if other.is_ready:  # else it would look among running requests itself
                    self._absorb(other)
                yield Shelved(other.whose, np.array(other.tokens, np.int32), other.context)
