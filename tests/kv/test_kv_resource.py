"""KVResource: the scenes that a random walk rarely plays, one by one. Blocks of 4 tokens."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.errors import ConfigError
from penstock.kv import identity
from penstock.kv.groups import LayerKV, plan_layout
from penstock.kv.resource import PRIVATE_SALT, KVResource
from penstock.resource import Grant

BLOCK = 4
FULL, SLIDING = 0, 1


class Request:
    """A holder; tests assign `tokens` anew as the request learns more."""

    def __init__(self, tokens, salt: str = "", read: bool = True, store: bool = True) -> None:
        self.id = "request"
        self.tokens = list(tokens)
        self.prompt_len = len(self.tokens)
        self.cache_salt = salt
        self.cache_read = read
        self.cache_store = store

    @property
    def known(self) -> np.ndarray:
        return np.array(self.tokens, np.int32)


def make(
    num_blocks: int = 32,
    windows: tuple[int | None, ...] = (None,),
    prefix_cache: bool = True,
    num_slots: int = 4,
    observer=None,
) -> KVResource:
    layout = plan_layout([LayerKV(1, 1, window) for window in windows], BLOCK, 4)
    return KVResource(layout, num_blocks, num_slots, 64, bytes(32), prefix_cache, observer)


def compute(kv: KVResource, slot: int, upto: int) -> None:
    assert kv.reserve(slot, upto) is Grant.GRANTED
    kv.commit(np.array([slot]), np.array([upto]))


def held(kv: KVResource, slot: int, group: int, first: int, end: int) -> list[int]:
    return kv.tables[group][slot, first:end].tolist()


def run_once(kv: KVResource, tokens, salt: str = "", slot: int = 0, **policy: bool) -> int:
    """Admit, compute everything, release. Returns the hit."""
    request = Request(tokens, salt, **policy)
    hit = kv.admit(slot, request)
    compute(kv, slot, len(request.tokens))
    kv.release(slot)
    kv.check()
    return hit


# ------------------------------------------------------------------ hits


@pytest.mark.parametrize(("num_tokens", "hit"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8), (20, 12)])
def test_at_least_one_token_is_always_computed(num_tokens: int, hit: int) -> None:
    """Red if a prompt that is cached whole leaves nothing to compute, hence no logits to sample from."""
    kv = make()
    run_once(kv, range(12))
    assert kv.admit(0, Request(range(num_tokens))) == hit
    assert kv.stats().hit_tokens == hit
    assert kv.stats().lookup_tokens == 12 + num_tokens


def test_groups_disagreeing_about_a_hit_start_where_all_agree() -> None:
    """Red if a hit is taken on the full group's word although the window's blocks are gone.

    20 tokens, window 5; then memory pressure takes the oldest content, the blocks that the window left
    behind, and a prompt of 12 tokens finds them missing while the full group has all of them:

    block     0  1  2  3  4
    full      x  x  x  x  x
    window    .  .  .  x  x     at 8 it needs block 1, at 12 blocks 2; at 20 it agrees
    """
    kv = make(num_blocks=13, windows=(None, 5))
    request = Request(range(21))
    kv.admit(0, request)
    for upto in (8, 12, 16, 20):
        compute(kv, 0, upto)
    kv.release(0)
    assert kv.stats().reusable == 10
    left_behind = kv.pool.allocate(6)
    assert left_behind is not None
    kv.pool.release(left_behind.tolist())
    assert kv.tree.match(kv.tree.find(identity.root(bytes(32), "")), request.known, [FULL]).num_blocks == 5
    assert kv.admit(0, Request(range(13))) == 0
    kv.release(0)
    assert kv.admit(0, request) == 20
    assert len(next(u for u in kv.take_updates() if u.group == SLIDING).blocks) == 1
    kv.check()


def test_draft_rejected_at_a_block_border_then_prefix_hit() -> None:
    """Red if tokens of a rejected draft enter the cache (trap: draft rejected at a block border).

    position   0 1 2 3 | 4 5 6 7 | 8
    draft      0 1 2 3 | 4 5 6 9 | 9       7 and 8 are rejected: the model says 7 there
    """
    kv = make()
    request = Request(range(5))
    kv.admit(0, request)
    compute(kv, 0, 5)
    assert kv.reserve(0, 9) is Grant.GRANTED  # three blocks, drafts in two of them
    request.tokens = [0, 1, 2, 3, 4, 5, 6, 7]
    kv.commit(np.array([0]), np.array([7]))
    kv.trim(0, 7)
    assert kv.stats().owned == 2
    kv.check()
    assert kv.admit(1, Request([0, 1, 2, 3, 4, 5, 6, 9, 9])) == 4  # not 8: the draft is nowhere
    kv.release(1)
    compute(kv, 0, 8)
    kv.release(0)
    assert kv.admit(1, Request([0, 1, 2, 3, 4, 5, 6, 9, 9])) == 4
    assert kv.admit(2, Request([0, 1, 2, 3, 4, 5, 6, 7, 9])) == 8


def test_two_salts_never_share() -> None:
    """Red if two tenants share a cached prefix (trap: two tenants sharing)."""
    kv = make()
    run_once(kv, range(16), salt="tenant-a")
    assert run_once(kv, range(16), salt="tenant-b") == 0
    assert run_once(kv, range(16), salt="") == 0
    assert run_once(kv, range(16), salt="tenant-a") == 12
    assert kv.stats().reusable == 12


def test_cache_policy_of_a_request() -> None:
    """Red if "do not store" leaves content behind, or "do not read" reads."""
    kv = make()
    run_once(kv, range(16), store=False)
    assert kv.stats().reusable == 0
    assert run_once(kv, range(16), read=False) == 0  # as for prompt log-probabilities: publishes its own
    assert run_once(kv, range(16), read=False) == 0
    assert kv.stats().reusable == 4
    assert run_once(kv, range(16), store=False) == 12
    assert next(iter(kv.tree.nodes())).pins == 0


def test_equal_prompts_computed_side_by_side_keep_one_copy() -> None:
    """Red if the loser's duplicate blocks are kept, or the winner's are lost with the loser."""
    kv = make()
    for slot in (0, 1):
        kv.admit(slot, Request(range(9)))
    for slot in (0, 1):
        compute(kv, slot, 9)
    kv.release(0)
    kv.release(1)
    assert (kv.stats().reusable, kv.stats().free) == (2, 30)
    kv.check()


def test_ends_of_prefixes_are_evicted_before_their_beginnings() -> None:
    """Red if memory pressure takes the first block of a prefix and thereby all of it."""
    kv = make(num_blocks=8)
    run_once(kv, range(32))
    taken = kv.pool.allocate(5).tolist()
    assert kv.stats().evicted_blocks == 5
    assert kv.admit(0, Request(range(32))) == 12
    kv.release(0)
    kv.pool.release(taken)
    kv.check()


# ------------------------------------------------------------------ reservations


def test_request_bigger_than_the_pool_is_full_and_leaks_nothing() -> None:
    """Red if a refused reservation keeps blocks or evicts content (trap: bigger than the whole pool)."""
    kv = make(num_blocks=9, windows=(None, 4))
    run_once(kv, range(8))
    before = kv.stats()
    kv.admit(0, Request(range(100, 120)))
    assert kv.reserve(0, 20) is Grant.FULL  # 5 blocks for each of two groups
    assert kv.take_updates() == ()
    assert kv.short(np.array([0]), np.array([20])).tolist() == [True]
    kv.check()
    kv.release(0)
    after = kv.stats()
    assert (after.free, after.reusable, after.evicted_blocks) == (before.free, before.reusable, 0)


def test_reserve_is_free_while_reserved_and_short_sees_it() -> None:
    """Red if a decode step asks the pool although its block is there already."""
    kv = make()
    kv.admit(0, Request(range(5)))
    kv.admit(2, Request(range(50, 55)))
    kv.reserve(2, 6)
    slots = np.array([0, 2], np.int32)
    assert kv.short(slots, np.array([0, 8])).tolist() == [False, False]
    assert kv.short(slots, np.array([1, 9])).tolist() == [True, True]
    kv.take_updates()
    assert kv.reserve(2, 8) is Grant.GRANTED
    assert kv.take_updates() == ()


def test_windows_are_freed_by_committed_not_by_planned_length() -> None:
    """Red if reserving (or running) ahead frees blocks that the step in flight still reads."""
    kv = make(windows=(None, 6))
    kv.admit(0, Request(range(40)))
    compute(kv, 0, 8)
    kv.reserve(0, 40)
    assert kv.stats().owned == 20
    kv.commit(np.array([0]), np.array([8]))  # nothing new: the query at 8 sees 3 … 7, blocks 0 and 1
    assert kv.stats().owned == 20
    kv.commit(np.array([0]), np.array([9]))  # the query at 9 sees 4 … 8
    assert kv.stats().owned == 19
    kv.commit(np.array([0]), np.array([33]))  # sees 28 …: blocks 1 … 6 go as well
    assert kv.stats().owned == 13
    assert kv.stats().reusable == 7  # written, published, and out of the window
    kv.check()


def test_trim_keeps_what_is_committed() -> None:
    """Red if giving back a reservation takes a published or a partly written block with it."""
    kv = make()
    kv.admit(0, Request(range(30)))
    compute(kv, 0, 10)
    kv.reserve(0, 30)
    kv.trim(0, 0)
    assert kv.stats().owned == 3
    kv.trim(0, 30)
    assert kv.stats().owned == 3
    kv.check()
    assert kv.short(np.array([0]), np.array([13])).tolist() == [True]


# ------------------------------------------------------------------ block-table updates


def test_updates_of_a_released_slot_do_not_reach_the_next_holder() -> None:
    """Red if a slot that is left and taken again within one step gets its old block table."""
    kv = make()
    kv.admit(0, Request(range(8)))
    kv.reserve(0, 8)
    old = held(kv, 0, FULL, 0, 2)
    kv.release(0)
    assert kv.take_updates() == ()
    other = Request(range(50, 60))
    kv.admit(1, other)
    kv.reserve(1, 8)  # takes the blocks just given back
    kv.admit(0, Request(range(70, 76)))
    kv.reserve(0, 6)
    updates = {u.slot: u for u in kv.take_updates()}
    assert updates[1].blocks.tolist() == old
    assert updates[0].first == 0
    assert updates[0].blocks.tolist() == held(kv, 0, FULL, 0, 2)
    assert not set(updates[0].blocks.tolist()) & set(old)
    assert kv.take_updates() == ()


def test_updates_are_one_run_per_slot_and_group_and_skip_the_window() -> None:
    """Red if updates grow with the number of reservations, or cover blocks that are freed already."""
    kv = make(windows=(None, 4))
    kv.admit(0, Request(range(40)))
    for upto in range(1, 21):
        compute(kv, 0, upto)
    updates = {u.group: u for u in kv.take_updates()}
    assert (updates[FULL].first, len(updates[FULL].blocks)) == (0, 5)
    assert (updates[SLIDING].first, len(updates[SLIDING].blocks)) == (4, 1)
    kv.reserve(0, 28)
    kv.trim(0, 21)
    assert [(u.group, u.first, len(u.blocks)) for u in kv.take_updates()] == [(0, 5, 1), (1, 5, 1)]
    kv.trim(0, 20)
    kv.reserve(0, 24)  # maybe another block: the device must hear of it
    assert [(u.first, len(u.blocks)) for u in kv.take_updates()] == [(5, 1), (5, 1)]
    kv.reserve(0, 28)
    kv.trim(0, 24)
    assert kv.take_updates() == ()
    kv.reserve(0, 28)
    kv.trim(0, 20)
    kv.reserve(0, 28)  # marked from block 6 on first, but block 5 is another one now
    assert [(u.first, len(u.blocks)) for u in kv.take_updates()] == [(5, 2), (5, 2)]


# ------------------------------------------------------------------ siblings


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_siblings_share_under_a_private_salt_and_leave_nothing(prefix_cache: bool) -> None:
    """Red if n > 1 recomputes the prompt with the cache off, or its content outlives the last sibling."""
    kv = make(windows=(None, 6), prefix_cache=prefix_cache)
    salt = PRIVATE_SALT + "call-1"
    kv.admit(0, Request(range(40), salt, store=False))
    for upto in (18, 25, 39):  # its window has long left the prompt's end behind
        compute(kv, 0, upto)
    assert kv.admit(1, Request(range(18), salt, store=False)) == 16
    assert kv.admit(2, Request(range(18), salt, read=False, store=False)) == 0  # prompt log-probabilities
    kv.release(2)
    kv.check()
    kv.release(0)
    compute(kv, 1, 18)
    assert kv.admit(0, Request(range(18), salt)) == 16
    assert kv.admit(3, Request(range(18), PRIVATE_SALT + "call-2")) == 0
    for slot in (0, 1, 3):
        kv.release(slot)
    stats = kv.stats()
    assert (stats.owned, stats.reusable, stats.free) == (0, 0, 32)
    assert list(kv.tree.nodes()) == []
    kv.check()


def test_fork_shares_full_blocks_and_recomputes_the_partial_one() -> None:
    """Red if a fork copies what it can share, shares a block that will still be written, or leaks."""
    kv = make(windows=(None, 9))
    parent = Request(range(15), store=False)
    kv.admit(0, parent)
    compute(kv, 0, 14)
    owned = kv.stats().owned
    child = Request([*range(14), 99])
    assert kv.admit(1, child) == 0
    kv.fork(0, 1)
    assert kv.committed[1] == 12
    assert kv.stats().owned == owned
    assert held(kv, 1, FULL, 0, 3) == held(kv, 0, FULL, 0, 3)
    assert {(u.slot, u.group): u.blocks.tolist() for u in kv.take_updates()}[1, FULL] == held(
        kv, 0, FULL, 0, 3
    )
    compute(kv, 1, 15)
    kv.check()
    kv.release(0)
    kv.check()
    kv.release(1)
    assert kv.stats().owned == 0
    assert run_once(kv, range(13)) == 12  # the child stores: what it shares is published too
    kv.check()


@pytest.mark.parametrize(
    ("child_tokens", "shared"),
    [
        (range(15), 12),  # all that the parent has in full blocks
        (range(13), 12),
        (range(12), 8),  # one token stays to be computed
        ([*range(6), 99, *range(7, 15)], 4),  # only as far as the tokens are equal
        ([99], 0),
    ],
)
def test_fork_shares_no_more_than_is_equal(child_tokens, shared: int) -> None:
    """Red if a fork takes blocks of other tokens, or leaves the child nothing to compute."""
    kv = make()
    kv.admit(0, Request(range(15), store=False))
    compute(kv, 0, 14)
    kv.admit(1, Request(child_tokens))
    kv.fork(0, 1)
    assert kv.committed[1] == shared
    kv.check()


def test_fork_does_not_reach_behind_the_window() -> None:
    """Red if a child starts where the parent's window has already given blocks back.

    The parent's query at 15 sees 13 and 14; a child at 12 would need 10 and 11, in block 2.
    """
    kv = make(windows=(None, 3))
    kv.admit(0, Request(range(16), store=False))
    compute(kv, 0, 15)
    kv.admit(1, Request(range(16), store=False))
    kv.fork(0, 1)
    assert kv.committed[1] == 0
    kv.check()


def test_fork_across_salts_is_refused() -> None:
    """Red if a fork moves blocks from one tenant to another."""
    kv = make()
    kv.admit(0, Request(range(9), "a"))
    compute(kv, 0, 9)
    kv.admit(1, Request(range(9), "b"))
    with pytest.raises(ValueError, match="salts"):
        kv.fork(0, 1)


# ------------------------------------------------------------------ weights changed, events


def test_reset_under_a_warm_cache_makes_stale_reuse_impossible() -> None:
    """Red if KV of the old weights is hit, published later, or forked (trap: weights updated)."""
    kv = make()
    run_once(kv, range(16))
    kv.admit(0, Request(range(16)))
    compute(kv, 0, 10)
    kv.reset(identity.namespace_digest({"weights": "new"}))
    kv.check()
    assert kv.stats().reusable == 0
    compute(kv, 0, 16)  # goes on with its own blocks
    assert kv.admit(1, Request(range(16))) == 0
    kv.fork(0, 1)
    assert kv.committed[1] == 0
    kv.release(0)
    assert kv.stats().reusable == 0
    compute(kv, 1, 16)
    kv.release(1)
    assert kv.stats().reusable == 4
    assert kv.tree.find(identity.root(bytes(32), "")) is None
    assert run_once(kv, range(16)) == 12
    kv.reset()
    assert kv.stats().free == 32
    kv.check()


class Events:
    def __init__(self) -> None:
        self.log: list[tuple] = []

    def on_stored(self, identity: bytes, parent: bytes, tokens: bytes, group: int) -> None:
        self.log.append(("stored", identity, parent, tokens, group))

    def on_removed(self, identity: bytes, group: int) -> None:
        self.log.append(("removed", identity, group))


def test_events_carry_the_identity_that_everybody_can_compute() -> None:
    """Red if events can't be joined with identities computed from tokens, or tell of private content."""
    events = Events()
    kv = make(num_blocks=3, observer=events)
    run_once(kv, range(8), salt="t")
    root = identity.root(bytes(32), "t")
    first = identity.child(root, identity.token_bytes(range(4)))
    second = identity.child(first, identity.token_bytes(range(4, 8)))
    assert events.log == [
        ("stored", first, root, identity.token_bytes(range(4)), 0),
        ("stored", second, first, identity.token_bytes(range(4, 8)), 0),
    ]
    events.log.clear()
    run_once(kv, range(50, 58), salt=PRIVATE_SALT + "x")  # needs the block of the end of the prefix
    assert events.log == [("removed", second, 0)]


def test_explain_finds_the_nonce() -> None:
    """Red if "why did this miss" can't name the token (trap: a nonce in the system prompt)."""
    kv = make()
    run_once(kv, [7, 7, 7, 7, 1001, 8, 8, 8, 8, 8, 8, 8], salt="t")
    asked = [7, 7, 7, 7, 1002, 8, 8, 8, 8, 8, 8, 8]
    assert kv.explain("t", asked).diverges_at == 4
    assert kv.explain("other", asked).diverges_at == 0


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda kv: kv.admit(0, Request([1])), "slot 0 is held by 'request'"),
        (lambda kv: kv.reserve(1, 4), "slot 1 is empty"),
        (lambda kv: kv.trim(1, 4), "slot 1 is empty"),
        (lambda kv: kv.release(1), "slot 1 is empty"),
        (lambda kv: kv.reserve(0, 65), "block table of 64"),
        (lambda kv: kv.commit(np.array([0]), np.array([9])), "9 tokens committed, 8 reserved"),
        (lambda kv: kv.commit(np.array([0]), np.array([8])), "knows only 5"),
    ],
)
def test_misuse_names_slot_and_numbers(misuse, message: str) -> None:
    """Red if a bookkeeping error of the scheduler passes here and shows as garbled text later."""
    kv = make()
    kv.admit(0, Request(range(5)))
    kv.reserve(0, 8)
    with pytest.raises(ValueError, match=message):
        misuse(kv)


@pytest.mark.parametrize(("num_slots", "max_context"), [(0, 64), (4, 0)])
def test_sizes_of_zero_are_config_errors(num_slots: int, max_context: int) -> None:
    """Red if an engine starts that can hold no request."""
    layout = plan_layout([LayerKV(1, 1)], BLOCK, 4)
    with pytest.raises(ConfigError, match="must be 1 or more"):
        KVResource(layout, 8, num_slots, max_context, bytes(32))


def test_rows_of_any_number_and_dtype() -> None:
    """Red if an empty step or int32 arrays from the request table need special care."""
    kv = make()
    empty = np.empty(0, np.int32)
    assert kv.short(empty, empty).tolist() == []
    kv.commit(empty, empty)
    kv.admit(0, Request(range(9)))
    kv.reserve(0, 9)
    kv.commit(np.array([0], np.int32), np.array([9], np.int32))
    assert kv.tree.match(kv.tree.find(identity.root(bytes(32), "")), np.arange(9)).num_blocks == 2
