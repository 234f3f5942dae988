"""One test per trap of the architecture page that concerns scheduling: each was a shipped bug of a peer."""

from __future__ import annotations

import pytest
from bench_core import CoreBench, expected_tokens
from hash_device import VOCAB

from penstock.decoding.params import TokenSampling
from penstock.engine.messages import Submit

LONG = list(range(1, 31))


@pytest.mark.parametrize("depth", [0, 1])
def test_abort_between_schedule_and_launch(depth):
    """Red if a row of an ended request is applied, or its blocks leak, when the abort comes first."""
    bench = CoreBench(depth=depth)
    victim = bench.submit(LONG, 8)
    other = bench.submit(LONG, 8)
    launch = bench.device.launch

    def abort_then_launch(plan):
        if plan.step == 3:
            bench.core.abort("c", victim)
        return launch(plan)

    bench.device.launch = abort_then_launch
    bench.run()
    assert bench.finish(victim) is None
    assert bench.tokens(other) == expected_tokens(LONG, 8)


def test_preemption_while_a_step_is_in_flight_keeps_its_token():
    """Red if a preempted request loses or repeats the token that was on its way."""
    bench = CoreBench(depth=1, num_blocks=12, num_slots=4, prefix_cache=False, max_context=40)
    prompts = [[i] * 10 for i in range(1, 5)]
    ids = [bench.submit(prompt, 20) for prompt in prompts]
    bench.run()
    assert bench.core.scheduler.preemptions > 0
    for request_id, prompt in zip(ids, prompts, strict=True):
        assert bench.tokens(request_id) == expected_tokens(prompt, 20)


@pytest.mark.parametrize("depth", [0, 1])
def test_end_of_sequence_and_max_tokens_in_the_same_step(depth):
    """Red if a request that stops on its very last token ends twice or reports length."""
    bench = CoreBench(depth=depth)
    last = expected_tokens(LONG, 3)
    request_id = bench.submit(LONG, 3, stop=[last[-1]] if last[-1] not in last[:-1] else [last[0]])
    bench.run()
    assert bench.finish(request_id) == "stop"
    assert sum(delta.finish is not None for delta in bench.deltas[request_id]) == 1


def test_end_of_sequence_wastes_at_most_one_row():
    """Red if a finished request is planned again after the host knew it ended."""
    bench = CoreBench(depth=1)
    tokens = expected_tokens([5, 6], 20)
    request_id = bench.submit([5, 6], 20, stop=[tokens[4]])
    bench.run()
    used = bench.tokens(request_id)
    rows = sum(plan.num_rows for plan in bench.device.plans)
    assert rows == len(used) + 1


def test_max_tokens_wastes_no_row():
    """Red if the host plans past a limit that it knew beforehand."""
    bench = CoreBench(depth=1)
    bench.submit([5, 6], 7)
    bench.run()
    assert sum(plan.num_rows for plan in bench.device.plans) == 7


def test_a_full_prefix_hit_still_computes_one_token():
    """Red if a fully cached prompt is planned with zero tokens: no logits, no answer."""
    bench = CoreBench(block_size=4)
    prompt = list(range(16))
    for _ in range(2):
        request_id = bench.submit(prompt, 2)
        bench.run()
        assert bench.tokens(request_id) == expected_tokens(prompt, 2)
    assert bench.deltas[request_id][0].cached_tokens == 12


def test_prompt_longer_than_the_context_is_refused_not_hung():
    """Red if an over-long prompt waits for ever instead of failing with both numbers."""
    bench = CoreBench(max_context=64)
    request_id = bench.submit(list(range(65)), 1)
    kind, message, _ = bench.error(request_id)
    assert kind == "invalid_request_error"
    assert "65" in message and "64" in message
    assert not bench.core.has_work


@pytest.mark.parametrize("token_budget", [8, 64])
def test_request_bigger_than_the_whole_pool_ends_with_an_error(token_budget):
    """Red if a request that can never fit preempts itself, or waits for a first chunk, for ever."""
    bench = CoreBench(num_blocks=4, block_size=4, max_context=64, token_budget=token_budget)
    request_id = bench.submit(list(range(30)), 4)
    bench.run(most_steps=100)
    assert bench.error(request_id)[0] == "service_unavailable_error"
    small = bench.submit([1, 2], 2)
    bench.run()
    assert bench.tokens(small) == expected_tokens([1, 2], 2)


def test_client_gone_before_the_first_token_frees_its_slot_within_one_step():
    """Red if a caller that left keeps computing."""
    bench = CoreBench(num_slots=1, token_budget=8, depth=1)
    gone = bench.submit(LONG, 30, client="gone")
    other = bench.submit([1, 2, 3], 3, client="here")
    bench.core.step()
    bench.core.drop_client("gone")
    before = bench.device.computed_tokens
    bench.core.step()
    bench.core.step()
    assert bench.device.plans[-1].admissions or bench.device.plans[-2].admissions
    bench.run()
    assert bench.finish(gone) is None
    assert bench.tokens(other) == expected_tokens([1, 2, 3], 3)
    assert bench.device.computed_tokens - before <= 8 + 5


def test_two_tenants_never_share_a_cached_prefix():
    """Red if a different cache salt hits, which tells one tenant what another asked."""
    bench = CoreBench()
    prompt = list(range(20))
    cached = []
    for salt in ("a", "b", "a"):
        request_id = bench.submit(prompt, 1, cache_salt=salt)
        bench.run()
        cached.append(bench.deltas[request_id][0].cached_tokens)
    assert cached == [0, 0, 16]


def test_prompt_logprobs_with_a_cached_prefix_read_no_cached_block():
    """Red if a request for prompt logprobs skips positions whose logits it must report."""
    bench = CoreBench()
    prompt = list(range(20))
    for prompt_logprobs in (-1, 0):
        request_id = bench.submit(prompt, 1, prompt_logprobs=prompt_logprobs)
        bench.run()
    assert bench.deltas[request_id][0].cached_tokens == 0
    follower = bench.submit(prompt, 1)
    bench.run()
    assert bench.deltas[follower][0].cached_tokens == 16


def test_groups_disagreeing_about_a_hit_take_the_longest_common_one():
    """Red if a hit of the full group is used although the window's blocks are gone."""
    bench = CoreBench(windows=(None, 5), block_size=4, num_blocks=48, max_context=60)
    base = list(range(40))
    first = bench.submit(base, 1)
    bench.run()
    # Shorter prefixes lie outside what the window group still holds near their end, or inside it:
    # whatever is reused, the device checks every entry that attention would read.
    for cut in range(4, 40, 3):
        request_id = bench.submit([*base[:cut], VOCAB - 1], 2)
        bench.run()
        assert bench.tokens(request_id) == expected_tokens([*base[:cut], VOCAB - 1], 2)
    assert bench.tokens(first) == expected_tokens(base, 1)


def test_siblings_share_the_prompt_even_without_prefix_cache():
    """Red if n > 1 computes the prompt n times, or if its private blocks stay behind."""
    bench = CoreBench(prefix_cache=False, num_slots=4, token_budget=64)
    prompt = list(range(24))
    leader = bench.submit(prompt, 4, cache_salt="\x00private:r")
    siblings = [bench.submit(prompt, 4, cache_salt="\x00private:r", leader=leader) for _ in range(3)]
    bench.run()
    assert [bench.deltas[s][0].cached_tokens for s in siblings] == [20, 20, 20]
    for request_id in (leader, *siblings):
        assert bench.tokens(request_id) == expected_tokens(prompt, 4)
    assert bench.core.kv.stats().reusable == 0


def test_siblings_of_an_aborted_leader_go_on():
    """Red if a choice waits for ever for a first choice that was cancelled."""
    bench = CoreBench(token_budget=4)
    leader = bench.submit(LONG, 4)
    sibling = bench.submit(LONG, 4, leader=leader)
    bench.core.step()
    bench.core.abort("c", leader)
    bench.run()
    assert bench.tokens(sibling) == expected_tokens(LONG, 4)


def test_abort_of_a_waiting_sibling_leaves_nothing():
    """Red if cancelling all choices at once trips over the one that was never queued."""
    bench = CoreBench(token_budget=4)
    leader = bench.submit(LONG, 4)
    sibling = bench.submit(LONG, 4, leader=leader)
    bench.core.step()
    bench.core.abort("c", sibling)
    bench.core.abort("c", leader)
    bench.run()
    assert bench.finish(leader) is None and bench.finish(sibling) is None


@pytest.mark.parametrize("depth", [0, 1])
def test_a_failing_step_ends_its_requests_and_nobody_else(depth):
    """Red if an exception in one step kills the engine, leaks a slot or hangs a stream."""
    bench = CoreBench(depth=depth, num_slots=2)
    victims = [bench.submit([i] * 6, 20) for i in range(2)]
    waiting = bench.submit([9, 9], 4)
    execute = bench.device.execute

    def fail_once(plan, *where):
        result = execute(plan, *where)
        if plan.step == 3:
            raise FloatingPointError("NaN in the logits")
        return result

    bench.device.execute = fail_once
    bench.run()
    for victim in victims:
        kind, message, _ = bench.error(victim)
        assert kind == "internal_error" and "NaN in the logits" in message
    assert bench.tokens(waiting) == expected_tokens([9, 9], 4)


def test_who_was_admitted_behind_a_failing_step_goes_on():
    """Red if the step launched before a failure was known takes requests along that had no part in it."""
    bench = CoreBench(depth=1)
    victim = bench.submit([1] * 6, 20)
    execute = bench.device.execute

    def fail_twice(plan, *where):
        result = execute(plan, *where)
        if plan.step in (3, 4):  # the rows of a failed step are undefined, so the next one fails on them
            raise FloatingPointError("NaN in the logits")
        return result

    bench.device.execute = fail_twice
    for _ in range(3):
        bench.core.step()
    newcomer = bench.submit([9, 9], 4)
    bench.run()
    assert bench.error(victim)[0] == "internal_error"
    assert bench.tokens(newcomer) == expected_tokens([9, 9], 4)


def test_closing_while_a_failing_step_is_in_flight_stops_the_device():
    """Red if the error of a step that nobody waits for any more keeps the device's thread alive."""
    bench = CoreBench(depth=1)
    closed = []
    bench.device.close = lambda: closed.append(True)
    bench.device.execute = lambda *_: 1 / 0
    bench.submit(LONG, 8)
    bench.core.step()
    bench.core.close()
    assert closed and not bench.core.has_work


@pytest.mark.parametrize(("tokens", "max_tokens"), [(b"", 4), (b"\x01\0\0\0\x02", 4), (b"\x01\0\0\0", 0)])
def test_a_request_that_could_not_end_or_be_read_is_refused(tokens, max_tokens):
    """Red if a caller's malformed message kills the engine, or is planned for ever without a token."""
    bench = CoreBench()
    sampling = TokenSampling(max_tokens=max_tokens, seed=0)
    bench.core.submit("c", Submit(id="odd", tokens=tokens, sampling=sampling))
    assert bench.error("odd")[0] == "invalid_request_error"
    bench.run()


def test_weights_updated_under_a_warm_prefix_cache():
    """Red if KV of the old weights is reused after a reset, even by a request that was running then."""
    bench = CoreBench()
    prompt = list(range(20))
    bench.submit(prompt, 1)
    bench.run()
    running = bench.submit([*prompt, 50], 12)
    bench.core.step()
    bench.core.kv.reset(b"new weights")
    bench.run()
    assert bench.tokens(running) == expected_tokens([*prompt, 50], 12)
    fresh = bench.submit(prompt, 1)
    bench.run()
    assert bench.deltas[fresh][0].cached_tokens == 0


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(("num_blocks", "budget", "length"), [(9, 8, 28), (10, 10, 32), (11, 10, 32)])
def test_tenants_that_do_not_fit_together_all_end(num_blocks, budget, length, depth):
    """Red if whoever was served least takes the memory of whoever was served, in turns and for ever."""
    bench = CoreBench(
        num_blocks=num_blocks,
        block_size=4,
        token_budget=budget,
        max_context=36,
        depth=depth,
        prefix_cache=False,
    )
    prompts = {name: [number] * length for number, name in enumerate("abc")}
    ids = {name: bench.submit(prompt, 3, tenant=name) for name, prompt in prompts.items()}
    bench.run(most_steps=200)
    for name, prompt in prompts.items():
        assert bench.tokens(ids[name]) == expected_tokens(prompt, 3)
