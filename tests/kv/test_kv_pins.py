"""Pinned prefixes: kept while others go, for a time, and never at anybody's cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.kv.groups import LayerKV, plan_layout
from penstock.kv.resource import KVResource
from penstock.resource import Grant

BLOCK = 4


@dataclass
class Holder:
    id: str
    known: np.ndarray
    cache_salt: str = ""
    cache_read: bool = True
    cache_store: bool = True


def resource(num_blocks: int, share: float = 0.5, window: int | None = None) -> KVResource:
    layers = [LayerKV(1, 2), LayerKV(1, 2, window)] if window else [LayerKV(1, 2)]
    return KVResource(plan_layout(layers, BLOCK, 4), num_blocks, 4, 64, bytes(32), pin_share=share)


def tokens(start: int, count: int) -> np.ndarray:
    return np.arange(start, start + count, dtype=np.int32)


def compute(kv: KVResource, known: np.ndarray, pin: str = "", until_s: float = 1.0) -> int:
    """One request from admission to its end; how many tokens it found."""
    hit = kv.admit(0, Holder("r", known))
    assert kv.reserve(0, len(known)) is Grant.GRANTED
    kv.commit(np.array([0]), np.array([len(known)]))
    if pin:
        kv.pin(0, pin, until_s)
    kv.release(0)
    kv.take_updates()
    kv.check()
    return hit


def test_what_is_pinned_outlives_newer_content() -> None:
    """Red if a pinned prefix is evicted before what nobody pinned."""
    kv = resource(16)
    compute(kv, tokens(0, 17), "session")
    for other in range(5):
        compute(kv, tokens(100 * (other + 1), 33))
    assert compute(kv, tokens(0, 17)) == 16


@pytest.mark.parametrize("how", ["dropped", "expired", "replaced"])
def test_what_is_no_longer_pinned_goes_with_the_others(how: str) -> None:
    """Red if a pin outlives its end, its deletion, or the next turn's pin of the same name."""
    kv = resource(16)
    compute(kv, tokens(0, 17), "session", until_s=10.0)
    kv.expire_pins(9.9)
    assert kv.stats().pinned == 4
    if how == "dropped":
        kv.unpin("session")
        kv.unpin("nobody's")
    elif how == "expired":
        kv.expire_pins(10.0)
    else:
        compute(kv, tokens(50, 9), "session", until_s=20.0)
    assert kv.stats().pinned == (2 if how == "replaced" else 0)
    for other in range(5):
        compute(kv, tokens(100 * (other + 1), 33))
    assert compute(kv, tokens(0, 17)) == 0


def test_a_request_that_needs_the_room_gets_it() -> None:
    """Red if pins make a request wait: they are evicted when nothing else is left."""
    kv = resource(16, share=1.0)
    compute(kv, tokens(0, 33), "a")
    compute(kv, tokens(100, 29), "b")
    assert kv.stats().pinned == 15
    assert compute(kv, tokens(200, 64)) == 0
    assert compute(kv, tokens(0, 33)) == 0
    assert compute(kv, tokens(0, 33)) == 32


def test_pins_keep_a_share_of_the_pool_and_no_more() -> None:
    """Red if pins take more than their share, or those that end last are let go first."""
    kv = resource(16, share=0.5)
    compute(kv, tokens(0, 17), "late", until_s=30.0)
    compute(kv, tokens(100, 17), "early", until_s=10.0)
    assert kv.stats().pinned == 8
    compute(kv, tokens(200, 9), "middle", until_s=20.0)
    assert kv.stats().pinned == 6
    compute(kv, tokens(300, 61), "too large", until_s=40.0)
    assert kv.stats().pinned == 0
    kv.check()


def test_turns_of_a_session_pin_their_common_blocks_once() -> None:
    """Red if each turn's pin counts its whole prefix again, or a fork's end takes its parent's blocks
    along."""
    kv = resource(32, share=0.5)
    for turn in range(1, 7):
        compute(kv, tokens(0, 8 * turn + 1), f"turn {turn}", until_s=turn)
    assert kv.stats().pinned == 12
    fork = np.concatenate((tokens(0, 24), tokens(500, 9)))
    assert compute(kv, fork, "fork", until_s=0.5) == 24
    assert kv.stats().pinned == 14
    kv.expire_pins(0.5)
    assert kv.stats().pinned == 12
    kv.expire_pins(5.0)
    assert kv.stats().pinned == 12
    kv.expire_pins(6.0)
    assert kv.stats().pinned == 0


def test_a_reset_forgets_pins() -> None:
    """Red if a pin outlives the weights that its blocks were computed with."""
    kv = resource(16)
    compute(kv, tokens(0, 17), "session")
    kv.reset(b"\x01" * 32)
    kv.check()
    assert kv.stats().pinned == kv.stats().reusable == 0
    assert compute(kv, tokens(0, 17), "session") == 0
    assert compute(kv, tokens(0, 17)) == 16


class PinMachine(RuleBasedStateMachine):
    """Requests that share prefixes, run beside each other, end, and pin or not."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = resource(24, window=7)
        self.running: dict[int, np.ndarray] = {}
        self.now = 0.0

    @rule(slot=st.integers(0, 3), parts=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def admit(self, slot: int, parts: list[int]) -> None:
        if slot not in self.running:
            known = np.concatenate([tokens(10 * part, BLOCK) for part in parts])
            self.kv.admit(slot, Holder(str(slot), known))
            self.running[slot] = known

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.running)))
        done = int(self.kv.committed[slot])
        upto = data.draw(st.integers(done, len(self.running[slot])))
        if self.kv.reserve(slot, upto) is Grant.GRANTED:
            self.kv.commit(np.array([slot]), np.array([upto]))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), name=st.sampled_from(["", "a", "b", "c"]), ttl=st.integers(1, 4))
    def end(self, data: st.DataObject, name: str, ttl: int) -> None:
        slot = data.draw(st.sampled_from(sorted(self.running)))
        if name:
            self.kv.pin(slot, name, self.now + ttl)
        self.kv.release(slot)
        del self.running[slot]

    @rule(name=st.sampled_from(["a", "b", "c"]))
    def unpin(self, name: str) -> None:
        self.kv.unpin(name)

    @rule()
    def wait(self) -> None:
        self.now += 1
        self.kv.expire_pins(self.now)

    @invariant()
    def nothing_is_lost(self) -> None:
        self.kv.check()
        stats = self.kv.stats()
        assert stats.pinned <= 12
        assert stats.pinned <= stats.owned + stats.reusable

    def teardown(self) -> None:
        for slot in self.running:
            self.kv.release(slot)
        for name in "abc":
            self.kv.unpin(name)
        self.kv.check()
        assert self.kv.stats().owned == self.kv.stats().pinned == 0


TestPinMachine = PinMachine.TestCase
TestPinMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
