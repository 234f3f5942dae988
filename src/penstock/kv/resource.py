"""KVResource: the KV blocks that requests hold, as the scheduler sees them (`penstock.resource`).

Per slot and group there is a row of the block table: logical block index -> block id. All groups of
a slot reach equally far up (`reserved`); a sliding group starts where its window starts (`first`),
everything else is derived from the committed length:

    0 ......... first[g] ............... committed ............ reserved
    freed (sliding)      held, written             held, for the steps in flight

Invariants: only tokens that were committed, hence verified, are published; windows are freed by
committed, not by planned, length; a refused reserve changes nothing; after `release` of every slot
no block is owned (`check`).

`short` and `commit` are vectorized: their cost depends on the number of rows, not on the context
length. Python runs only for rows that complete a block or leave one behind a window in this step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from penstock.errors import ConfigError
from penstock.kv import identity
from penstock.kv.groups import KVLayout
from penstock.kv.pins import Pins
from penstock.kv.pool import BlockPool
from penstock.kv.tree import (
    TOKEN_BYTES,
    CacheObserver,
    Explanation,
    Node,
    PrefixTree,
    common_prefix,
    window_start,
)
from penstock.resource import Grant, Holder, TableUpdate

# A salt that starts so is shared by the siblings of one call (n > 1) and by nobody else: whatever the
# cache policy says they store under it, and all is dropped when the last of them leaves its slot. (Not
# block by block: a window's blocks have no owner any more when the next sibling comes to need them.)
PRIVATE_SALT = "\x00private:"


class KVStats(Struct, frozen=True):
    """Blocks now (total = owned + reusable + free) and counters since the start (tokens, blocks)."""

    total: int
    owned: int
    reusable: int
    free: int
    hit_tokens: int
    lookup_tokens: int
    evicted_blocks: int
    pinned: int = 0  # of the owned and reusable ones


class _Tenure:
    """What is remembered of one holder in its slot. `first[g]`: the first logical block that group g
    still holds. `cursor`: the (pinned) node after which the next block is published, None if it does
    not publish; `depth`: how many blocks lie before that. `private_root`: the root that it keeps pinned."""

    __slots__ = ("cursor", "depth", "epoch", "first", "holder", "private_root")

    def __init__(self, holder: Holder, first: list[int], epoch: int) -> None:
        self.holder = holder
        self.cursor: Node | None = None
        self.depth = 0
        self.first = first
        self.epoch = epoch
        self.private_root: Node | None = None


class KVResource:
    """Implements `penstock.resource.Resource` over one pool of `num_blocks` blocks.

    layout: groups and block size. max_context: tokens that one slot can reach, the width of the
    block table. namespace: 32 bytes, `identity.namespace_digest` of the model. prefix_cache: whether
    blocks are shared across calls. observer: told about published blocks. pin_share: of the
    blocks, that pinned prefixes keep at most.
    """

    def __init__(
        self,
        layout: KVLayout,
        num_blocks: int,
        num_slots: int,
        max_context: int,
        namespace: bytes,
        prefix_cache: bool = True,
        observer: CacheObserver | None = None,
        pin_share: float = 0.5,
    ) -> None:
        if num_slots < 1 or max_context < 1:
            raise ConfigError(
                f"num_slots is {num_slots} and max_context {max_context}; both must be 1 or more"
            )
        self.layout = layout
        self.block_size = layout.block_size
        self.max_blocks = -(-max_context // layout.block_size)
        self.prefix_cache = prefix_cache
        self.pool = BlockPool(num_blocks)
        self.windows = tuple(group.window for group in layout.groups)
        self.tree = PrefixTree(self.pool, self.windows, layout.block_size, observer)
        self._pins = Pins(self.tree, int(pin_share * num_blocks))
        # Zeros come from untouched pages: a row costs memory only as far as it was used.
        self.tables = tuple(np.zeros((num_slots, self.max_blocks), np.int32) for _ in self.windows)
        self.committed = np.zeros(num_slots, np.int64)
        self._reserved = np.zeros(num_slots, np.int64)  # tokens, a multiple of block_size
        self._event = np.zeros(num_slots, np.int64)  # committed length at which Python must look
        self._tenures: list[_Tenure | None] = [None] * num_slots
        self._dirty: dict[int, int] = {}  # slot -> first logical block whose id the device lacks
        self._namespace = namespace
        self._epoch = 0
        self._hit_tokens = 0
        self._lookup_tokens = 0

    # ------------------------------------------------------------------ life of a request

    def admit(self, slot: int, holder: Holder) -> int:
        """Takes the prefix hit: leading tokens that need no computing, a multiple of block_size and
        less than len(holder.known), so that at least one token is computed."""
        if self._tenures[slot] is not None:
            raise ValueError(f"slot {slot} is held by {self._tenure(slot).holder.id!r}; release it first")
        tenure = _Tenure(holder, [0] * len(self.windows), self._epoch)
        self._tenures[slot] = tenure
        private = holder.cache_salt.startswith(PRIVATE_SALT)
        read = holder.cache_read and (self.prefix_cache or private)
        store = private or (holder.cache_store and self.prefix_cache)
        root_id = identity.root(self._namespace, holder.cache_salt) if read or store else b""
        path: list[Node] = []
        if read:
            known = holder.known
            limit = min(max(0, len(known) - 1) // self.block_size, self.max_blocks)
            hit = self.tree.match(self.tree.find(root_id), known, max_blocks=limit)
            path = hit.nodes
            tenure.first = list(hit.firsts)
            held = [[node.blocks[g] for node in path[first:]] for g, first in enumerate(hit.firsts)]
            self._hold(slot, tenure, len(path), held)
            self._lookup_tokens += len(known)
            self._hit_tokens += len(path) * self.block_size
        else:
            self._hold(slot, tenure, 0, [[] for _ in self.windows])
        if store:
            root = self.tree.root(root_id, private)
            tenure.cursor = path[-1] if path else root
            tenure.depth = len(path)
            self.tree.pin(tenure.cursor)
            if private:
                tenure.private_root = root
                self.tree.pin(root)
        return len(path) * self.block_size

    def short(self, slots: np.ndarray, upto: np.ndarray) -> np.ndarray:
        """bool[R]: rows whose blocks do not reach `upto` tokens."""
        return self._reserved.take(slots) < upto

    def reserve(self, slot: int, upto: int) -> Grant:
        """Blocks of every group for tokens [0, upto): all of them or none (FULL). Never WAIT."""
        self._tenure(slot)
        have = int(self._reserved[slot]) // self.block_size
        want = -(-upto // self.block_size)
        if want <= have:
            return Grant.GRANTED
        if want > self.max_blocks:
            raise ValueError(
                f"slot {slot}: {upto} tokens are beyond the block table of "
                f"{self.max_blocks * self.block_size}; ask for no more than max_context"
            )
        more = want - have
        blocks = self.pool.allocate(more * len(self.windows))
        if blocks is None:
            return Grant.FULL
        for g, table in enumerate(self.tables):
            table[slot, have:want] = blocks[g * more : (g + 1) * more]
        self._reserved[slot] = want * self.block_size
        self._mark_dirty(slot, have)
        return Grant.GRANTED

    def commit(self, slots: np.ndarray, computed: np.ndarray) -> None:
        """Tokens [0, computed) are verified and written; `slots` holds no slot twice.

        Publishes the blocks that this completes, then gives back what the windows left behind.
        """
        self.committed[slots] = computed
        due = computed >= self._event.take(slots)
        if due.any():
            rows = due.nonzero()[0]
            for slot, length in zip(slots[rows].tolist(), computed[rows].tolist(), strict=True):
                self._advance(slot, length)

    def trim(self, slot: int, upto: int) -> None:
        """Give back the blocks beyond `upto` tokens; committed tokens keep theirs."""
        self._tenure(slot)
        keep = -(-max(upto, int(self.committed[slot])) // self.block_size)
        have = int(self._reserved[slot]) // self.block_size
        if keep >= have:
            return
        for table in self.tables:
            self.pool.release(table[slot, keep:have][::-1].tolist())
        self._reserved[slot] = keep * self.block_size

    def fork(self, parent: int, child: int) -> None:
        """`child`, freshly admitted, shares the full blocks that `parent` has committed, as far as
        their tokens are equal and the windows still hold what is needed; at least one token of the
        child stays to be computed. `committed[child]` says how far it came."""
        source, target = self._tenure(parent), self._tenure(child)
        if source.holder.cache_salt != target.holder.cache_salt:
            raise ValueError(
                f"slots {parent} and {child} have different cache salts; only one tenant's requests can share"
            )
        count = self._shareable(source, target, int(self.committed[parent]))
        if count <= int(self.committed[child]) // self.block_size or source.epoch != target.epoch:
            return
        firsts = [window_start(count * self.block_size, window, self.block_size) for window in self.windows]
        held = [table[parent, first:count].tolist() for table, first in zip(self.tables, firsts, strict=True)]
        self._release_blocks(child, target)
        target.first = firsts
        self._hold(child, target, count, held)
        self._publish(child, target, count)

    def release(self, slot: int) -> None:
        """Give every block back, last block first, so that the ends of prefixes are evicted before
        their beginnings. Updates of this slot that nobody took yet are dropped."""
        tenure = self._tenure(slot)
        self._release_blocks(slot, tenure)
        if tenure.cursor is not None:
            self.tree.unpin(tenure.cursor)
        if tenure.private_root is not None:
            self.tree.unpin(tenure.private_root)
        self._dirty.pop(slot, None)
        self._reserved[slot] = self.committed[slot] = 0
        self._tenures[slot] = None

    def pin(self, slot: int, name: str, until_s: float) -> None:
        """Keep the full blocks that the slot has committed, as far as they are published, until then."""
        tenure = self._tenure(slot)
        if tenure.cursor is not None and tenure.depth and tenure.private_root is None:
            self._pins.add(name, tenure.cursor, until_s)

    def unpin(self, name: str) -> None:
        self._pins.drop(name)

    def expire_pins(self, now: float) -> None:
        self._pins.expire(now)

    def take_updates(self) -> tuple[TableUpdate, ...]:
        """Per changed (slot, group) one run of read-only block ids, current as of this call."""
        if not self._dirty:
            return ()
        updates: list[TableUpdate] = []
        for slot, dirty in self._dirty.items():
            end = int(self._reserved[slot]) // self.block_size
            firsts = self._tenure(slot).first
            for g, table in enumerate(self.tables):
                first = max(dirty, firsts[g])
                if first < end:
                    blocks = table[slot, first:end].copy()
                    blocks.flags.writeable = False
                    updates.append(TableUpdate(slot, g, first, blocks))
        self._dirty.clear()
        return tuple(updates)

    # ------------------------------------------------------------------ whole cache

    def stats(self) -> KVStats:
        return KVStats(
            total=self.pool.num_blocks,
            owned=self.pool.num_owned,
            reusable=self.pool.num_reusable,
            free=self.pool.num_free,
            hit_tokens=self._hit_tokens,
            lookup_tokens=self._lookup_tokens,
            evicted_blocks=self.pool.num_evicted,
            pinned=self.tree.num_claimed,
        )

    def explain(self, salt: str, tokens: np.ndarray | Sequence[int]) -> Explanation:
        """Why a request with these tokens would hit no more than it does."""
        root = self.tree.find(identity.root(self._namespace, salt))
        return self.tree.explain(root, identity.token_bytes(tokens))

    def reset(self, namespace: bytes | None = None) -> None:
        """Drop all cached content, and go on under a new namespace if the weights changed. Requests in
        a slot keep their blocks but publish and share nothing of them any more."""
        self._epoch += 1
        self._pins.clear()
        self.tree.clear()
        for tenure in self._tenures:
            if tenure is not None:
                tenure.cursor = tenure.private_root = None
        if namespace is not None:
            self._namespace = namespace

    def check(self) -> None:
        """Raise AssertionError unless all invariants hold; call with no copy in flight. Recounts every
        reference from the tables."""
        self.pool.check()
        self.tree.check()
        refs = np.zeros(self.pool.num_blocks, np.int64)
        pins: Counter[Node] = Counter()
        for slot, tenure in enumerate(self._tenures):
            if tenure is None:
                assert self._reserved[slot] == self.committed[slot] == 0, f"empty slot {slot} holds tokens"
                continue
            assert 0 <= self.committed[slot] <= self._reserved[slot], (
                f"slot {slot}: committed beyond reserved"
            )
            for g, table in enumerate(self.tables):
                blocks = table[slot, tenure.first[g] : self._reserved[slot] // self.block_size]
                assert len(set(blocks.tolist())) == len(blocks), f"slot {slot} holds a block twice"
                refs[blocks] += 1
            pins.update(node for node in (tenure.cursor, tenure.private_root) if node is not None)
        counted = np.array([self.pool.references(block) for block in range(self.pool.num_blocks)])
        wrong = np.nonzero(counted != refs)[0].tolist()
        assert not wrong, f"blocks {wrong}: the pool counts other references than the tables hold"
        found = {node: node.pins for node in self.tree.nodes() if node.pins}
        assert found == pins, f"{sum(found.values())} pins in the tree, {pins.total()} in the slots"

    # ------------------------------------------------------------------ interior

    def _tenure(self, slot: int) -> _Tenure:
        tenure = self._tenures[slot]
        if tenure is None:
            raise ValueError(f"slot {slot} is empty; admit a request first")
        return tenure

    def _hold(self, slot: int, tenure: _Tenure, count: int, held: list[list[int]]) -> None:
        """The slot starts from `count` committed full blocks; held[g] are group g's from first[g] on."""
        for g, blocks in enumerate(held):
            self.pool.acquire(blocks)
            self.tables[g][slot, tenure.first[g] : count] = blocks
        self.committed[slot] = self._reserved[slot] = count * self.block_size
        self._event[slot] = self._next_event(tenure, count)
        if count:
            self._mark_dirty(slot, 0)

    def _mark_dirty(self, slot: int, first: int) -> None:
        self._dirty[slot] = min(first, self._dirty.get(slot, first))

    def _next_event(self, tenure: _Tenure, full: int) -> int:
        """The committed length at which the next block is complete or leaves a window."""
        event = (full + 1) * self.block_size
        for window, first in zip(self.windows, tenure.first, strict=True):
            if window is not None:
                event = min(event, (first + 1) * self.block_size + window - 1)
        return event

    def _advance(self, slot: int, length: int) -> None:
        tenure = self._tenure(slot)
        full = length // self.block_size
        if length > self._reserved[slot]:
            raise ValueError(f"slot {slot}: {length} tokens committed, {self._reserved[slot]} reserved")
        self._publish(slot, tenure, full)
        for g, window in enumerate(self.windows):
            if window is not None:
                start = window_start(length, window, self.block_size)
                if start > tenure.first[g]:
                    self.pool.release(self.tables[g][slot, tenure.first[g] : start].tolist())
                    tenure.first[g] = start
        self._event[slot] = self._next_event(tenure, full)

    def _publish(self, slot: int, tenure: _Tenure, full: int) -> None:
        """Put the blocks between the cursor and logical block `full` into the tree."""
        cursor, depth = tenure.cursor, tenure.depth
        if cursor is None or full <= depth:
            return
        data = identity.token_bytes(tenure.holder.known[depth * self.block_size : full * self.block_size])
        width = len(data) // (full - depth)
        if width != self.block_size * TOKEN_BYTES:
            raise ValueError(
                f"slot {slot}: {full * self.block_size} tokens committed, "
                f"but the holder knows only {len(tenure.holder.known)}"
            )
        columns = [
            [-1] * (min(first, full) - depth) + table[slot, max(first, depth) : full].tolist()
            for table, first in zip(self.tables, tenure.first, strict=True)
        ]
        node = cursor
        for i, blocks in enumerate(zip(*columns, strict=True)):
            node = self.tree.insert(node, data[i * width : (i + 1) * width], blocks)
        self.tree.pin(node)
        self.tree.unpin(cursor)
        tenure.cursor, tenure.depth = node, full

    def _shareable(self, source: _Tenure, target: _Tenure, committed: int) -> int:
        """How many leading full blocks `target` can take over from `source`."""
        limit = min(committed, max(0, len(target.holder.known) - 1)) // self.block_size
        ours = identity.token_bytes(source.holder.known[: limit * self.block_size])
        theirs = identity.token_bytes(target.holder.known[: limit * self.block_size])
        count = common_prefix(ours, theirs) // self.block_size
        # A window starts no later at a smaller length, so if it fails here it fails everywhere below.
        for window, first in zip(self.windows, source.first, strict=True):
            start = window_start(count * self.block_size, window, self.block_size)
            if start < first and start < count:
                return 0
        return count

    def _release_blocks(self, slot: int, tenure: _Tenure) -> None:
        """Give back the slot's blocks from the last logical block down, the groups side by side."""
        low, end = min(tenure.first), int(self._reserved[slot]) // self.block_size
        if len(self.tables) == 1:
            self.pool.release(self.tables[0][slot, low:end][::-1].tolist())
            return
        columns = [
            [-1] * (first - low) + table[slot, first:end].tolist()
            for table, first in zip(self.tables, tenure.first, strict=True)
        ]
        rows = reversed(list(zip(*columns, strict=True)))
        self.pool.release([block for row in rows for block in row if block >= 0])
