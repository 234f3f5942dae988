"""Drafters that are models: a smaller one beside the target, or the target's own first layers.

They run between the target's steps, on the thread that plans (no step is in flight then), greedily: a draft
is the likeliest token. What they keep of a request is KV of its tokens, in blocks:

    draft  a model of its own, with its own backend, weights and pool of blocks. It computes what it has not
           seen, whoever computed it before for the target: a prefix hit of the target's is none of its own.
           A request for which its pool has no room is not drafted for
    self   some layers of the target, then its head: the first ones (early exit, arXiv:2404.16710) or any
           (arXiv:2309.08168). Their KV of verified tokens is the target's, so there is nothing to catch up.
           Drafts write theirs to the blocks reserved ahead, at positions that the target has yet to compute,
           and it computes, so writes, every position before it reads it: behind a layer left out what a
           draft wrote differs from it, and is never seen by more than the drafts that follow

Source of the method: arXiv:2211.17192.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from penstock.decoding.drafting.drafter import NOTHING, Proposal
from penstock.kernels.batch import Batch
from penstock.kv.pool import BlockPool
from penstock.kv.resource import KVResource
from penstock.models.forward import Model
from penstock.models.lowered import LoweredModel
from penstock.resource import Grant

log = logging.getLogger("penstock.engine")

# batch -> int32[R]: the likeliest token after each row's last
NextTokens = Callable[[Batch], np.ndarray]


class DraftBlocks(Protocol):
    """Where the KV of drafted tokens goes. tables: per group int32[slots, blocks]."""

    @property
    def tables(self) -> tuple[np.ndarray, ...]: ...

    def reach(self, slot: int, upto: int) -> bool:
        """Hold blocks for tokens [0, upto). False if there are none left; nothing changed then."""
        ...

    def computed(self, slot: int, written: int) -> int:
        """Leading tokens whose KV is right, of which the drafter wrote that of `written`."""
        ...

    def release(self, slot: int) -> None: ...


class OwnBlocks:
    """A pool for the drafter alone: `num_blocks` of each of `num_groups` groups' tables."""

    def __init__(
        self, num_blocks: int, num_groups: int, num_slots: int, max_context: int, block_size: int
    ) -> None:
        width = -(-max_context // block_size)
        self.tables = tuple(np.zeros((num_slots, width), np.int32) for _ in range(num_groups))
        self._pool = BlockPool(num_blocks)
        self._held = [0] * num_slots
        self._block_size = block_size

    def reach(self, slot: int, upto: int) -> bool:
        have, want = self._held[slot], -(-upto // self._block_size)
        if want <= have:
            return True
        more = want - have
        blocks = self._pool.allocate(more * len(self.tables))
        if blocks is None:
            return False
        for group, table in enumerate(self.tables):
            table[slot, have:want] = blocks[group * more : (group + 1) * more]
        self._held[slot] = want
        return True

    def computed(self, slot: int, written: int) -> int:
        return written

    def release(self, slot: int) -> None:
        for table in self.tables:
            self._pool.release(table[slot, : self._held[slot]].tolist())
        self._held[slot] = 0


class SharedBlocks:
    """The target's blocks."""

    def __init__(self, kv: KVResource) -> None:
        self._kv = kv
        self.tables = kv.tables

    def reach(self, slot: int, upto: int) -> bool:
        return self._kv.reserve(slot, upto) is Grant.GRANTED

    def computed(self, slot: int, written: int) -> int:
        return int(self._kv.committed[slot])  # what drafts wrote may differ from what the target will

    def release(self, slot: int) -> None:
        pass


class _Request:
    """tokens: known ones; written: leading tokens whose KV the drafter wrote; drafted: the last drafts, from
    position `drafted_at` on: the KV of all but the last of them was written."""

    __slots__ = ("drafted", "drafted_at", "tokens", "written")

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.written = 0
        self.drafted: list[int] = []
        self.drafted_at = 0

    def extend(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)
        for place, draft in enumerate(self.drafted[:-1]):
            position = self.drafted_at + place
            if position >= len(self.tokens) or self.tokens[position] != draft:
                break
            self.written = max(self.written, position + 1)


class ModelDrafter:
    """See `penstock.decoding.drafting.drafter.BatchDrafter`."""

    def __init__(self, name: str, next_tokens: NextTokens, blocks: DraftBlocks, token_budget: int) -> None:
        """token_budget: tokens of one forward pass at most."""
        self.name = name
        self._next_tokens = next_tokens
        self._blocks = blocks
        self._budget = token_budget
        self._requests: dict[int, _Request] = {}
        self._told = False  # that there was no room

    def admit(self, slot: int, tokens: np.ndarray, tenant: str, prompt_len: int | None = None) -> None:
        self.release(slot)
        self._requests[slot] = _Request(tokens.tolist())

    def extend(self, slot: int, tokens: Sequence[int]) -> None:
        self._requests[slot].extend(tokens)

    def release(self, slot: int, finished: bool = False) -> None:
        if self._requests.pop(slot, None) is not None:
            self._blocks.release(slot)

    def propose(self, slot: int, most: int) -> Proposal:
        return self.propose_all([slot], [most])[0]

    def propose_all(self, slots: Sequence[int], most: Sequence[int]) -> list[Proposal]:
        wanted = {}
        for slot, count in zip(slots, most, strict=True):
            known = len(self._requests[slot].tokens)
            # The last draft is not computed: nothing is drafted after it.
            if count > 0 and self._blocks.reach(slot, known + count - 1):
                wanted[slot] = count
            elif count > 0 and not self._told:
                self._told = True
                log.warning("speculation: no KV blocks left to draft for all requests; some go without")
        drafts = self._draft(wanted) if wanted else {}
        return [
            Proposal(drafts[slot], [1.0] * len(drafts[slot]), 1) if slot in drafts else NOTHING
            for slot in slots
        ]

    def _draft(self, wanted: dict[int, int]) -> dict[int, list[int]]:
        drafts = {slot: [token] for slot, token in self._catch_up(list(wanted)).items()}
        going = [slot for slot in wanted if wanted[slot] > 1]
        while going:
            rows = []
            for slot in going:
                known = len(self._requests[slot].tokens)
                rows.append((slot, known + len(drafts[slot]) - 1, drafts[slot][-1:]))
            for slot, token in zip(going, self._forward(rows).tolist(), strict=True):
                drafts[slot].append(token)
            going = [slot for slot in going if len(drafts[slot]) < wanted[slot]]
        for slot, tokens in drafts.items():
            request = self._requests[slot]
            request.drafted, request.drafted_at = tokens, len(request.tokens)
        return drafts

    def _catch_up(self, slots: list[int]) -> dict[int, int]:
        """Compute what is not computed of the known tokens; the token after them, by slot."""
        after: dict[int, int] = {}
        starts = {}
        for slot in slots:
            request = self._requests[slot]
            # At least the last token is computed: its logits are the answer.
            starts[slot] = min(self._blocks.computed(slot, request.written), len(request.tokens) - 1)
        while len(after) < len(slots):
            left, rows = self._budget, []
            for slot in slots:
                tokens = self._requests[slot].tokens
                part = tokens[starts[slot] : starts[slot] + left] if slot not in after else []
                if part:
                    rows.append((slot, starts[slot], part))
                    left -= len(part)
            for (slot, start, part), token in zip(rows, self._forward(rows).tolist(), strict=True):
                starts[slot] = start + len(part)
                self._requests[slot].written = starts[slot]
                if starts[slot] == len(self._requests[slot].tokens):
                    after[slot] = token
        return after

    def _forward(self, rows: Sequence[tuple[int, int, Sequence[int]]]) -> np.ndarray:
        """int32[R]: the likeliest next tokens after (slot, start, tokens)."""
        counts = np.array([len(tokens) for _, _, tokens in rows], np.int32)
        starts = np.array([start for _, start, _ in rows], np.int32)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        owner = np.repeat(np.arange(len(rows)), counts)
        slots = [slot for slot, _, _ in rows]
        return self._next_tokens(
            Batch(
                tokens=np.concatenate([tokens for _, _, tokens in rows]).astype(np.int32),
                positions=(np.arange(offsets[-1], dtype=np.int32) - offsets[owner] + starts[owner]).astype(
                    np.int32
                ),
                offsets=offsets,
                starts=starts,
                contexts=starts + counts,
                tables=tuple(table[slots] for table in self._blocks.tables),
            )
        )


def greedy_with_layers(model: Model | LoweredModel, kept: Sequence[int], pool: Any) -> NextTokens:
    """Those of layers `kept` of `model`, over its own KV pool of all layers."""
    if isinstance(model, LoweredModel):
        return greedy(model.with_layers(kept, pool), pool)
    return greedy(model.with_layers(kept), [pool[layer] for layer in kept])


def greedy(model: Model | LoweredModel, kv: Any) -> NextTokens:
    """`model` over the KV pool that it was given."""

    def reference(batch: Batch) -> np.ndarray:
        assert isinstance(model, Model)
        hidden = model.forward(batch, kv)
        return np.asarray(model.logits(hidden[batch.offsets[1:] - 1]).argmax(axis=1), np.int32)

    if not isinstance(model, LoweredModel):
        return reference
    executable, vocab_size = model.executable, model.spec.vocab_size

    def native(batch: Batch) -> np.ndarray:
        rows = (batch.offsets[1:] - 1).astype(np.int32)
        logits = np.empty((len(rows), vocab_size), np.float32)
        best = np.empty(len(rows), np.int32)
        executable.forward(batch, rows, logits, best)
        return best

    return native
