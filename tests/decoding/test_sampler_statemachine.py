"""Many requests over few slots: admitted, sampled in any mix, preempted, dropped; against the naive twin."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from naive_sampler import next_token

from penstock.decoding.params import TokenSampling
from penstock.decoding.sampling import Sampler
from penstock.decoding.thinking import ThinkingSpec

SLOTS, VOCAB = 5, 24
TOKEN = st.integers(0, VOCAB - 1)
# Few tokens, so that bad words match and penalties repeat.
COMMON = st.integers(0, 3)


def maybe(strategy: st.SearchStrategy, neutral: object) -> st.SearchStrategy:
    return st.one_of(st.just(neutral), strategy)


MARKERS = st.lists(st.lists(COMMON, min_size=1, max_size=3).map(tuple), min_size=1, max_size=2).map(tuple)


# Multiples of 1/4 and powers of two: float32 rounds nothing, ties are frequent, and the twin is exact.
# The masses lie where no sum of such probabilities can come within rounding.
SAMPLINGS = st.builds(
    TokenSampling,
    max_tokens=st.just(10**6),
    seed=st.integers(0, 2**64 - 1),
    min_tokens=maybe(st.integers(1, 6), 0),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_p=maybe(st.sampled_from([1e-6, 0.3717, 0.8391]), 1.0),
    top_k=maybe(st.integers(1, 30), 0),
    min_p=maybe(st.sampled_from([0.0831, 0.377]), 0.0),
    typical_p=maybe(st.sampled_from([0.213, 0.871]), 1.0),
    repetition_penalty=st.sampled_from([0.5, 1.0, 2.0]),
    presence_penalty=st.sampled_from([-0.5, 0.0, 1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.25]),
    logit_bias=maybe(st.dictionaries(TOKEN, st.sampled_from([-100.0, -1.5, 2.0, 100.0]), max_size=4), {}).map(
        lambda biases: tuple(biases.items())
    ),
    allowed_token_ids=maybe(st.sets(TOKEN, min_size=1, max_size=8).map(tuple), ()),
    bad_words=maybe(st.lists(st.lists(COMMON, min_size=1, max_size=3).map(tuple), max_size=6).map(tuple), ()),
    stop_token_ids=maybe(st.sets(TOKEN, max_size=4).map(tuple), ()),
    logprobs=st.sampled_from([-1, 0, 3, 30]),
    thinking=maybe(
        st.builds(
            ThinkingSpec,
            starts=MARKERS,
            ends=MARKERS,
            budget=st.integers(0, 5),
            closing=maybe(st.just((3, 2)), ()),
            open=st.booleans(),
        ),
        None,
    ),
)


@dataclass
class Request:
    sampling: TokenSampling
    prompt: list[int]
    output: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> np.ndarray:
        return np.array(self.prompt + self.output, np.int32)


class SamplerMachine(RuleBasedStateMachine):
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.sampler = Sampler(SLOTS, VOCAB)
        self.slots: dict[int, Request] = {}
        self.waiting: list[Request] = []

    @rule(slot=st.integers(0, SLOTS - 1), prompt=st.lists(COMMON, min_size=1, max_size=8), sampling=SAMPLINGS)
    def admit(self, slot, prompt, sampling):
        """Also over a slot still taken: its request has ended."""
        request = self.slots[slot] = Request(sampling, prompt)
        self.sampler.admit(slot, request.tokens, len(prompt), sampling)

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def preempt(self, data):
        slot = data.draw(st.sampled_from(sorted(self.slots)))
        self.waiting.append(self.slots.pop(slot))
        if data.draw(st.booleans()):  # else the next admission writes over it
            self.sampler.release(slot)

    @precondition(lambda self: self.waiting and len(self.slots) < SLOTS)
    @rule(data=st.data())
    def readmit(self, data):
        slot = data.draw(st.sampled_from(sorted(set(range(SLOTS)) - set(self.slots))))
        request = self.slots[slot] = self.waiting.pop(0)
        self.sampler.admit(slot, request.tokens, len(request.prompt), request.sampling)

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def end(self, data):
        slot = data.draw(st.sampled_from(sorted(self.slots)))
        del self.slots[slot]
        self.sampler.release(slot)

    def _step(self, data) -> None:
        slots = data.draw(st.permutations(sorted(self.slots)))
        slots = slots[: data.draw(st.integers(1, len(slots)))]
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        logits = (rng.integers(-12, 12, (len(slots), VOCAB)) / 4).astype(np.float32)
        logits[rng.random(logits.shape) < 0.05] = -np.inf
        logits[:, rng.integers(VOCAB)] = 1.0  # at least one token is possible
        requests = [self.slots[slot] for slot in slots]
        positions = np.array([len(request.tokens) for request in requests])
        tokens, logprobs = self.sampler.sample(logits, np.array(slots), positions)
        assert set(logprobs) == {i for i, request in enumerate(requests) if request.sampling.logprobs >= 0}
        for i, request in enumerate(requests):
            row = logits[i].tolist()
            assert tokens[i] == next_token(row, request.prompt, request.output, request.sampling)
            if i in logprobs:
                check_logprobs(row, int(tokens[i]), request.sampling.logprobs, logprobs[i])
            request.output.append(int(tokens[i]))

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def sample(self, data):
        """Some steps in a row, as most of what a serving engine does."""
        for _ in range(data.draw(st.integers(1, 8))):
            self._step(data)
            type(self).steps += 1


def check_logprobs(row: list[float], token: int, k: int, found) -> None:
    normalizer = math.log(sum(math.exp(x) for x in row))
    order = sorted(range(VOCAB), key=lambda i: (-row[i], i))[:k]
    assert found.top_ids[0].tolist() == order
    np.testing.assert_allclose(found.top[0], [row[i] - normalizer for i in order], atol=1e-5)
    np.testing.assert_allclose(found.chosen, [row[token] - normalizer], atol=1e-5)


def test_sampler_equals_the_naive_twin_over_any_history():
    """Red if any mix of settings, batches, slot reuse and preemption draws one other token."""
    SamplerMachine.steps = 0
    run_state_machine_as_test(SamplerMachine, settings=settings(max_examples=100, stateful_step_count=70))
    assert SamplerMachine.steps >= 2000
