"""BlockPool against a model that keeps sets and a list, and its refusals."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from penstock.errors import ConfigError
from penstock.kv.pool import BlockPool

NUM_BLOCKS = 9


class PoolMachine(RuleBasedStateMachine):
    """owners: block -> references. lru: ownerless published blocks, oldest first."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.evicted: list[int] = []
        self.pool = BlockPool(NUM_BLOCKS, on_evict=self.evicted.append)
        self.owners: dict[int, int] = {}
        self.lru: list[int] = []
        self.published: set[int] = set()
        self.generations = dict.fromkeys(range(NUM_BLOCKS), 0)

    def taken_evicted(self) -> list[int]:
        taken = list(self.evicted)
        self.evicted.clear()
        return taken

    @rule(count=st.integers(0, NUM_BLOCKS + 2))
    def allocate(self, count: int) -> None:
        num_free = NUM_BLOCKS - len(self.owners) - len(self.lru)
        blocks = self.pool.allocate(count)
        if count > num_free + len(self.lru):
            assert blocks is None
            assert self.taken_evicted() == []
            return
        assert blocks is not None
        assert blocks.dtype == "int32"
        evicted = self.lru[: max(0, count - num_free)]
        assert self.taken_evicted() == evicted
        for block in evicted:
            self.lru.remove(block)
            self.published.remove(block)
        got = blocks.tolist()
        assert len(set(got)) == count
        assert not set(got) & (set(self.owners) | set(self.lru))
        for block in got:
            self.owners[block] = 1
            self.generations[block] += 1

    @precondition(lambda self: self.owners or self.lru)
    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted([*self.owners, *self.lru])), unique=True))
        self.pool.acquire(blocks)
        for block in blocks:
            self.owners[block] = self.owners.get(block, 0) + 1
            if block in self.lru:
                self.lru.remove(block)

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted(self.owners)), unique=True))
        self.pool.release(blocks)
        for block in blocks:
            self.owners[block] -= 1
            if self.owners[block] == 0:
                del self.owners[block]
                if block in self.published:
                    self.lru.append(block)
        assert self.taken_evicted() == []

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.owners)))
        self.pool.publish(block)
        self.published.add(block)

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.published)))
        self.pool.discard(block)
        self.published.remove(block)
        if block in self.lru:
            self.lru.remove(block)
        assert self.taken_evicted() == []

    @invariant()
    def agree(self) -> None:
        type(self).steps += 1
        self.pool.check()
        assert self.pool.num_owned == len(self.owners)
        assert self.pool.num_reusable == len(self.lru)
        assert self.pool.num_free == NUM_BLOCKS - len(self.owners) - len(self.lru)
        for block in range(NUM_BLOCKS):
            assert self.pool.references(block) == self.owners.get(block, 0)
            assert self.pool.generation(block) == self.generations[block]
            assert self.pool.is_published(block) == (block in self.published)


def test_pool_agrees_with_model_of_sets_for_2000_steps() -> None:
    """Red if a block is lost, owned twice, evicted out of order, or evicted while free blocks remain."""
    PoolMachine.steps = 0
    run_state_machine_as_test(PoolMachine, settings=settings(max_examples=80, stateful_step_count=50))
    assert PoolMachine.steps >= 2000


def test_same_calls_give_same_blocks() -> None:
    """Red if ids depend on anything but the calls: plans could no longer be replayed."""

    def run() -> list[list[int]]:
        pool = BlockPool(8)
        first = pool.allocate(5).tolist()
        pool.release(first[1:3])
        return [first, pool.allocate(4).tolist()]

    assert run() == run()


def test_block_with_a_reference_of_a_copy_is_not_reused() -> None:
    """Red if a block is handed out while a copy holds it although its request is gone (fence c)."""
    pool = BlockPool(2)
    block = int(pool.allocate(1)[0])
    pool.acquire([block])  # the copy
    generation = pool.generation(block)
    pool.release([block])  # the request is aborted
    assert pool.allocate(2) is None
    assert pool.generation(block) == generation
    pool.release([block])  # the copy is done
    assert block in pool.allocate(2)
    assert pool.generation(block) == generation + 1


@pytest.mark.parametrize(
    "misuse",
    [
        lambda pool: pool.release([0]),
        lambda pool: pool.acquire([0]),
        lambda pool: pool.publish(0),
        lambda pool: pool.allocate(-1),
    ],
)
def test_misuse_is_refused(misuse) -> None:
    """Red if giving back, sharing or publishing a block that nobody owns passes silently."""
    pool = BlockPool(2)
    with pytest.raises(ValueError, match=r"block 0|-1"):
        misuse(pool)
    pool.check()


def test_empty_pool_is_a_config_error() -> None:
    """Red if a pool without blocks is accepted and every request then waits for ever."""
    with pytest.raises(ConfigError, match="0 blocks"):
        BlockPool(0)


def test_check_notices_a_lost_block() -> None:
    """Red if `check` stops finding leaks: every leak test of the repository relies on it."""
    pool = BlockPool(3)
    pool.allocate(1)
    pool._refs[0] = 0
    with pytest.raises(AssertionError):
        pool.check()
