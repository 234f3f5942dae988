"""Windows of steps in the loop, over a device whose tokens depend on every KV entry they read."""

from __future__ import annotations

import pytest
from bench_core import CoreBench, expected_tokens

from penstock.decoding.params import TokenSampling
from penstock.decoding.thinking import ThinkingSpec
from penstock.engine.messages import Submit, pack_tokens

PROMPT = list(range(1, 11))


def _bench(**settings) -> CoreBench:
    return CoreBench(**{"num_blocks": 200, "max_context": 64, "window": 8, "prefix_cache": False, **settings})


def _needed(prompt: list[int], tokens: list[int]) -> int:
    """Positions that must be computed: the last token needs no KV."""
    return len(prompt) + len(tokens) - 1


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("window", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("stream", [True, False])
def test_every_window_gives_the_tokens_of_single_steps(depth, window, stream):
    """Red if a step of a window reads or writes another place than the same step alone."""
    bench = _bench(depth=depth, window=window, stream=stream, windows=(None, 6), block_size=4)
    lengths = [3, 9, 17, 40]
    ids = [bench.submit(PROMPT[: 2 + i], length) for i, length in enumerate(lengths)]
    bench.run()
    for i, request_id in enumerate(ids):
        assert bench.tokens(request_id) == expected_tokens(PROMPT[: 2 + i], lengths[i])
    assert max(plan.window for plan in bench.device.plans) == min(window, 39)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("depth", [0, 1])
def test_rows_that_end_inside_a_window_cost_nothing_after_it(depth, stream):
    """Red if a row is computed after its max_tokens or its stop token, or the window waits for the others."""
    bench = _bench(depth=depth, stream=stream)
    plain = expected_tokens(PROMPT, 40)
    stop = plain[20]
    assert stop not in plain[:20]
    wanted = {
        bench.submit(PROMPT, 40): plain,
        bench.submit(PROMPT, 40, stop=[stop]): plain[:21],
        bench.submit(PROMPT, 19): plain[:19],
    }
    bench.run()
    assert {request_id: bench.tokens(request_id) for request_id in wanted} == wanted
    assert bench.device.computed_tokens == sum(_needed(PROMPT, tokens) for tokens in wanted.values())


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_window_ends_with_its_last_row(depth, stream):
    """Red if the device goes on after every row drew its stop token, or the loop waits for the rest."""
    bench = _bench(depth=depth, stream=stream)
    plain = expected_tokens(PROMPT, 40)
    request_id = bench.submit(PROMPT, 40, stop=[plain[10]])
    bench.run()
    assert bench.tokens(request_id) == plain[: plain.index(plain[10]) + 1]
    assert bench.device.computed_tokens == _needed(PROMPT, bench.tokens(request_id))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("depth", [0, 1])
def test_an_arrival_cuts_the_window(depth, stream):
    """Red if an arrival waits for the end of a window: after it, at most `depth` steps are still begun
    before the one that admits it, and the one that runs."""
    bench = _bench(depth=depth, window=32, stream=stream)
    bench.submit(PROMPT, 50)
    while len(bench.tokens("r1")) < 5:
        bench.core.step()
    executed = bench.device._executed
    late = bench.submit([5, 6], 3)
    while not bench.deltas.get(late):
        bench.core.step()
    admitted = next(plan for plan in bench.device.plans for a in plan.admissions if a.prompt_len == 2)
    before = [step for step in bench.device.steps if executed < step < admitted.step]
    assert len(before) <= depth + 1
    bench.run()
    assert bench.tokens("r1") == expected_tokens(PROMPT, 50)
    assert bench.tokens(late) == expected_tokens([5, 6], 3)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("how", ["abort", "deadline"])
def test_a_request_that_leaves_cuts_the_window(depth, how):
    """Red if the device computes a request on for the rest of a window that nobody wants any more."""
    bench = _bench(depth=depth, window=32)
    fields = {"deadline_s": 1.0} if how == "deadline" else {}
    bench.submit(PROMPT, 50, **fields)
    other = bench.submit(PROMPT[:3], 50)
    while len(bench.deltas.get("r1", [])) < 5:
        bench.core.step()
    before = bench.device.computed_tokens
    if how == "abort":
        bench.core.abort("c", "r1")
    else:
        bench.clock.advance_to(bench.clock() + 2.0)
    seen = len(bench.tokens(other))
    bench.run()
    assert bench.tokens(other) == expected_tokens(PROMPT[:3], 50)
    assert bench.device.computed_tokens - before <= 50 - seen + depth + 1


def test_steps_are_applied_together_unless_a_caller_reads_each():
    """Red if a stream waits for a window, or a window whose tokens nobody reads wakes the host each step."""
    for streams, together in [((False, False), True), ((False, True), False), ((True, True), False)]:
        bench = _bench()
        ids = [bench.submit(PROMPT[: 3 + i], 40, stream=stream) for i, stream in enumerate(streams)]
        bench.run()
        assert (bench.device.together > 1) is together
        sizes = [len(delta.tokens) for request_id in ids for delta in bench.deltas[request_id]]
        assert (max(sizes) > 1) is together
        wanted = [expected_tokens(PROMPT[: 3 + i], 40) for i in range(2)]
        assert [bench.tokens(request_id) for request_id in ids] == wanted


def test_what_needs_more_than_a_token_is_sent_step_by_step():
    """Red if log-probabilities, or a ninth stop token, are lost where steps are applied together."""
    for field in ({"logprobs": 1}, {"stop_token_ids": tuple(range(1000, 1009))}):
        bench = _bench(stream=False)
        sampling = TokenSampling(max_tokens=20, seed=0, **field)
        bench.core.submit("c", Submit(id="a", tokens=pack_tokens(PROMPT), sampling=sampling, stream=False))
        bench.run()
        assert bench.device.together == 0
        assert [len(delta.tokens) for delta in bench.deltas["a"]] == [1] * 20


@pytest.mark.parametrize("depth", [0, 1])
def test_a_prefix_that_steps_applied_together_wrote_is_reused(depth):
    """Red if steps applied together publish a block beyond the tokens that count, or none at all."""
    bench = _bench(depth=depth, stream=False, prefix_cache=True, block_size=4)
    plain = expected_tokens(PROMPT, 30)
    first = bench.submit(PROMPT, 30, stop=[plain[13]])
    bench.run()
    answer = bench.tokens(first)
    assert answer == plain[: plain.index(plain[13]) + 1]
    follow = PROMPT + answer + [7, 7, 7]
    again = bench.submit(follow, 12)
    bench.run()
    assert bench.tokens(again) == expected_tokens(follow, 12)
    # The last token of an answer is drawn, not computed.
    assert bench.deltas[again][0].cached_tokens == (len(PROMPT) + len(answer) - 1) // 4 * 4


def test_windows_never_preempt():
    """Red if reserving ahead throws out a request that single steps would have kept."""
    for window in (1, 8):
        bench = _bench(window=window, num_blocks=10, block_size=4, num_slots=2, max_context=20, depth=0)
        ids = [bench.submit([i] * 4, 16) for i in range(2)]  # 5 blocks each
        bench.run()
        assert bench.core.scheduler.preemptions == 0
        assert [bench.tokens(i) for i in ids] == [expected_tokens([i] * 4, 16) for i in range(2)]


def test_a_window_shrinks_to_what_the_pool_grants_and_gives_the_rest_back():
    """Red if a refused window keeps the blocks that it got before, or gives up at once."""
    bench = _bench(window=32, num_blocks=9, block_size=4, num_slots=2, max_context=36, depth=0)
    ids = [bench.submit([i] * 4, 14) for i in range(2)]  # 17 positions: 5 blocks each at the end
    bench.run()
    windows = [plan.window for plan in bench.device.plans]
    assert 1 < max(windows) < 13
    assert [bench.tokens(i) for i in ids] == [expected_tokens([i] * 4, 14) for i in range(2)]


def test_rows_that_need_the_host_are_planned_step_by_step():
    """Red if the device is asked to draw by itself what only the host's sampler can."""
    bench = _bench()
    thinking = ThinkingSpec(starts=((900,),), ends=((901,),), budget=5)
    sampling = TokenSampling(max_tokens=20, seed=0, thinking=thinking)
    bench.core.submit("c", Submit(id="host", tokens=pack_tokens(PROMPT), sampling=sampling))
    bench.run()
    assert {plan.window for plan in bench.device.plans} == {1}


@pytest.mark.parametrize(
    "field",
    [
        {"repetition_penalty": 1.2},
        {"logit_bias": ((3, 1.0),)},
        {"bad_words": ((3,),)},
        {"min_tokens": 6, "stop_token_ids": (1000,)},
    ],
)
def test_rows_whose_scores_the_device_edits_are_planned_in_windows(field):
    """Red if penalties, bias, words or min_tokens cost a request its windows."""
    bench = _bench(depth=0)
    sampling = TokenSampling(max_tokens=20, seed=0, **field)
    bench.core.submit("c", Submit(id="own", tokens=pack_tokens(PROMPT), sampling=sampling))
    bench.run()
    assert bench.device.plans[1].window == 8


def test_a_cut_gives_a_tenants_tokens_back():
    """Red if steps that never ran are counted against a tenant's share."""
    bench = _bench(depth=0, window=32)
    bench.submit(PROMPT, 40, tenant="a")
    for _ in range(3):
        bench.core.step()
    bench.submit(PROMPT, 2, tenant="b", priority=1)
    tenants = bench.core.scheduler.policy.tenants
    bench.core.step()
    charged = float(tenants.virtual[tenants.index("a")])
    computed = int(bench.core.table.planned[bench.core._requests["c", "r1"].slot])
    assert charged == computed
    bench.run()


def test_a_step_that_fails_inside_a_window_fails_its_requests_only():
    """Red if a window's later steps are applied after one failed, or what was planned for them is lost."""
    bench = _bench(depth=1)
    broken = bench.submit(PROMPT, 30)
    while len(bench.tokens(broken)) < 4:
        bench.core.step()
    execute = bench.device.execute
    failing = bench.device._executed + 2

    def fail_once(plan, index, window):
        if plan.step + index == failing:
            bench.device.execute = execute
            raise RuntimeError("lost")
        return execute(plan, index, window)

    bench.device.execute = fail_once
    while not bench.finish(broken):
        bench.core.step()
    assert bench.finish(broken) == "error"
    later = bench.submit(PROMPT, 12)
    bench.run()
    assert bench.tokens(later) == expected_tokens(PROMPT, 12)


def test_close_does_not_wait_for_a_window():
    """Red if shutting down runs a window to its end."""
    bench = _bench(window=64, depth=0)
    bench.submit(PROMPT, 50)
    for _ in range(3):
        bench.core.step()
    bench.core.close()
    assert bench.device._youngest.limit <= 3
