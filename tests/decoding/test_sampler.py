"""The sampler as a whole: order of processing, what yields, batch invariance, preemption, refusals."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from penstock.decoding import philox
from penstock.decoding.params import TokenSampling
from penstock.decoding.sampling import NonFiniteLogits, Sampler
from penstock.errors import InvalidRequest, PenstockError

VOCAB = 300


def sampling(**fields) -> TokenSampling:
    return TokenSampling(**{"max_tokens": 1000, "seed": 0, "temperature": 0.0, **fields})


def one(logits, settings_: TokenSampling, prompt=(1, 2, 3), output=()) -> int:
    """The token drawn by a fresh sampler for one request."""
    logits = np.array(logits, np.float32)
    sampler = Sampler(1, len(logits))
    tokens = np.array([*prompt, *output], np.int32)
    sampler.admit(0, tokens, len(prompt), settings_)
    drawn, _ = sampler.sample(logits[None], np.array([0]), np.array([len(tokens)]))
    return int(drawn[0])


TOKEN = st.integers(0, VOCAB - 1)


@st.composite
def any_sampling(draw):
    """Every setting on or off, alone and together."""

    def some(strategy, neutral):
        return draw(st.one_of(st.just(neutral), strategy))

    words = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple), max_size=6).map(tuple)
    return TokenSampling(
        max_tokens=1000,
        seed=draw(st.integers(-(2**63), 2**64 - 1)),
        min_tokens=some(st.integers(1, 20), 0),
        temperature=some(st.floats(0.05, 3.0), 0.0),
        top_p=some(st.floats(0.05, 0.99), 1.0),
        top_k=some(st.integers(1, 400), 0),
        min_p=some(st.floats(0.001, 0.5), 0.0),
        typical_p=some(st.floats(0.05, 0.99), 1.0),
        repetition_penalty=some(st.floats(0.5, 2.0), 1.0),
        presence_penalty=some(st.floats(-2, 2), 0.0),
        frequency_penalty=some(st.floats(-2, 2), 0.0),
        logit_bias=tuple(some(st.dictionaries(TOKEN, st.floats(-100, 100), max_size=5), {}).items()),
        allowed_token_ids=tuple(some(st.sets(TOKEN, min_size=1, max_size=40), ())),
        bad_words=some(words, ()),
        stop_token_ids=tuple(some(st.sets(TOKEN, max_size=4), ())),
        logprobs=some(st.integers(0, 5), -1),
    )


def chain(s: TokenSampling, prompt_len: int) -> LogitsProcessorList:
    """transformers' processors for the settings that it has, in its own order."""
    made = LogitsProcessorList()
    if s.logit_bias:
        made.append(SequenceBiasLogitsProcessor({(token,): bias for token, bias in s.logit_bias}))
    if s.repetition_penalty != 1.0:
        made.append(RepetitionPenaltyLogitsProcessor(s.repetition_penalty))
    if s.bad_words:
        made.append(NoBadWordsLogitsProcessor([list(word) for word in s.bad_words]))
    if s.min_tokens and s.stop_token_ids:
        made.append(MinNewTokensLengthLogitsProcessor(prompt_len, s.min_tokens, list(s.stop_token_ids)))
    if s.temperature:
        made.append(TemperatureLogitsWarper(s.temperature))
        if s.top_k:
            made.append(TopKLogitsWarper(s.top_k))
        if s.top_p != 1.0:
            made.append(TopPLogitsWarper(s.top_p))
        if s.min_p:
            made.append(MinPLogitsWarper(s.min_p))
        if s.typical_p != 1.0:
            made.append(TypicalLogitsWarper(s.typical_p))
    return made


@settings(max_examples=300)
@given(any_sampling(), st.integers(0, 2**32), st.lists(st.integers(0, 9), min_size=4, max_size=30), st.data())
def test_token_is_that_of_transformers_processors(s, seed, tokens, data):
    """Red if any setting, or the order in which settings act, differs from transformers' in one draw."""
    # Not in transformers: tested below against the formula.
    s = TokenSampling(
        **{f: getattr(s, f) for f in s.__struct_fields__}
        | {"presence_penalty": 0.0, "frequency_penalty": 0.0, "allowed_token_ids": ()}
    )
    prompt_len = data.draw(st.integers(1, len(tokens)))
    logits = (np.random.default_rng(seed).standard_normal(VOCAB) * 4).astype(np.float32)
    ids = torch.tensor([tokens])
    # float32 up to the masks, as in a model; the distribution itself in float64.
    scores = torch.tensor(logits[None])
    for processor in chain(s, prompt_len):
        if isinstance(processor, TemperatureLogitsWarper):
            scores = scores.to(torch.float64)
        scores = processor(ids, scores)
    if s.temperature == 0.0:
        expected = int(scores[0].argmax())
    else:
        cumulative = torch.softmax(scores[0], -1).cumsum(-1)
        noise = philox.uniform(np.uint64(s.seed % 2**64), len(tokens))[0]
        expected = int((cumulative <= noise * cumulative[-1]).sum())
    assert one(logits, s, tokens[:prompt_len], tokens[prompt_len:]) == expected


@given(
    st.lists(st.integers(0, 19), max_size=30),
    st.lists(st.integers(0, 19), max_size=30),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.integers(0, 2**32),
)
def test_presence_and_frequency_follow_the_openai_formula(prompt, output, presence, frequency, seed):
    """Red if the prompt counts or the two are mixed up: mu - count * frequency - (count > 0) * presence."""
    logits = np.random.default_rng(seed).standard_normal(20).astype(np.float32)
    counts = np.array([output.count(token) for token in range(20)], np.float32)
    expected = logits - counts * np.float32(frequency) - (counts > 0) * np.float32(presence)
    s = sampling(presence_penalty=presence, frequency_penalty=frequency)
    found = one(logits, s, prompt, output)
    assert expected[found] == pytest.approx(expected.max(), abs=1e-5)


def test_penalties_learn_drawn_tokens():
    """Red if a drawn token is not recorded: greedy on constant logits must then repeat itself."""
    sampler = Sampler(1, 50)
    sampler.admit(0, np.array([7], np.int32), 1, sampling(presence_penalty=2.0, repetition_penalty=1.5))
    logits = np.linspace(1.0, 1.5, 50, dtype=np.float32)[None]
    drawn = [int(sampler.sample(logits, np.array([0]), np.array([1 + i]))[0][0]) for i in range(49)]
    assert drawn == [token for token in range(49, -1, -1) if token != 7]


@settings(max_examples=60)
@given(st.lists(any_sampling(), min_size=2, max_size=8), st.integers(0, 2**32))
def test_a_row_in_a_batch_equals_the_row_alone(rows, seed):
    """Red if a token or a log-probability depends, by one bit, on what else is in the batch."""
    rng = np.random.default_rng(seed)
    n = len(rows)
    logits = (rng.standard_normal((n, 1100)) * 4).astype(np.float32)
    tokens = [rng.integers(0, VOCAB, rng.integers(1, 40)).astype(np.int32) for _ in rows]
    slots = rng.permutation(n)
    batch = Sampler(n, 1100)
    for slot, row, known in zip(slots, rows, tokens, strict=True):
        batch.admit(int(slot), known, len(known), row)
    drawn, logprobs = batch.sample(logits, slots, np.array([len(known) for known in tokens]))
    for i, row in enumerate(rows):
        alone = Sampler(1, 1100)
        alone.admit(0, tokens[i], len(tokens[i]), row)
        token, found = alone.sample(logits[i : i + 1].copy(), np.array([0]), np.array([len(tokens[i])]))
        assert token[0] == drawn[i]
        assert (i in logprobs) == (0 in found) == (row.logprobs >= 0)
        for field in ("chosen", "top_ids", "top") if found else ():
            assert getattr(found[0], field).tobytes() == getattr(logprobs[i], field).tobytes()


@settings(max_examples=60)
@given(any_sampling(), st.integers(0, 2**32), st.sets(st.integers(0, 24), max_size=4))
def test_readmission_continues_as_if_never_preempted(s, seed, preempted_before):
    """Red if a slot remembers something that its tokens do not tell, or a preemption loses it."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((25, VOCAB)) * 3).astype(np.float32)
    prompt = rng.integers(0, 10, 5).astype(np.int32)
    runs = []
    for preempt_at in (set(), preempted_before):
        sampler, slot, known = Sampler(3, VOCAB), 0, prompt
        sampler.admit(slot, known, 5, s)
        for step in range(25):
            if step in preempt_at:
                sampler.release(slot)
                slot = (slot + 1) % 3
                sampler.admit(slot, known, 5, s)
            token, _ = sampler.sample(logits[step : step + 1], np.array([slot]), np.array([len(known)]))
            known = np.append(known, token).astype(np.int32)
        runs.append(known.tolist())
    assert runs[0] == runs[1]


@given(st.integers(0, 2**32), st.floats(0.1, 5.0))
def test_one_kept_token_is_greedy(seed, temperature):
    """Red if top_k = 1 or a tiny top_p can draw another than the best of equal logits with the lowest id."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 5, 600).astype(np.float32)
    best = int(logits.argmax())
    for narrow in ({"top_k": 1}, {"top_p": 1e-12}, {"temperature": 0.0, "top_k": 5, "top_p": 0.5}):
        assert one(logits, sampling(**{"temperature": temperature, "seed": seed, **narrow})) == best
    assert logits[one(logits, sampling(temperature=1e-9, seed=seed))] == logits[best]


def test_settings_that_do_nothing_change_nothing():
    """Red if a neutral value (top_k above V, top_p 1, an empty list) takes another path with another draw."""
    logits = np.random.default_rng(0).standard_normal(VOCAB).astype(np.float32)
    for seed in range(30):
        expected = one(logits, sampling(temperature=1.0, seed=seed))
        for neutral in (
            {"top_k": VOCAB},
            {"top_k": 10**9},
            {"logit_bias": ((5, 0.0),)},
            {"bad_words": ((1, 2, 3, 4, 5, 6),)},
            {"allowed_token_ids": tuple(range(VOCAB))},
            {"min_tokens": 5},
            {"stop_token_ids": (4,)},
            {"min_p": 1e-30},
        ):
            assert one(logits, sampling(temperature=1.0, seed=seed, **neutral)) == expected, neutral


def test_masks_that_leave_nothing_yield_to_the_allowed_set():
    """Red if masking everything draws a forbidden or random token, or NaN, instead of the documented one."""
    logits = [5.0, 4.0, 3.0, 9.0, 1.0]
    for temperature in (0.0, 1.0):
        stops = {"allowed_token_ids": (2, 1), "min_tokens": 9, "stop_token_ids": (1, 2)}
        assert one(logits, sampling(temperature=temperature, **stops)) == 1
        all_bad = sampling(temperature=temperature, bad_words=((0,), (1,), (2,), (3,), (4,)))
        assert one(logits, all_bad) == 3
        biased = {"bad_words": ((0,), (1,)), "allowed_token_ids": (1, 0), "logit_bias": ((1, 50.0),)}
        assert one(logits, sampling(temperature=temperature, **biased)) == 1
        ruled_out = sampling(temperature=temperature, allowed_token_ids=(4, 2))
        assert one([5.0, 4.0, -np.inf, 9.0, -np.inf], ruled_out) == 2


@pytest.mark.parametrize(
    ("probs", "fields", "expected"),
    [
        ((0.5, 0.3, 0.2), {"top_k": 2, "top_p": 0.6}, {0}),  # top-p first would keep 0 and 1
        ((0.5, 0.28, 0.12, 0.1), {"top_p": 0.85, "min_p": 0.22}, {0, 1, 2}),  # min-p first: 0 and 1
        ((0.5, 0.3, 0.2), {"top_p": 0.7, "typical_p": 0.6}, {0}),  # typical first: 0 and 1, 1 being nearest
        ((0.5, 0.3, 0.2), {"temperature": 0.1, "top_p": 0.7}, {0}),  # top-p first: 0 and 1
    ],
)
def test_each_filter_sees_what_the_one_before_left(probs, fields, expected):
    """Red if two filters, or temperature and the filters, change places."""
    logits = np.log(np.array(probs, np.float32))
    drawn = {one(logits, sampling(**{"temperature": 1.0, "seed": seed, **fields})) for seed in range(60)}
    assert drawn == expected


def test_bad_words_follow_drawn_tokens():
    """Red if the tail of a request is not carried on: two of three tokens of a word must stay known."""
    sampler = Sampler(1, 4)
    sampler.admit(0, np.array([0], np.int32), 1, sampling(bad_words=((3, 3, 3), (2, 3, 3, 2))))
    logits = np.array([[0.0, 1.0, 2.0, 3.0]], np.float32)
    drawn = [int(sampler.sample(logits, np.array([0]), np.array([1 + i]))[0][0]) for i in range(7)]
    assert drawn == [3, 3, 2, 3, 3, 1, 3]


def test_no_bias_brings_a_masked_token_back():
    """Red if bias is added after the masks."""
    s = sampling(
        logit_bias=((0, 100.0), (1, 100.0), (2, 100.0)),
        bad_words=((0,),),
        allowed_token_ids=(0, 2, 3),
        min_tokens=2,
        stop_token_ids=(2,),
    )
    assert one([0.0, 0.0, 0.0, -5.0, 9.0], s) == 3


def test_min_tokens_counts_generated_tokens_across_a_preemption():
    """Red if the prompt counts, or the count is off by one."""
    s = sampling(min_tokens=2, stop_token_ids=(0, 10**6))
    logits = [9.0, 1.0]
    assert [one(logits, s, (1, 1, 1), (1,) * generated) for generated in range(4)] == [1, 1, 0, 0]


def test_bad_word_may_begin_in_the_prompt_but_not_beyond_it():
    """Red if the prompt's tail does not count, or a word longer than all known tokens breaks the match."""
    logits = [0.0, 1.0, 2.0, 3.0]
    assert one(logits, sampling(bad_words=((1, 2, 3),)), prompt=(0, 1, 2)) == 2
    assert one(logits, sampling(bad_words=((1, 2, 3),)), prompt=(1, 2)) == 2
    assert one(logits, sampling(bad_words=((1, 2, 3),)), prompt=(2,)) == 3
    assert one(logits, sampling(bad_words=((2, 2, 1, 2, 3),)), prompt=(1,), output=(2,)) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("extra", [{}, {"temperature": 1.0, "top_p": 0.5}, {"repetition_penalty": 1.2}])
def test_broken_logits_are_refused_and_nothing_is_recorded(bad, extra):
    """Red if NaN draws a token, or if the sound rows of the step have already advanced."""
    sampler = Sampler(4, 20)
    for slot in (1, 3):
        sampler.admit(slot, np.array([5], np.int32), 1, sampling(**extra))
    logits = np.zeros((2, 20), np.float32)
    logits[1, 7] = bad
    slots, positions = np.array([1, 3]), np.array([1, 1])
    with pytest.raises(NonFiniteLogits, match=r"slots \[3\]") as caught:
        sampler.sample(logits, slots, positions)
    assert caught.value.rows == [1] and isinstance(caught.value, PenstockError)
    logits[1] = -np.inf
    with pytest.raises(NonFiniteLogits):
        sampler.sample(logits, slots, positions)
    logits[1] = 0
    logits[1, 4] = -np.inf  # one impossible token is no error
    sampler.sample(logits, slots, positions)


def test_wrong_use_is_refused():
    """Red if a free slot, a skipped position or a doubled slot draws with the wrong noise, silently."""
    sampler = Sampler(2, 20)
    logits = np.zeros((1, 20), np.float32)
    with pytest.raises(PenstockError, match="slot 0 holds no request"):
        sampler.sample(logits, np.array([0]), np.array([3]))
    sampler.admit(0, np.array([1, 2, 3], np.int32), 3, sampling())
    for position in (2, 4):
        with pytest.raises(PenstockError, match=f"position {position}, 3 tokens are known"):
            sampler.sample(logits, np.array([0]), np.array([position]))
    with pytest.raises(PenstockError, match="twice"):
        sampler.sample(np.zeros((2, 20), np.float32), np.array([0, 0]), np.array([3, 3]))
    sampler.release(0)
    sampler.release(0)
    with pytest.raises(PenstockError, match="slot 0 holds no request"):
        sampler.sample(logits, np.array([0]), np.array([3]))


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": ((20, 1.0),)},
        {"logit_bias": ((-1, 1.0),)},
        {"allowed_token_ids": (3, 20)},
        {"bad_words": ((1, 20),)},
        {"bad_words": ((),)},
    ],
)
def test_token_ids_outside_the_vocabulary_name_the_field(fields):
    """Red if such an id reaches the arrays (negative ones would silently hit another token)."""
    sampler = Sampler(1, 20)
    with pytest.raises(InvalidRequest) as caught:
        sampler.admit(0, np.array([1], np.int32), 1, sampling(**fields))
    assert caught.value.param == next(iter(fields))


def test_extreme_settings_stay_defined():
    """Red if a setting at the edge of its range makes NaN or a masked token."""
    logits = [3.4e38, 1.0, 0.0, -3.4e38]
    for fields in (
        {"repetition_penalty": 1e-45},
        {"repetition_penalty": 1e-300, "temperature": 1.0},
        {"repetition_penalty": 100.0},
        {"frequency_penalty": 2.0, "presence_penalty": 2.0},
        {"temperature": 1e-310},
        {"temperature": 100.0},
        {"min_p": 1.0, "temperature": 1.0},
        {"typical_p": 1e-9, "temperature": 1.0},
        {"logit_bias": ((0, 100.0),), "temperature": 1.0},
    ):
        assert one(logits, sampling(**fields), prompt=(0, 1, 2), output=(0, 0, 1)) in (0, 1), fields


def test_logits_are_read_only_to_the_sampler():
    """Red if processing writes into the model's buffer, which reported log-probabilities still need."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, VOCAB)).astype(np.float32)
    logits.flags.writeable = False
    sampler = Sampler(1, VOCAB)
    s = sampling(temperature=0.7, top_p=0.8, repetition_penalty=1.3, logit_bias=((3, 50.0),), logprobs=2)
    sampler.admit(0, np.arange(20, dtype=np.int32), 10, s)
    _, logprobs = sampler.sample(logits, np.array([0]), np.array([20]))
    raw = torch.log_softmax(torch.tensor(logits[0]), -1)
    assert logprobs[0].chosen[0] == pytest.approx(float(raw[3]), abs=1e-5)
    np.testing.assert_allclose(logprobs[0].top[0], raw.topk(2).values, atol=1e-5)


def test_a_slot_needs_no_memory_of_vocabulary_size():
    """Red if penalties keep a dense row per slot: 256 slots of a 256k vocabulary would be 256 MB."""
    vocab = 262_144
    sampler = Sampler(64, vocab)
    tokens = np.arange(1000, dtype=np.int32)
    tracemalloc.start()
    for slot in range(64):
        s = sampling(repetition_penalty=1.1, presence_penalty=0.5, bad_words=((1, 2),), logprobs=5)
        sampler.admit(slot, tokens, 500, s)
    held = tracemalloc.get_traced_memory()[0]
    for slot in range(64):
        sampler.release(slot)
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 64 * 150_000
    assert left < held / 100
