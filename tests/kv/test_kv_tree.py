"""PrefixTree against a dictionary of token tuples, and the scenes that the dictionary can't show."""

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

from penstock.kv import identity
from penstock.kv.pool import BlockPool
from penstock.kv.tree import Node, PrefixTree, window_start

BLOCK = 2
WINDOWS = (None, 3, 6)  # full, and two sliding groups
NUM_BLOCKS = 24
ROOTS = {salt: identity.root(bytes(32), salt) for salt in ("a", "b", "\x00private:x")}

Key = tuple[str, tuple[int, ...], int]  # salt, all tokens up to and with the block, group


def data(tokens: list[int] | tuple[int, ...]) -> bytes:
    return identity.token_bytes(tokens)


def brute_force_hit(
    stored: set[Key] | dict[Key, int], salt: str, tokens: list[int], groups: list[int]
) -> int:
    """Blocks of the longest prefix on which all groups hold what the query after it sees, by position."""

    def agrees(group: int, length: int) -> bool:
        window = WINDOWS[group]
        oldest = 0 if window is None else max(0, length - (window - 1))
        needed = {position // BLOCK for position in range(oldest, length)}
        return all((salt, tuple(tokens[: (i + 1) * BLOCK]), group) in stored for i in needed)

    for blocks in range(len(tokens) // BLOCK, 0, -1):
        if all(agrees(group, blocks * BLOCK) for group in groups):
            return blocks
    return 0


class Ledger:
    """The observer: a dictionary from identity to what was announced."""

    def __init__(self) -> None:
        self.stored: dict[tuple[bytes, int], tuple[bytes, bytes]] = {}
        self.removed: list[tuple[bytes, int]] = []

    def on_stored(self, identity: bytes, parent: bytes, tokens: bytes, group: int) -> None:
        assert (identity, group) not in self.stored, "announced twice"
        self.stored[identity, group] = (parent, tokens)

    def on_removed(self, identity: bytes, group: int) -> None:
        del self.stored[identity, group]
        self.removed.append((identity, group))


class TreeMachine(RuleBasedStateMachine):
    """model: Key -> block id, what must be found. Owned blocks are kept in `owned`."""

    steps = 0
    hits = 0
    evictions = 0

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.pool = BlockPool(NUM_BLOCKS)
        self.tree = PrefixTree(self.pool, WINDOWS, BLOCK, self.ledger)
        self.model: dict[Key, int] = {}
        self.owned: list[int] = []
        self.siblings: Node | None = None  # the private root while somebody pins it

    salts = st.sampled_from(["a", "a", "a", "b", "\x00private:x"])
    group_sets = st.sampled_from([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0], [1], [2], [0, 1], [0, 2], [1, 2]])
    sequences = st.lists(st.integers(0, 1), min_size=2, max_size=9)

    def draw_tokens(self, data: st.DataObject, salt: str) -> list[int]:
        """Mostly the continuation of something stored, cut somewhere."""
        known = sorted({key[1] for key in self.model if key[0] == salt})
        if not known or data.draw(st.integers(0, 4)) == 0:
            return data.draw(self.sequences)
        start = data.draw(st.sampled_from(known))
        cut = data.draw(st.integers(0, 3))
        tail = data.draw(st.lists(st.integers(0, 1), max_size=4))
        return [*start[: max(2, len(start) - cut)], *tail]

    def identity_of(self, key: Key) -> tuple[bytes, int]:
        salt, tokens, group = key
        digest = ROOTS[salt]
        for at in range(0, len(tokens), BLOCK):
            digest = identity.child(digest, data(tokens[at : at + BLOCK]))
        return digest, group

    def forget_removed(self) -> None:
        """Take what was announced as removed out of the model; only ownerless content may go."""
        gone = set(self.ledger.removed)
        self.ledger.removed.clear()
        for key, block in list(self.model.items()):
            # Private content goes unannounced, and like all other content only under memory pressure.
            unannounced = key[0].startswith("\x00") and not self.pool.is_published(block)
            if unannounced or self.identity_of(key) in gone:
                assert block not in self.owned, "content was dropped under its owner"
                del self.model[key]
                type(self).evictions += 1

    @rule(salt=salts, draw=st.data(), groups=group_sets, keep=st.booleans())
    def insert(self, salt: str, draw: st.DataObject, groups: list[int], keep: bool) -> None:
        tokens = self.draw_tokens(draw, salt)
        depth = len(tokens) // BLOCK
        got = self.pool.allocate(depth * len(groups))
        self.forget_removed()
        if got is None:
            return
        blocks = iter(got.tolist())
        self.owned += got.tolist()
        node = self.tree.root(ROOTS[salt], private=salt.startswith("\x00"))
        if node.private and self.siblings is None:
            self.tree.pin(node)
            self.siblings = node
        for i in range(depth):
            mine = [next(blocks) if g in groups else -1 for g in range(3)]
            node = self.tree.insert(node, data(tokens[i * BLOCK : (i + 1) * BLOCK]), mine)
            for g in groups:
                self.model.setdefault((salt, tuple(tokens[: (i + 1) * BLOCK]), g), mine[g])
        if not keep:
            self.give_back(got.tolist()[::-1])

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        gone = data.draw(
            st.permutations(self.owned).flatmap(lambda p: st.integers(1, len(p)).map(lambda n: p[:n]))
        )
        self.give_back(gone)

    def give_back(self, gone: list[int]) -> None:
        self.owned = [block for block in self.owned if block not in gone]
        self.pool.release(gone)
        self.forget_removed()

    @precondition(lambda self: self.siblings)
    @rule()
    def leave(self) -> None:
        """The last of those who shared privately."""
        assert self.siblings is not None
        reusable = self.pool.num_reusable
        mine = {block for key, block in self.model.items() if key[0].startswith("\x00")}
        self.tree.unpin(self.siblings)
        self.siblings = None
        self.model = {key: block for key, block in self.model.items() if not key[0].startswith("\x00")}
        assert self.pool.num_reusable == reusable - len(mine - set(self.owned))

    @rule(count=st.integers(1, NUM_BLOCKS))
    def press(self, count: int) -> None:
        """Somebody else needs memory for a moment."""
        got = self.pool.allocate(count)
        self.forget_removed()
        if got is not None:
            self.pool.release(got.tolist())

    @rule(salt=salts, draw=st.data(), groups=group_sets, limit=st.none() | st.integers(0, 3))
    def look_up(self, salt: str, draw: st.DataObject, groups: list[int], limit: int | None) -> None:
        self.compare(salt, self.draw_tokens(draw, salt), groups, limit)

    def compare(self, salt: str, tokens: list[int], groups: list[int], limit: int | None) -> None:
        hit = self.tree.match(self.tree.find(ROOTS[salt]), data(tokens), groups, max_blocks=limit)
        capped = tokens if limit is None else tokens[: limit * BLOCK]
        assert hit.num_blocks == brute_force_hit(self.model, salt, capped, groups)
        type(self).hits += hit.num_blocks > 0
        for g, first in zip(groups, hit.firsts, strict=True):
            assert first == window_start(hit.num_blocks * BLOCK, WINDOWS[g], BLOCK)
            for i in range(first, hit.num_blocks):
                assert hit.nodes[i].blocks[g] == self.model[salt, tuple(tokens[: (i + 1) * BLOCK]), g]

    @rule(salt=salts, draw=st.data())
    def explain(self, salt: str, draw: st.DataObject) -> None:
        tokens = self.draw_tokens(draw, salt)
        known = {key[1] for key in self.model if key[0] == salt}
        told = self.tree.explain(self.tree.find(ROOTS[salt]), data(tokens))
        shared = max((common(tokens, other) for other in known), default=0)
        assert told.diverges_at == (None if shared == len(tokens) else shared)
        gone = [
            at
            for at in range(0, shared // BLOCK * BLOCK, BLOCK)
            if (salt, tuple(tokens[: at + BLOCK]), 0) not in self.model
        ]
        assert told.evicted_at == (gone[0] if gone else None)

    @rule(sure=st.integers(0, 9))
    def clear(self, sure: int) -> None:
        if sure != 9:
            return
        self.tree.clear()
        self.siblings = None
        self.ledger.removed.clear()
        self.model.clear()

    @invariant()
    def agree(self) -> None:
        type(self).steps += 1
        self.pool.check()
        self.tree.check()
        announced = {self.identity_of(key) for key in self.model if not key[0].startswith("\x00")}
        assert set(self.ledger.stored) == announced
        roots = {(self.siblings.identity, ())} if self.siblings else set()
        prefixes = roots | {
            (ROOTS[s], t[:at]) for s, t, _ in self.model for at in range(0, len(t) + 1, BLOCK)
        }
        assert len(list(self.tree.nodes())) == len(prefixes), "a node leads to no content"
        for salt, tokens in sorted({key[:2] for key in self.model}):
            self.compare(salt, list(tokens), [0, 1, 2], None)


def common(a: list[int] | tuple[int, ...], b: list[int] | tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_tree_agrees_with_dictionary_of_prefixes_for_2000_steps() -> None:
    """Red if a hit is longer or shorter than what all groups hold, content is announced wrongly or
    dropped under its owner, or an empty node stays behind."""
    TreeMachine.steps = TreeMachine.hits = TreeMachine.evictions = 0
    run_state_machine_as_test(TreeMachine, settings=settings(max_examples=80, stateful_step_count=50))
    assert TreeMachine.steps >= 2000
    assert TreeMachine.hits >= 500
    assert TreeMachine.evictions >= 50


def chain(tree: PrefixTree, salt: str, tokens: list[int], windows: int = 1) -> list[int]:
    """Insert `tokens` with fresh blocks for every group; returns the blocks, still owned."""
    owned: list[int] = []
    node = tree.root(identity.root(bytes(32), salt))
    for at in range(0, len(tokens), tree.block_size):
        blocks = tree.pool.allocate(windows).tolist()
        owned += blocks
        node = tree.insert(node, data(tokens[at : at + tree.block_size]), blocks)
    return owned


def test_groups_disagreeing_about_a_hit() -> None:
    """Red if a hit is claimed where one group misses what it needs (trap: groups disagreeing).

    block       0   1   2   3
    full        x   x   x   -      agrees up to 3 blocks
    window 3    -   x   -   x      needs the last 2 tokens = 1 block: agrees at 0, 2 and 4
    window 6    x   x   x   x      agrees everywhere
    """
    pool = BlockPool(16)
    tree = PrefixTree(pool, WINDOWS, BLOCK)
    root = tree.root(ROOTS["a"])
    have = [(1, 0, 1), (1, 1, 1), (1, 0, 1), (0, 1, 1)]
    tokens = [1, 2, 3, 4, 5, 6, 7, 8]
    node = root
    for i, row in enumerate(have):
        blocks = [int(pool.allocate(1)[0]) if x else -1 for x in row]
        node = tree.insert(node, data(tokens[2 * i : 2 * i + 2]), blocks)
    assert tree.match(root, data(tokens)).num_blocks == 2
    assert tree.match(root, data(tokens), groups=[0]).num_blocks == 3
    assert tree.match(root, data(tokens), groups=[1]).num_blocks == 4
    assert tree.match(root, data(tokens), groups=[0, 2]).num_blocks == 3


def test_equal_content_under_another_id_stays_private() -> None:
    """Red if inserting the same tokens again replaces or double-publishes the block."""
    pool = BlockPool(4)
    tree = PrefixTree(pool, [None], BLOCK)
    first, second = chain(tree, "s", [1, 2]), chain(tree, "s", [1, 2])
    root = tree.find(identity.root(bytes(32), "s"))
    assert tree.match(root, data([1, 2])).nodes[0].blocks == first
    pool.release(second)
    assert (pool.num_free, pool.num_reusable, pool.num_owned) == (3, 0, 1)


def test_content_below_an_evicted_block_is_freed_with_it() -> None:
    """Red if blocks that nobody can hit any more outlive useful ones.

    Released beginning first, so the beginning is evicted first and strands the rest.
    """
    pool = BlockPool(8)
    tree = PrefixTree(pool, [None], BLOCK)
    beginning = chain(tree, "s", [1, 2, 3, 4, 5, 6])
    useful = chain(tree, "s", [9, 9])
    pool.release(beginning)
    pool.release(useful)
    assert pool.allocate(5) is not None  # 4 free, 1 evicted
    assert (pool.num_free, pool.num_reusable) == (2, 1)
    assert pool.num_evicted == 3
    root = tree.find(identity.root(bytes(32), "s"))
    assert tree.match(root, data([9, 9])).num_blocks == 1
    assert len(list(tree.nodes())) == 2  # the root and the useful one
    tree.check()


def test_owned_content_below_an_evicted_block_is_kept_and_can_be_hit_again() -> None:
    """Red if eviction takes a block from its owner, or a restored beginning does not reconnect it."""
    pool = BlockPool(3)
    tree = PrefixTree(pool, [None], BLOCK)
    first, second, third = chain(tree, "s", [1, 2, 3, 4, 5, 6])
    pool.release([first, third])  # the owner of `second` holds another copy of `first`'s content
    assert pool.allocate(1).tolist() == [first]
    assert pool.num_free == 1  # `third`, ownerless and out of reach
    root = tree.find(identity.root(bytes(32), "s"))
    assert tree.match(root, data([1, 2, 3, 4])).num_blocks == 0
    assert tree.explain(root, data([1, 2, 3, 4])).evicted_at == 0
    tree.insert(root, data([1, 2]), [first])
    assert [node.blocks for node in tree.match(root, data([1, 2, 3, 4])).nodes] == [[first], [second]]
    tree.check()


def test_pinned_nodes_stay_until_unpinned() -> None:
    """Red if the place where a request will insert is pruned under it, or stays for ever."""
    pool = BlockPool(2)
    tree = PrefixTree(pool, [None], BLOCK)
    root = tree.root(ROOTS["a"])
    tree.pin(root)
    block = int(pool.allocate(1)[0])
    node = tree.insert(root, data([1, 2]), [block])
    tree.pin(node)
    tree.unpin(root)
    pool.release([block])
    pool.release(pool.allocate(2).tolist())
    assert node.blocks == [-1]
    assert list(tree.nodes()) == [root, node]
    tree.unpin(node)
    assert list(tree.nodes()) == []
    assert tree.find(ROOTS["a"]) is None


def test_nodes_cut_off_by_clear_do_not_come_back() -> None:
    """Red if unpinning a node of before `clear` disturbs the tree of after it."""
    pool = BlockPool(4)
    tree = PrefixTree(pool, [None], BLOCK)
    old_root = tree.root(ROOTS["a"])
    old = tree.insert(old_root, data([1, 2]), pool.allocate(1).tolist())
    tree.pin(old)
    tree.clear()
    new = tree.insert(tree.root(ROOTS["a"]), data([1, 2]), pool.allocate(1).tolist())
    tree.unpin(old)
    assert tree.match(tree.find(ROOTS["a"]), data([1, 2])).nodes == [new]
    tree.check()


@pytest.mark.parametrize(
    ("asked", "diverges_at"),
    [
        ([1, 2, 3, 4], None),
        ([1, 2, 3], None),
        ([1, 2, 9, 4], 2),
        ([1, 2, 3, 9], 3),
        ([9], 0),
        ([1, 2, 3, 4, 5], 4),
    ],
)
def test_explain_names_the_first_token_that_differs(asked: list[int], diverges_at: int | None) -> None:
    """Red if "why did this miss" points at a block instead of the token (a nonce in a system prompt)."""
    tree = PrefixTree(BlockPool(4), [None], BLOCK)
    chain(tree, "s", [1, 2, 3, 4])
    root = tree.find(identity.root(bytes(32), "s"))
    assert tree.explain(root, data(asked)).diverges_at == diverges_at
    assert tree.explain(None, data(asked)).diverges_at == 0


def test_forgetting_a_block_that_is_not_there_is_refused() -> None:
    """Red if pool and tree can drift apart unnoticed."""
    tree = PrefixTree(BlockPool(2), [None], BLOCK)
    with pytest.raises(ValueError, match="block 1"):
        tree.forget(1)
