"""The whole core under random life, against an oracle that knows no scheduler.

The HashDevice checks every KV entry that a step reads and derives tokens from it; `expected_tokens`
is plain recursion over the prompt. Pools are tiny, so preemption, eviction and sharing happen all
the time.
"""

from __future__ import annotations

import hypothesis.strategies as st
from bench_core import CoreBench, expected_tokens
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from penstock.kv.groups import LayerKV, plan_layout

_PROMPT = st.builds(
    # A few fixed beginnings make shared prefixes likely.
    lambda stem, tail: [[1], [2, 3, 4, 5, 6], [7] * 9, [8, 9] * 8][stem] + tail,
    st.integers(0, 3),
    st.lists(st.integers(0, 90), max_size=20),
)


class CoreMachine(RuleBasedStateMachine):
    rules = plans = preemptions = hits = windows = cuts = drafts = accepted = (
        0  # over all examples: what was exercised
    )

    @initialize(
        depth=st.integers(0, 1),
        window=st.sampled_from([1, 2, 8]),
        windows=st.sampled_from([(None,), (6,), (None, 6), (9, None, 5), (3, None, None)]),
        spare_blocks=st.integers(0, 14),
        slots=st.integers(1, 6),
        budget=st.integers(3, 24),
        prefix_cache=st.booleans(),
        drafts=st.sampled_from([0, 0, 1, 5]),
        right_drafts=st.integers(0, 6),
    )
    def build(self, depth, window, windows, spare_blocks, slots, budget, prefix_cache, drafts, right_drafts):
        layout = plan_layout([LayerKV(1, 1, window) for window in windows], block_size=4, itemsize=1)
        blocks = layout.blocks_for(36, (1 + depth) * budget) + spare_blocks  # one request always fits
        self.bench = CoreBench(
            depth=depth,
            window=window,
            windows=windows,
            num_blocks=blocks,
            num_slots=slots,
            token_budget=budget,
            prefix_cache=prefix_cache,
            max_context=36,
            block_size=4,
            aging_s=2.0,
            drafts=drafts,
            right_drafts=right_drafts,
        )
        self.wanted: dict[str, tuple[str, list[int]]] = {}
        self.ended: set[str] = set()

    @rule(
        prompt=_PROMPT,
        max_tokens=st.integers(1, 16),
        tenant=st.sampled_from(["", "a", "b"]),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "s"]),
        client=st.sampled_from(["c", "d"]),
        stream=st.booleans(),
        stop=st.sets(st.integers(0, 96), max_size=12),
        min_tokens=st.integers(0, 2),
        read=st.booleans(),
        store=st.booleans(),
    )
    def submit(
        self, prompt, max_tokens, tenant, priority, salt, client, stream, stop, min_tokens, read, store
    ):
        request_id = self.bench.submit(
            prompt,
            max_tokens,
            client=client,
            tenant=tenant,
            priority=priority,
            cache_salt=salt,
            cache_read=read,
            cache_store=store,
            stream=stream,
            stop=sorted(stop),
            min_tokens=min_tokens,
        )
        if len(prompt) + max_tokens > 36:
            assert self.bench.error(request_id)[0] == "invalid_request_error"
            return
        self.wanted[request_id] = (client, expected_tokens(prompt, max_tokens, tuple(stop), min_tokens))

    @rule(prompt=_PROMPT, max_tokens=st.integers(1, 6), n=st.integers(2, 3))
    def submit_siblings(self, prompt, max_tokens, n):
        if len(prompt) + max_tokens > 36:
            return
        leader = None
        for _ in range(n):
            request_id = self.bench.submit(prompt, max_tokens, leader=leader, cache_salt="\x00private:x")
            leader = leader or request_id
            self.wanted[request_id] = ("c", expected_tokens(prompt, max_tokens))

    @rule(steps=st.integers(1, 12), pause=st.floats(0, 3))
    def step(self, steps, pause):
        self.bench.clock.advance_to(self.bench.clock() + pause)
        for _ in range(steps):
            self.bench.core.step()
        self._collect()

    @rule(choice=st.randoms())
    def abort(self, choice):
        running = sorted(set(self.wanted) - self.ended)
        if running:
            request_id = choice.choice(running)
            self.bench.core.abort(self.wanted[request_id][0], request_id)
            self._forget(request_id)

    @rule(client=st.sampled_from(["c", "d"]))
    def drop_client(self, client):
        self.bench.core.drop_client(client)
        for request_id in [i for i, (owner, _) in self.wanted.items() if owner == client]:
            if request_id not in self.ended:
                self._forget(request_id)

    @invariant()
    def outputs_are_prefixes_of_the_oracle(self):
        if hasattr(self, "bench"):
            CoreMachine.rules += 1
            self._collect()

    def teardown(self):
        if hasattr(self, "bench"):
            self.bench.run()
            self._collect()
            assert self.ended == set(self.wanted), "a request never ended"
            CoreMachine.plans += len(self.bench.device.plans)
            CoreMachine.preemptions += self.bench.core.scheduler.preemptions
            CoreMachine.windows += sum(plan.window > 1 for plan in self.bench.device.plans)
            CoreMachine.cuts += self.bench.device.cuts
            CoreMachine.hits += self.bench.core.progress().cached_tokens
            CoreMachine.drafts += self.bench.device.verified_drafts
            CoreMachine.accepted += self.bench.device.accepted_drafts

    def _forget(self, request_id):
        self._check(request_id)
        self.ended.add(request_id)
        self.seen_at_abort = len(self.bench.deltas.get(request_id, []))
        self.wanted[request_id] = ("", self.bench.tokens(request_id))

    def _collect(self):
        for request_id in self.wanted:
            self._check(request_id)
            if self.bench.finish(request_id):
                self.ended.add(request_id)

    def _check(self, request_id):
        want = self.wanted[request_id][1]
        got = self.bench.tokens(request_id)
        if self.bench.finish(request_id):
            assert got == want, f"{request_id}: {got} instead of {want}"
        else:
            assert got == want[: len(got)]


def test_any_life_of_requests_gives_the_oracles_tokens_for_2000_steps():
    """Red if scheduling, sharing, preemption, aborts or fairness change a token, lose one or leak a block."""
    CoreMachine.rules = CoreMachine.preemptions = CoreMachine.hits = CoreMachine.plans = 0
    CoreMachine.windows = CoreMachine.cuts = CoreMachine.drafts = CoreMachine.accepted = 0
    run_state_machine_as_test(CoreMachine, settings=settings(max_examples=110, stateful_step_count=60))
    assert CoreMachine.rules >= 2000
    assert CoreMachine.plans >= 2000
    assert min(CoreMachine.preemptions, CoreMachine.hits) >= 15
    assert min(CoreMachine.windows, CoreMachine.cuts) >= 10
    assert CoreMachine.drafts >= 200
    assert 50 <= CoreMachine.accepted < CoreMachine.drafts
