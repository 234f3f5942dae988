"""Budget, order, fairness, queue bounds and deadlines of the scheduler."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from bench_core import CoreBench, expected_tokens

from penstock.engine.plan import decode_plan, encode_plan
from penstock.engine.requests import Request
from penstock.engine.scheduler import _fit


def test_a_long_prompt_does_not_stall_running_streams():
    """Red if a prefill chunk takes the whole budget from rows that generate."""
    bench = CoreBench(token_budget=8, num_slots=4, num_blocks=200, max_context=200, depth=0)
    streams = [bench.submit([i, i], 40) for i in range(3)]
    for _ in range(3):
        bench.core.step()
    bench.submit(list(range(90)), 1)
    before = [len(bench.tokens(s)) for s in streams]
    for _ in range(10):
        bench.core.step()
    assert [len(bench.tokens(s)) for s in streams] == [n + 10 for n in before]
    assert bench.device.plans[-1].num_tokens == 8  # and the rest of the budget is not wasted


@pytest.mark.parametrize("slots", [1, 2])
def test_a_long_prompt_of_a_lower_class_does_not_keep_a_better_one_out(slots):
    """Red if a prefill that fills the budget has to end before a better class gets a token."""
    bench = CoreBench(token_budget=4, num_slots=slots, num_blocks=100, max_context=200)
    long = bench.submit([*range(90), *range(90)], 2, priority=2)
    for _ in range(3):
        bench.core.step()
    short = bench.submit([3, 4], 1)
    for _ in range(5):
        bench.core.step()
    assert bench.finish(short) == "length"
    bench.run()
    assert bench.tokens(long) == expected_tokens([*range(90), *range(90)], 2)


def test_a_long_prompt_of_one_tenant_does_not_keep_another_out():
    """Red if tenants share the machine only between prompts, not within one."""
    bench = CoreBench(token_budget=4, num_slots=2, num_blocks=100, max_context=200)
    bench.submit([*range(90), *range(90)], 2, tenant="long")
    for _ in range(3):
        bench.core.step()
    short = bench.submit([3, 4], 1, tenant="short")
    for _ in range(5):
        bench.core.step()
    assert bench.finish(short) == "length"
    bench.run()


def test_no_budget_is_set_aside_for_a_request_that_found_no_blocks():
    """Red if a prefill crawls, token by token, beside a request that the pool can't take yet."""
    bench = CoreBench(token_budget=16, num_slots=3, num_blocks=17, depth=0, prefix_cache=False)
    bench.submit(list(range(10)), 40, tenant="stream")
    bench.submit(list(range(60)), 2, tenant="long")
    for _ in range(3):
        bench.core.step()
    bench.submit(list(range(30)), 1, tenant="refused")
    for _ in range(2):
        bench.core.step()
    assert [plan.num_tokens for plan in bench.device.plans] == [16, 16, 16, 2, 16]
    bench.run()


def test_prefill_and_decode_share_one_step():
    """Red if steps become phases."""
    bench = CoreBench(token_budget=16, depth=0)
    bench.submit([1, 2], 10)
    bench.core.step()
    bench.submit(list(range(12)), 2)
    bench.core.step()
    assert sorted(bench.device.plans[-1].counts.tolist()) == [1, 12]


def test_an_oversubscribed_budget_serves_earlier_rows_first():
    """Red if a budget below the number of rows is overspent or shared at random."""
    want = np.array([1, 1, 5, 1], np.int32)
    assert _fit(want, 3).tolist() == [1, 1, 1, 0]
    assert _fit(want, 100).tolist() == want.tolist()
    assert _fit(want, 0).tolist() == [0, 0, 0, 0]


def test_tenants_share_by_weight_under_contention():
    """Red if a tenant with many requests starves one with few, or weights are ignored."""
    bench = CoreBench(num_slots=2, token_budget=4, depth=0, weights={"heavy": 3.0}, num_blocks=200)
    for _ in range(40):
        bench.submit([1, 2], 6, tenant="heavy")
    for _ in range(40):
        bench.submit([3, 4], 6, tenant="light")
    served = {"heavy": 0, "light": 0}
    for _ in range(150):
        bench.core.step()
    for request_id, deltas in bench.deltas.items():
        served["heavy" if int(request_id[1:]) <= 40 else "light"] += len(deltas)
    assert 2.0 < served["heavy"] / served["light"] < 4.5


def test_a_tenant_that_was_away_has_no_credit():
    """Red if idle time becomes a claim on the machine."""
    bench = CoreBench(num_slots=1, depth=0, num_blocks=200)
    busy = [bench.submit([1, 2], 5, tenant="busy") for _ in range(6)]
    for _ in range(12):
        bench.core.step()
    late = [bench.submit([3, 4], 5, tenant="late") for _ in range(6)]
    bench.run()
    order = [r for r in bench.deltas if r in busy or r in late]
    finished_late_before_last_busy = [order.index(r) < order.index(busy[-1]) for r in late]
    assert not all(finished_late_before_last_busy)


def test_waiting_work_of_a_lower_class_gives_newcomers_no_credit():
    """Red if one batch request that waits lets every new tenant overtake those who are served."""
    bench = CoreBench(num_slots=1, depth=0, num_blocks=200, aging_s=1e9)
    bench.submit([5, 5], 4, tenant="batch", priority=2)
    served = [bench.submit([1, 2], 4, tenant="served") for _ in range(30)]
    for _ in range(40):
        bench.core.step()
    before = set(bench.deltas)
    late = [bench.submit([3, 4], 4, tenant="late") for _ in range(10)]
    for _ in range(40):
        bench.core.step()
    begun = set(bench.deltas) - before
    assert abs(len(begun & set(late)) - len(begun & set(served))) <= 1


def test_siblings_queue_where_their_call_arrived():
    """Red if the choices of one call wait behind everybody who came during its prefill."""
    bench = CoreBench(num_slots=1, depth=0)
    leader = bench.submit(list(range(20)), 2)
    sibling = bench.submit(list(range(20)), 2, leader=leader)
    later = [bench.submit([7], 2) for _ in range(3)]
    bench.run()
    assert list(bench.deltas) == [leader, sibling, *later]


def test_classes_come_first_and_aging_lifts_the_waiting():
    """Red if low priority starves, or does not yield."""
    bench = CoreBench(num_slots=1, depth=0, aging_s=10.0, num_blocks=200)
    low = bench.submit([1], 2, priority=1)
    bench.submit([2], 30)
    bench.core.step()  # the interactive one goes first although it came later
    assert bench.tokens(low) == []
    bench.clock.advance_to(25.0)  # low has waited for two classes
    high = bench.submit([3], 2)
    bench.run()
    order = list(bench.deltas)
    assert order.index(low) < order.index(high)


def test_an_interactive_request_takes_the_slot_of_batch_work():
    """Red if low-class work keeps its slots while interactive requests wait."""
    bench = CoreBench(num_slots=2, depth=1, num_blocks=200)
    batch = [bench.submit([i, i + 1], 30, priority=2) for i in range(2)]
    for _ in range(4):
        bench.core.step()
    interactive = bench.submit([9, 9], 2)
    for _ in range(5):
        bench.core.step()
    assert bench.tokens(interactive)
    bench.run()
    for i, request_id in enumerate(batch):
        assert bench.tokens(request_id) == expected_tokens([i, i + 1], 30)


def test_a_full_queue_answers_overloaded_with_a_time():
    """Red if the queue grows without bound or the refusal carries no Retry-After."""
    bench = CoreBench(num_slots=1, max_queue=3)
    bench.submit([1], 5)
    bench.core.step()
    ids = [bench.submit([1], 5) for _ in range(5)]
    refused = [i for i in ids if bench.finish(i) == "error"]
    assert len(refused) == 2
    kind, message, retry_after = bench.error(refused[0])
    assert kind == "rate_limit_error" and "3" in message and retry_after >= 1
    bench.run()


def test_siblings_count_in_the_queue_and_are_let_in_with_their_leader():
    """Red if n choices pass the bound of the queue as one, or a call is refused in parts."""
    bench = CoreBench(num_slots=1, max_queue=3)
    leader = bench.submit([1], 2)
    siblings = [bench.submit([1], 2, leader=leader) for _ in range(5)]
    assert not any(bench.finish(i) for i in siblings)
    other = bench.submit([2], 2)
    assert bench.error(other)[0] == "rate_limit_error"
    bench.run()
    assert all(bench.finish(i) == "length" for i in (leader, *siblings))


def test_ended_requests_leave_nothing_behind_until_their_deadline():
    """Red if the prompts of requests that ended stay in memory for as long as they were allowed to run."""
    bench = CoreBench()
    for _ in range(300):
        bench.submit([1, 2, 3], 1, deadline_s=3600.0)
        bench.run()
    gc.collect()
    assert sum(isinstance(thing, Request) for thing in gc.get_objects()) < 100


def test_a_deadline_holds_after_ended_ones_were_dropped():
    """Red if clearing the deadlines of ended requests loses or disorders those of the others."""
    bench = CoreBench(num_slots=2)
    late, soon = (bench.submit([i], 40, deadline_s=deadline) for i, deadline in ((1, 90.0), (2, 50.0)))
    for _ in range(200):
        aborted = bench.submit([3], 40, deadline_s=3600.0)
        bench.core.abort("c", aborted)
    bench.clock.advance_to(60.0)
    bench.core.step()
    assert bench.error(soon)[0] == "timeout_error" and bench.finish(late) is None
    bench.clock.advance_to(100.0)
    bench.core.step()
    assert bench.error(late)[0] == "timeout_error"


@pytest.mark.parametrize("running", [True, False])
def test_a_deadline_ends_a_request_wherever_it_is(running):
    """Red if a request outlives its deadline in the queue or in a slot."""
    bench = CoreBench(num_slots=1, depth=1)
    if not running:
        bench.submit([1], 20)
        bench.core.step()
    request_id = bench.submit([2], 20, deadline_s=5.0)
    bench.core.step()
    bench.clock.advance_to(6.0)
    bench.run()
    assert bench.error(request_id)[0] == "timeout_error"


def test_an_id_in_use_is_refused_and_the_first_goes_on():
    """Red if a repeated id mixes two streams."""
    bench = CoreBench()
    bench.submit([1], 3, id="same")
    bench.core.step()
    bench.submit([2], 3, id="same", client="c")
    errors = [d for d in bench.deltas["same"] if d.error]
    assert len(errors) == 1
    bench.run()
    assert [t for d in bench.deltas["same"] for t in d.tokens] == expected_tokens([1], 3)


def test_plans_are_read_only_and_survive_a_round_trip():
    """Red if someone can edit a launched plan, or a logged plan replays differently."""
    bench = CoreBench(windows=(None, 6))
    for i in range(3):
        bench.submit(list(range(10 + i)), 5)
    bench.run()
    for plan in bench.device.plans:
        with pytest.raises(ValueError):
            plan.counts[0] = 7
        again = decode_plan(encode_plan(plan))
        assert again.step == plan.step and again.slots.tolist() == plan.slots.tolist()
        assert [u.blocks.tolist() for u in again.updates] == [u.blocks.tolist() for u in plan.updates]
        assert [a.tokens.tolist() for a in again.admissions] == [a.tokens.tolist() for a in plan.admissions]


@pytest.mark.parametrize("window", [1, 4])
def test_logged_plans_replay_to_the_same_tokens(window):
    """Red if the device needs anything that is not in the plan."""
    first = CoreBench(windows=(None, 6), num_blocks=20, window=window)
    results = {}
    first.core._step_log = lambda plan, result: results.update({result.step: result.tokens.tolist()})
    for i in range(6):
        first.submit(list(range(3 * i, 3 * i + 10)), 8 + i, stop=[i])
        for _ in range(2 * i):
            first.core.step()
    first.run()
    second = CoreBench(windows=(None, 6), num_blocks=20)
    replayed = {}
    for logged in first.device.plans:
        for pending in second.device.launch_window(decode_plan(encode_plan(logged))):
            result = pending.wait()
            if result is not None:
                replayed[result.step] = result.tokens.tolist()
    assert results.items() <= replayed.items()  # more where the first run cut a window
    assert len(results) > 20
    assert max(plan.window for plan in first.device.plans) == window


def test_sliding_windows_hold_only_what_they_need():
    """Red if a window group keeps the whole context, or frees by planned instead of committed length."""
    bench = CoreBench(
        windows=(8,), block_size=4, num_blocks=5, max_context=64, prefix_cache=False, token_budget=4
    )
    request_id = bench.submit(list(range(40)), 20)
    bench.run()
    assert bench.tokens(request_id) == expected_tokens(list(range(40)), 20)
    assert bench.core.scheduler.preemptions == 0
