"""Block pool: fixed-size blocks, reference counts, least-recently-used eviction.

A block is an id in [0, num_blocks). Invariants (`BlockPool.check`): every block is exactly one of

    free       no owner, no content worth keeping
    reusable   no owner, content published in the prefix tree, evicted least recently used first,
               those that are claimed (`claim`) after all others
    owned      reference count >= 1 (requests, and later copies in flight to or from a tier)

and the three sum to num_blocks. An id may be reused from the moment its last reference is gone;
steps share one ordered compute stream, so nobody else needs to be asked (architecture, fences).
Whoever copies a block outside that stream holds a reference meanwhile (`acquire`/`release`) and
compares `generation` before and after: it changes each time the id is allocated anew.

Everything here is O(1) per block and deterministic: same calls, same ids.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np

from penstock.errors import ConfigError


class BlockPool:
    """`on_evict(block)` is called when content is evicted; the prefix tree sets it to its `forget`."""

    def __init__(self, num_blocks: int, on_evict: Callable[[int], None] | None = None) -> None:
        if num_blocks < 1:
            raise ConfigError(
                f"the KV pool has {num_blocks} blocks, at least 1 is needed; give it more memory (kv_bytes)"
            )
        self.num_blocks = num_blocks
        self.on_evict = on_evict
        self.num_evicted = 0
        # Lists, not arrays: the hot path touches one block at a time.
        self._refs = [0] * num_blocks
        self._generation = [0] * num_blocks
        self._published = bytearray(num_blocks)  # 1: the content is in the prefix tree
        self._free = list(range(num_blocks - 1, -1, -1))
        self._claimed = bytearray(num_blocks)
        self._reusable: OrderedDict[int, None] = OrderedDict()
        self._kept: OrderedDict[int, None] = OrderedDict()  # the reusable ones that are claimed

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_reusable(self) -> int:
        return len(self._reusable) + len(self._kept)

    @property
    def num_owned(self) -> int:
        return self.num_blocks - len(self._free) - self.num_reusable

    def references(self, block: int) -> int:
        return self._refs[block]

    def generation(self, block: int) -> int:
        """How often `block` was allocated so far."""
        return self._generation[block]

    def allocate(self, count: int) -> np.ndarray | None:
        """int32[count] blocks with one reference each; None (and no change) if there are not that many.

        Evicts least recently used content only for what the free blocks do not cover.
        """
        if count < 0:
            raise ValueError(f"can't allocate {count} blocks; the count must be 0 or more")
        if count > len(self._free) + self.num_reusable:
            return None
        while len(self._free) < count:
            self._evict_oldest()
        if count == 0:
            return np.empty(0, np.int32)
        blocks = self._free[: -count - 1 : -1]
        del self._free[-count:]
        refs, generation = self._refs, self._generation
        for block in blocks:
            refs[block] = 1
            generation[block] += 1
        return np.array(blocks, np.int32)

    def acquire(self, blocks: Iterable[int]) -> None:
        """One more reference to each block; each must be owned or reusable."""
        refs, reusable, kept, claimed = self._refs, self._reusable, self._kept, self._claimed
        for block in blocks:
            if refs[block] == 0:
                try:
                    del (kept if claimed[block] else reusable)[block]
                except KeyError:
                    raise ValueError(
                        f"block {block} is free; only owned or reusable blocks can be shared"
                    ) from None
            refs[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One reference less to each block, in this order: of published blocks that become reusable
        the first given is the first to be evicted."""
        refs, published, claimed = self._refs, self._published, self._claimed
        reusable, kept, free = self._reusable, self._kept, self._free
        for block in blocks:
            left = refs[block] - 1
            if left > 0:
                refs[block] = left
                continue
            if left < 0:
                raise ValueError(f"block {block} has no reference to give back")
            refs[block] = 0
            if published[block]:
                (kept if claimed[block] else reusable)[block] = None
            else:
                free.append(block)

    def publish(self, block: int) -> None:
        """The content of an owned block is in the prefix tree now."""
        if self._refs[block] < 1:
            raise ValueError(f"block {block} has no owner; only owned blocks can be published")
        self._published[block] = 1

    def is_published(self, block: int) -> bool:
        return bool(self._published[block])

    def discard(self, block: int) -> None:
        """The tree no longer knows the content of `block`: a reusable block becomes free, an owned one
        private to its owners. Does not call `on_evict`."""
        self._published[block] = self._claimed[block] = 0
        for content in (self._reusable, self._kept):
            if block in content:
                del content[block]
                self._free.append(block)

    def claim(self, block: int, claimed: bool) -> None:
        """Whether the content of a published block is to be evicted last. It counts as used now."""
        self._claimed[block] = claimed
        source, target = (self._reusable, self._kept) if claimed else (self._kept, self._reusable)
        if block in source:
            del source[block]
            target[block] = None

    def is_claimed(self, block: int) -> bool:
        return bool(self._claimed[block])

    def _evict_oldest(self) -> None:
        block, _ = (self._reusable or self._kept).popitem(last=False)
        self.num_evicted += 1
        self._published[block] = self._claimed[block] = 0
        if self.on_evict is not None:
            self.on_evict(block)
        self._free.append(block)

    def check(self) -> None:
        """Raise AssertionError unless every invariant holds. O(num_blocks), for tests and idle times."""
        free, reusable = set(self._free), self._reusable.keys() | self._kept.keys()
        assert all(self._claimed[block] for block in self._kept), "a block is kept that nobody claims"
        assert not any(self._claimed[block] for block in self._reusable), "a claimed block goes with others"
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & reusable, f"blocks {sorted(free & reusable)} are free and reusable"
        for block in range(self.num_blocks):
            refs, published = self._refs[block], bool(self._published[block])
            assert refs >= 0, f"block {block} has {refs} references"
            unowned = block in free or block in reusable
            assert unowned == (refs == 0), f"block {block}: {refs} references, unowned={unowned}"
            assert refs or published == (block in reusable), f"block {block}: published={published}"
        assert self.num_free + self.num_reusable + self.num_owned == self.num_blocks
