"""KVResource against a pretended memory: every cell of every block says which tokens wrote it.

The model reads and writes only through block tables built from `take_updates`, as a device does. So
a block that is shared wrongly, reused too early, or left stale in a table shows as wrong content, the
way it would show as garbled text. What a hit may be comes from a dictionary of published prefixes.
"""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from penstock.kv import identity
from penstock.kv.groups import LayerKV, plan_layout
from penstock.kv.resource import KVResource
from penstock.resource import Grant

BLOCK = 4
WINDOWS = (None, 3, 9)
NUM_BLOCKS = 24
NUM_SLOTS = 4
MAX_CONTEXT = 30
PRIVATE = "\x00private:x"


class Request:
    """A holder that learns tokens one by one."""

    def __init__(self, tokens: list[int], salt: str, read: bool, store: bool) -> None:
        self.id = "r"
        self.tokens = list(tokens)
        self.prompt_len = len(tokens)
        self.cache_salt = salt
        self.cache_read = read
        self.cache_store = store
        self.stale = False  # admitted before the last reset

    @property
    def known(self) -> np.ndarray:
        return np.array(self.tokens, np.int32)

    @property
    def publishes(self) -> bool:
        return not self.stale and (self.cache_store or self.cache_salt == PRIVATE)


class ResourceMachine(RuleBasedStateMachine):
    steps = 0
    hits = 0
    refused = 0
    evicted = 0
    prefix_cache = True

    def __init__(self) -> None:
        super().__init__()
        layout = plan_layout([LayerKV(1, 1, window) for window in WINDOWS], BLOCK, 4)
        self.kv = KVResource(
            layout, NUM_BLOCKS, NUM_SLOTS, MAX_CONTEXT, bytes(32), self.prefix_cache, observer=self
        )
        self.running: dict[int, Request] = {}
        self.past: list[list[int]] = []
        self.computed: dict[int, int] = {}
        self.reserved: dict[int, int] = {}
        self.tables: dict[tuple[int, int, int], int] = {}  # slot, group, logical block -> block id
        self.memory: dict[tuple[int, int], object] = {}  # block id, offset -> who wrote it
        self.published: set[tuple[bytes, int]] = set()  # identity, group, as announced

    def on_stored(self, identity: bytes, parent: bytes, tokens: bytes, group: int) -> None:
        assert (identity, group) not in self.published
        self.published.add((identity, group))

    def on_removed(self, identity: bytes, group: int) -> None:
        self.published.remove((identity, group))
        type(self).evicted += 1

    # -------------------------------------------------------------- the pretended device

    def cell(self, slot: int, group: int, position: int) -> tuple[int, int]:
        return self.tables[slot, group, position // BLOCK], position % BLOCK

    def mark(self, slot: int, position: int) -> tuple[str, tuple[int, ...]]:
        request = self.running[slot]
        return request.cache_salt, tuple(request.tokens[: position + 1])

    def write(self, slot: int, start: int, end: int, draft: bool = False) -> None:
        for position in range(start, end):
            for group in range(len(WINDOWS)):
                content = "draft" if draft else self.mark(slot, position)
                self.memory[self.cell(slot, group, position)] = content

    def read(self, slot: int) -> None:
        """Everything that the query at the committed length sees is what its tokens wrote."""
        length = self.computed[slot]
        for group, window in enumerate(WINDOWS):
            for position in range(0 if window is None else max(0, length - window + 1), length):
                assert self.memory[self.cell(slot, group, position)] == self.mark(slot, position)

    def sync(self) -> None:
        for update in self.kv.take_updates():
            assert update.slot in self.running, "an update of a slot that nobody is in"
            assert not update.blocks.flags.writeable
            for i, block in enumerate(update.blocks.tolist()):
                self.tables[update.slot, update.group, update.first + i] = block

    # -------------------------------------------------------------- the life of requests

    def expected_hit(self, request: Request) -> int:
        """Tokens, from the announced set and the windows, position by position."""
        if not request.cache_read or not self.prefix_cache:
            return 0
        digest, chain = identity.root(bytes(32), request.cache_salt), []
        for at in range(0, len(request.tokens) // BLOCK * BLOCK, BLOCK):
            digest = identity.child(digest, identity.token_bytes(request.tokens[at : at + BLOCK]))
            chain.append(digest)
        best = 0
        for length in range(BLOCK, len(request.tokens), BLOCK):
            needed = {
                (chain[position // BLOCK], group)
                for group, window in enumerate(WINDOWS)
                for position in range(0 if window is None else max(0, length - window + 1), length)
            }
            if needed <= self.published:
                best = length
        return best

    @precondition(lambda self: len(self.running) < NUM_SLOTS)
    @rule(
        data=st.data(),
        salt=st.sampled_from(["", "", "", "", "t", PRIVATE]),
        read=st.sampled_from([True, True, True, False]),
        store=st.sampled_from([True, True, True, False]),
    )
    def admit(self, data: st.DataObject, salt: str, read: bool, store: bool) -> None:
        tokens = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=6))
        likely = [*self.past[-2:], *(r.tokens for r in self.running.values())] * 3
        start = data.draw(st.sampled_from([*likely, [0] * 5, [1] * 11]))
        request = Request((start + tokens)[: MAX_CONTEXT - 2], salt, read, store)
        slot = next(s for s in range(NUM_SLOTS) if s not in self.running)
        expected = self.expected_hit(request)
        hit = self.kv.admit(slot, request)
        if salt != PRIVATE:
            assert hit == expected
        assert hit % BLOCK == 0
        assert hit < len(request.tokens)
        type(self).hits += hit > 0
        self.running[slot] = request
        self.computed[slot] = self.reserved[slot] = hit
        self.sync()
        self.read(slot)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), chunk=st.sampled_from([1, 3, 6, 12, 12, 26]))
    def compute(self, data: st.DataObject, chunk: int) -> None:
        """A step: reserve, write, commit; at the end of the known tokens the model draws one."""
        slot = data.draw(st.sampled_from(sorted(self.running)))
        request = self.running[slot]
        upto = min(self.computed[slot] + chunk, len(request.tokens))
        if not self.reserve(slot, upto):
            return
        self.sync()
        self.write(slot, self.computed[slot], upto)
        self.kv.commit(np.array([slot], np.int32), np.array([upto], np.int32))
        self.computed[slot] = upto
        if upto == len(request.tokens) < MAX_CONTEXT:
            request.tokens.append(data.draw(st.integers(0, 1)))
        self.read(slot)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), ahead=st.integers(1, 9))
    def draft(self, data: st.DataObject, ahead: int) -> None:
        """Reserve and write beyond the committed length what will be rejected."""
        slot = data.draw(st.sampled_from(sorted(self.running)))
        upto = min(self.computed[slot] + ahead, MAX_CONTEXT)
        if self.reserve(slot, upto):
            self.sync()
            self.write(slot, self.computed[slot], upto, draft=True)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), ahead=st.integers(1, 9))
    def plan(self, data: st.DataObject, ahead: int) -> None:
        """Reserve for a step that is dropped before its plan is made: nobody takes the updates yet."""
        slot = data.draw(st.sampled_from(sorted(self.running)))
        self.reserve(slot, min(self.computed[slot] + ahead, MAX_CONTEXT))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), ahead=st.integers(-8, 6))
    def trim(self, data: st.DataObject, ahead: int) -> None:
        slot = data.draw(st.sampled_from(sorted(self.running)))
        self.kv.trim(slot, self.computed[slot] + ahead)
        end = max(self.computed[slot] + ahead, self.computed[slot])
        self.reserved[slot] = min(self.reserved[slot], -(-end // BLOCK) * BLOCK)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.running)))
        self.kv.release(slot)
        self.past.append(self.running[slot].tokens[: MAX_CONTEXT - 6])
        del self.running[slot], self.computed[slot], self.reserved[slot]

    @precondition(lambda self: 1 <= len(self.running) < NUM_SLOTS)
    @rule(data=st.data(), tail=st.lists(st.integers(0, 1), min_size=1, max_size=3), cut=st.integers(0, 3))
    def fork(self, data: st.DataObject, tail: list[int], cut: int) -> None:
        parent = data.draw(st.sampled_from(sorted(self.running)))
        source = self.running[parent]
        tokens = (source.tokens[: max(1, len(source.tokens) - cut)] + tail)[:MAX_CONTEXT]
        child = next(s for s in range(NUM_SLOTS) if s not in self.running)
        request = Request(tokens, source.cache_salt, data.draw(st.booleans()), data.draw(st.booleans()))
        hit = self.kv.admit(child, request)
        self.kv.fork(parent, child)
        self.running[child] = request
        self.computed[child] = self.reserved[child] = int(self.kv.committed[child])
        assert hit <= self.computed[child] < len(tokens)
        assert not (source.stale and self.computed[child] > hit), "old content reached a new request"
        self.sync()
        self.read(child)

    @rule(sure=st.integers(0, 9))
    def reset(self, sure: int) -> None:
        if sure == 9:
            self.kv.reset()
            assert not self.published
            assert self.kv.stats().reusable == 0
            for request in self.running.values():
                request.stale = True

    def reserve(self, slot: int, upto: int) -> bool:
        short = bool(self.kv.short(np.array([slot]), np.array([upto]))[0])
        assert short == (upto > self.reserved[slot])
        before = self.kv.stats()
        need = max(0, -(-upto // BLOCK) - self.reserved[slot] // BLOCK) * len(WINDOWS)
        grant = self.kv.reserve(slot, upto)
        if need > before.free + before.reusable:
            assert grant is Grant.FULL
            assert self.kv.stats() == before
            type(self).refused += 1
            return False
        assert grant is Grant.GRANTED
        self.reserved[slot] = max(self.reserved[slot], -(-upto // BLOCK) * BLOCK)
        return True

    @invariant()
    def agree(self) -> None:
        type(self).steps += 1
        self.kv.check()
        stats = self.kv.stats()
        assert stats.owned + stats.reusable + stats.free == stats.total == NUM_BLOCKS
        held = set()
        for slot in self.running:
            for group, window in enumerate(WINDOWS):
                oldest = 0 if window is None else max(0, self.computed[slot] - window + 1)
                logical = range(oldest // BLOCK, self.reserved[slot] // BLOCK)
                held |= {int(self.kv.tables[group][slot, i]) for i in logical}
        assert stats.owned == len(held), "more or fewer blocks are owned than windows and lengths say"
        if not self.prefix_cache:
            private = any(request.cache_salt == PRIVATE for request in self.running.values())
            assert private or stats.reusable == 0
            assert not self.published

    def teardown(self) -> None:
        for slot in list(self.running):
            self.kv.release(slot)
        self.running.clear()
        self.kv.check()
        assert self.kv.stats().owned == 0
        assert not [node for node in self.kv.tree.nodes() if node.private], "private content stayed"


class UncachedMachine(ResourceMachine):
    prefix_cache = False


def test_requests_read_what_their_tokens_wrote_for_2000_steps() -> None:
    """Red if a request can see another prefix's, a rejected draft's, a stale or a freed block's content,
    a hit is not the longest all groups agree on, a refusal changes something, or a block leaks."""
    machine = ResourceMachine
    machine.steps = machine.hits = machine.refused = machine.evicted = 0
    run_state_machine_as_test(machine, settings=settings(max_examples=150, stateful_step_count=60))
    assert machine.steps >= 2000
    assert min(machine.hits, machine.refused, machine.evicted) >= 10


def test_nothing_is_kept_with_the_prefix_cache_off() -> None:
    """Red if content is published or kept without an owner although the cache is off."""
    UncachedMachine.steps = 0
    run_state_machine_as_test(UncachedMachine, settings=settings(max_examples=30, stateful_step_count=50))
    assert UncachedMachine.steps >= 500
