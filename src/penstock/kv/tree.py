"""Prefix tree: which published blocks continue which, per namespace and tenant salt.

A node is one full block of tokens after its parent's; it has one place per KV group for the block
that holds the group's KV of these tokens. Lookup walks the raw token bytes, so a hit is verified
against tokens and no digest collision can return another prefix; each (namespace, salt) has a root
of its own, so two of them can't meet.

A *hit* is the longest prefix on which all asked groups agree. A full-attention group agrees at
length L if it holds every block before L; a sliding group with window W agrees if it holds the
blocks of the last W-1 tokens before L (what the query at position L sees beside itself).

A node may be *claimed*, and with it the way to it: its blocks are evicted last (`penstock.kv.pins`). A node
counts its own claims and its claimed children, so a claim costs as many steps as it claims nodes anew.

Invariants (`PrefixTree.check`): a block stands in at most one place; a place's block is published
in the pool, and claimed there if its node is; a node without blocks, children, pins and claims does not
exist, roots included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from msgspec import Struct

from penstock.kv.identity import child as child_identity
from penstock.kv.identity import token_bytes
from penstock.kv.pool import BlockPool

TOKEN_BYTES = 4


class CacheObserver(Protocol):
    """Told about every published block, in order: KV events for routers and tiers come from here.

    `identity`, `parent`: 32-byte digests (`penstock.kv.identity`); `tokens`: little-endian u32 bytes.
    Content under a private root is never told: only the requests that pin it can hit it.
    """

    def on_stored(self, identity: bytes, parent: bytes, tokens: bytes, group: int) -> None: ...

    def on_removed(self, identity: bytes, group: int) -> None: ...


class Node:
    """One full block of tokens. `blocks[g]` is a block id or -1. The parent of a root is None."""

    __slots__ = ("blocks", "children", "claims", "identity", "parent", "pins", "private", "tokens")

    def __init__(
        self, parent: Node | None, tokens: bytes, identity: bytes, num_groups: int, private: bool
    ) -> None:
        self.parent = parent
        self.tokens = tokens
        self.identity = identity
        self.blocks = [-1] * num_groups
        self.children: dict[bytes, Node] = {}
        self.pins = 0
        self.claims = 0
        self.private = private


class Hit(Struct, frozen=True):
    """nodes: the path below the root, one per block of the hit. firsts[i]: the first logical block
    that the i-th asked group must hold (0 for full attention)."""

    nodes: list[Node]
    firsts: tuple[int, ...]

    @property
    def num_blocks(self) -> int:
        return len(self.nodes)


class Explanation(Struct, frozen=True):
    """Why a lookup hit no more than it did, in tokens from the start.

    diverges_at: first token that differs from everything known under this root; None if all the
    tokens are known. evicted_at: first token of the first known block of which a full-attention
    group's content is gone; None if there is none.
    """

    diverges_at: int | None
    evicted_at: int | None


def window_start(length: int, window: int | None, block_size: int) -> int:
    """First logical block that a group needs for the query at position `length`."""
    if window is None:
        return 0
    return max(0, length - window + 1) // block_size


def common_prefix(a: bytes, b: bytes) -> int:
    """How many leading tokens two token byte strings share."""
    size = min(len(a), len(b)) // TOKEN_BYTES * TOKEN_BYTES
    differs = np.frombuffer(a[:size], "<u4") != np.frombuffer(b[:size], "<u4")
    return int(differs.argmax()) if differs.any() else size // TOKEN_BYTES


class PrefixTree:
    """`windows[g]`: None for a full-attention group, else its window. Takes over `pool.on_evict`."""

    def __init__(
        self,
        pool: BlockPool,
        windows: Sequence[int | None],
        block_size: int,
        observer: CacheObserver | None = None,
    ) -> None:
        self.pool = pool
        self.windows = tuple(windows)
        self.block_size = block_size
        self.observer = observer
        self._width = block_size * TOKEN_BYTES
        self._roots: dict[bytes, Node] = {}
        self._place: list[tuple[Node, int] | None] = [None] * pool.num_blocks
        self.num_claimed = 0  # blocks
        pool.on_evict = self.forget

    # ------------------------------------------------------------------ lookup

    def find(self, identity: bytes) -> Node | None:
        """The root with this identity, if anything is stored under it."""
        return self._roots.get(identity)

    def match(
        self,
        root: Node | None,
        tokens: np.ndarray | bytes,
        groups: Sequence[int] | None = None,
        max_blocks: int | None = None,
    ) -> Hit:
        """The longest prefix of `tokens` (int32[n], or little-endian u32 bytes), at most `max_blocks`
        full blocks, on which all `groups` (indices; None: all of them) agree."""
        data = tokens if isinstance(tokens, bytes) else token_bytes(tokens)
        limit = len(data) // self._width
        if max_blocks is not None:
            limit = min(limit, max_blocks)
        asked = range(len(self.windows)) if groups is None else groups
        full = [g for g in asked if self.windows[g] is None]
        sliding = [g for g in asked if self.windows[g] is not None]
        path = self._known_path(root, data, full, limit)
        best = len(path)
        if sliding:
            best = 0
            run = dict.fromkeys(sliding, 0)  # present blocks in a row, up to the current depth
            for depth, node in enumerate(path, start=1):
                for g in sliding:
                    run[g] = run[g] + 1 if node.blocks[g] >= 0 else 0
                if all(run[g] >= depth - self.first_needed(g, depth) for g in sliding):
                    best = depth
        return Hit(path[:best], tuple(self.first_needed(g, best) for g in asked))

    def _known_path(self, root: Node | None, data: bytes, full: list[int], limit: int) -> list[Node]:
        """Nodes below the root as far as the tokens go and the `full` groups have their blocks."""
        path: list[Node] = []
        if root is None:
            return path
        children, width = root.children, self._width
        first, others = (full[0], full[1:]) if full else (-1, [])
        for at in range(0, limit * width, width):  # the hot loop: once per block of a prompt
            node = children.get(data[at : at + width])
            if node is None:
                break
            blocks = node.blocks
            if first >= 0 and (blocks[first] < 0 or (others and any(blocks[g] < 0 for g in others))):
                break
            path.append(node)
            children = node.children
        return path

    def first_needed(self, group: int, num_blocks: int) -> int:
        """First logical block that `group` must hold to go on after `num_blocks` full blocks."""
        return window_start(num_blocks * self.block_size, self.windows[group], self.block_size)

    def explain(self, root: Node | None, tokens: np.ndarray | bytes) -> Explanation:
        """Answer "why did this miss": where the tokens leave what is known, and where content is gone."""
        data = tokens if isinstance(tokens, bytes) else token_bytes(tokens)
        evicted: int | None = None
        node = root
        for at in range(0, len(data), self._width):
            block = data[at : at + self._width]
            following = node.children.get(block) if node is not None else None
            if following is None:
                known = max((common_prefix(block, key) for key in node.children), default=0) if node else 0
                all_known = known * TOKEN_BYTES == len(block)
                return Explanation(None if all_known else at // TOKEN_BYTES + known, evicted)
            node = following
            gone = any(node.blocks[g] < 0 for g, window in enumerate(self.windows) if window is None)
            if gone and evicted is None:
                evicted = at // TOKEN_BYTES
        return Explanation(None, evicted)

    # ------------------------------------------------------------------ storing

    def root(self, identity: bytes, private: bool = False) -> Node:
        """The root with this identity, made if need be. Pin it if nothing is inserted at once.

        private: content under it is dropped with the last pin of the root, and never told to the
        observer.
        """
        node = self._roots.get(identity)
        if node is None:
            node = self._roots[identity] = Node(None, b"", identity, len(self.windows), private)
        return node

    def insert(self, parent: Node, tokens: bytes, blocks: Iterable[int]) -> Node:
        """The node of the full block `tokens` after `parent`, with `blocks[g]` (owned; -1: none)
        published where group g's place is empty. Idempotent: where the content is already cached
        under another id, that id stays and the given block remains private to its owner."""
        node = parent.children.get(tokens)
        if node is None:
            identity = child_identity(parent.identity, tokens)
            node = Node(parent, tokens, identity, len(self.windows), parent.private)
            parent.children[tokens] = node
        for group, block in enumerate(blocks):
            if block >= 0 and node.blocks[group] < 0:
                node.blocks[group] = block
                self._place[block] = (node, group)
                self.pool.publish(block)
                if node.claims:
                    self._claim_block(block, True)
                if self.observer is not None and not node.private:
                    self.observer.on_stored(node.identity, parent.identity, tokens, group)
        return node

    def pin(self, node: Node) -> None:
        """Keep `node` (not its blocks) in the tree: somebody will insert after it."""
        node.pins += 1

    def unpin(self, node: Node) -> None:
        node.pins -= 1
        if node.private and node.parent is None and node.pins == 0:
            self._drop_below(node, owned_too=True)
        self._prune(node)

    def claim(self, node: Node) -> None:
        """Evict what lies on the way to `node` last, and keep the node itself."""
        above: Node | None = node
        while above is not None:
            above.claims += 1
            if above.claims > 1:
                return  # the rest of the way is claimed already
            self._claim_blocks(above, True)
            above = above.parent

    def unclaim(self, node: Node) -> None:
        """Take one claim back. The end of what is let go is evicted before its beginning."""
        above: Node | None = node
        while above is not None:
            above.claims -= 1
            if above.claims:
                break
            self._claim_blocks(above, False)
            above = above.parent
        self._prune(node)

    def _claim_blocks(self, node: Node, claimed: bool) -> None:
        for block in node.blocks:
            if block >= 0:
                self._claim_block(block, claimed)

    def _claim_block(self, block: int, claimed: bool) -> None:
        self.pool.claim(block, claimed)
        self.num_claimed += 1 if claimed else -1

    # ------------------------------------------------------------------ removal

    def forget(self, block: int) -> None:
        """`block`'s content is lost. What lies below a lost full-attention block can't be hit while it
        is missing, so ownerless content there is freed with it rather than outliving useful content."""
        node, group = self._take(block)
        if node.children and self.windows[group] is None:  # mostly none: tails are evicted first
            self._drop_below(node)
        self._prune(node)

    def clear(self) -> None:
        """Forget everything: reusable blocks become free, owned ones private to their owners. Nodes
        that are pinned are cut off; whoever pinned them must not insert after them any more."""
        for place in self._place:
            if place is not None:
                node, group = place
                block = node.blocks[group]
                self._take(block)
                self.pool.discard(block)
        self._roots.clear()

    def _take(self, block: int) -> tuple[Node, int]:
        place = self._place[block]
        if place is None:
            raise ValueError(f"block {block} is not in the prefix tree")
        node, group = place
        node.blocks[group] = -1
        self._place[block] = None
        self.num_claimed -= bool(node.claims)
        if self.observer is not None and not node.private:
            self.observer.on_removed(node.identity, group)
        return place

    def _drop_below(self, top: Node, owned_too: bool = False) -> None:
        """Forget the ownerless content below `top`, or (`owned_too`) all of it.

        The former stops at nodes that miss a full-attention block: below those it was done before.
        """
        stack = list(top.children.values())
        order: list[Node] = []
        while stack:
            node = stack.pop()
            order.append(node)
            if owned_too or self._is_reachable(node):
                stack.extend(node.children.values())
        for node in reversed(order):
            for block in node.blocks:
                if block >= 0 and (owned_too or self.pool.references(block) == 0):
                    self._take(block)
                    self.pool.discard(block)
                    self.pool.num_evicted += not owned_too
            self._prune(node)

    def _is_reachable(self, node: Node) -> bool:
        return all(b >= 0 for b, window in zip(node.blocks, self.windows, strict=True) if window is None)

    def _prune(self, node: Node) -> None:
        while not (node.pins or node.claims or node.children) and max(node.blocks) < 0:
            parent = node.parent
            if parent is None:
                if self._roots.get(node.identity) is node:
                    del self._roots[node.identity]
                return
            if parent.children.get(node.tokens) is not node:
                return  # cut off by `clear`
            del parent.children[node.tokens]
            node = parent

    # ------------------------------------------------------------------ checks

    def nodes(self) -> Iterator[Node]:
        """Every node, roots (parent None) included."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            yield node

    def check(self) -> None:
        """Raise AssertionError unless every invariant holds. O(nodes + blocks)."""
        seen: dict[int, tuple[Node, int]] = {}
        for node in self.nodes():
            if node.parent is None:
                assert node.pins or node.claims or node.children, "an empty root was not pruned"
                continue
            assert node.parent.children[node.tokens] is node
            assert node.identity == child_identity(node.parent.identity, node.tokens)
            assert len(node.tokens) == self._width
            kept = node.pins or node.claims or node.children
            assert kept or max(node.blocks) >= 0, "an empty node was not pruned"
            claimed_children = sum(child.claims > 0 for child in node.children.values())
            assert node.claims >= claimed_children, "a node is not claimed though one behind it is"
            for group, block in enumerate(node.blocks):
                if block >= 0:
                    assert self.pool.is_claimed(block) == (node.claims > 0), f"block {block}: claimed?"
                    assert block not in seen, f"block {block} stands in two places"
                    seen[block] = (node, group)
        claimed = sum(node.claims > 0 for node, _ in seen.values())
        assert self.num_claimed == claimed, f"{claimed} blocks are claimed, {self.num_claimed} counted"
        for block, place in enumerate(self._place):
            assert place == seen.get(block), f"block {block} is not where it is said to be"
            assert self.pool.is_published(block) == (place is not None), (
                f"block {block}: pool and tree differ"
            )
