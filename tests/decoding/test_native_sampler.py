"""The native sampler against the reference: the same tokens and the same bits of log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampler_statemachine import SAMPLINGS, VOCAB

pytest.importorskip("penstock.kernels.cpu._native", reason="the native extension is not built")

from penstock.decoding import philox
from penstock.decoding.grammar.backend import Vocabulary
from penstock.decoding.grammar.spec import GrammarSpec
from penstock.decoding.grammar.store import GrammarStore
from penstock.decoding.native import NativeSampler
from penstock.decoding.params import RowLogprobs, TokenSampling
from penstock.decoding.sampling import NonFiniteLogits, Sampler
from penstock.errors import InvalidRequest, PenstockError
from penstock.kernels.cpu import _native

SETS = [name for name, present, _ in _native.instruction_sets() if present]
ROWS_EACH = 32


def random_logits(rng: np.random.Generator, vocab: int) -> np.ndarray:
    """float32[V]: flat to peaked, with ties, neighbours, impossible tokens, a long tail."""
    row = rng.standard_normal(vocab) * rng.choice([0.01, 1, 2, 3, 5, 30])
    kind = rng.integers(8)
    if kind == 1:
        row = np.round(row)
    elif kind == 2:
        row[rng.random(vocab) < 0.5] = -np.inf
        row[rng.integers(vocab)] = 1.0
    elif kind == 3:
        row[:] = 2.5
    elif kind == 4:  # as from bfloat16
        row = (row.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    elif kind == 5:
        row = -1.2 * np.log(rng.permutation(vocab) + 1.0) + rng.normal(0, 0.3, vocab)
    elif kind == 6:
        row = 1.0 + rng.integers(0, 20, vocab) * 1.2e-7
    return row.astype(np.float32)


def random_sampling(rng: np.random.Generator) -> TokenSampling:
    """Every setting of a plain row on or off, extremes among them."""

    def some(value, neutral):
        return type(neutral)(value if rng.random() < 0.4 else neutral)

    extremes = [5e-324, 1e-300, 1e-9, 0.05, 0.7, 1.0, 3.0, 100.0, 1e12, 1e300, 0.0]
    temperature = rng.choice(extremes) if rng.random() < 0.4 else rng.uniform(0.2, 2.0)
    return TokenSampling(
        max_tokens=10**6,
        seed=int(rng.integers(-(2**63), 2**63)),
        temperature=float(temperature),
        top_k=some(rng.choice([1, 5, 40, 200, 3000, 2**40]), 0),
        top_p=some(rng.choice([1e-12, 0.5, 1 - 1e-9, rng.uniform(0.02, 0.999)]), 1.0),
        min_p=some(rng.choice([1.0, 1e-14, 10 ** rng.uniform(-6, 0)]), 0.0),
        typical_p=some(rng.uniform(0.05, 0.99), 1.0),
        logprobs=int(rng.choice([-1, 0, 5, 20])),
    )


def same(a: RowLogprobs, b: RowLogprobs) -> bool:
    fields = ("chosen", "top_ids", "top")
    return all(
        getattr(a, f).dtype == getattr(b, f).dtype
        and getattr(a, f).shape == getattr(b, f).shape
        and getattr(a, f).tobytes() == getattr(b, f).tobytes()
        for f in fields
    )


def assert_twins(reference: Sampler, native: Sampler, logits, slots, positions) -> np.ndarray:
    """Both draw; the tokens."""
    expected, expected_logprobs = reference.sample(logits, slots, positions)
    found, logprobs = native.sample(logits, slots, positions)
    assert found.dtype == np.int32
    assert found.tolist() == expected.tolist()
    assert logprobs.keys() == expected_logprobs.keys()
    for i, entry in logprobs.items():
        assert same(entry, expected_logprobs[i])
    return found


def draw_equally(rng: np.random.Generator, vocab: int, count: int, isa: str, pool=None) -> None:
    """`count` rows of one distribution, each with its own settings."""
    known = np.zeros(3, np.int32)
    reference, native = Sampler(count, vocab), NativeSampler(count, vocab, instruction_set=isa, pool=pool)
    for slot in range(count):
        s = random_sampling(rng)
        reference.admit(slot, known, 3, s)
        native.admit(slot, known, 3, s)
    logits = np.repeat(random_logits(rng, vocab)[None], count, axis=0)
    assert_twins(reference, native, logits, np.arange(count), np.full(count, 3))


@pytest.mark.parametrize("isa", SETS)
def test_random_rows_draw_the_references_token(isa):
    """Red if any of 24,000 rows (over all instruction sets) draws another token or log-probability."""
    rng = np.random.default_rng(SETS.index(isa))
    sizes = [1, 2, 3, 15, 16, 17, 63, 64, 65, 255, 256, 257, 300, 1000, 4097]
    for _ in range(24_000 // len(SETS) // ROWS_EACH + 1):
        draw_equally(rng, int(rng.choice(sizes)), ROWS_EACH, isa)


@pytest.mark.parametrize("vocab", [49_152, 262_144])
def test_rows_of_large_vocabularies_draw_the_references_token(vocab):
    """Red if an estimate of a long row's sum decides a draw that only the exact sum may decide."""
    rng = np.random.default_rng(vocab)
    for i in range(16 if vocab < 10**5 else 4):
        draw_equally(rng, vocab, 16, SETS[i % len(SETS)])


@settings(max_examples=150)
@given(st.lists(SAMPLINGS, min_size=1, max_size=5), st.integers(0, 2**32))
def test_rows_with_penalties_and_masks_are_twins_over_many_steps(requests, seed):
    """Red if a row that needs the host is drawn from other scores, or a token is not recorded."""
    rng = np.random.default_rng(seed)
    count = len(requests)
    reference, native = Sampler(count, VOCAB), NativeSampler(count, VOCAB)
    prompts = [rng.integers(0, 4, rng.integers(1, 6)).astype(np.int32) for _ in requests]
    for slot, (prompt, s) in enumerate(zip(prompts, requests, strict=True)):
        reference.admit(slot, prompt, len(prompt), s)
        native.admit(slot, prompt, len(prompt), s)
    positions = np.array([len(prompt) for prompt in prompts])
    for _ in range(8):
        slots = rng.permutation(count)[: rng.integers(1, count + 1)]
        logits = (rng.integers(-8, 9, (len(slots), VOCAB)) / 4).astype(np.float32)
        assert_twins(reference, native, logits, slots, positions[slots])
        positions[slots] += 1


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_noise_is_the_references(seed, position):
    """Red if the generator's words, key or counter are laid out differently."""
    assert _native.noise_bits(seed, position) / 2**53 == philox.uniform(np.uint64(seed), position)[0]


def test_threads_share_the_rows_and_change_nothing():
    """Red if rows are lost or mixed up between threads, or two threads share work space."""
    pool = _native.ThreadPool(3)
    for seed in range(6):
        draw_equally(np.random.default_rng(seed), 5000, 33, "auto", pool)


def test_rows_drawn_by_the_executor_are_the_samplers():
    """Red if `table` holds other settings than the slot's, or `record` does not advance the slot."""
    rng = np.random.default_rng(5)
    reference, native = Sampler(3, 700), NativeSampler(3, 700)
    known, slots = np.zeros(4, np.int32), np.arange(3, dtype=np.int32)
    for slot in range(3):
        s = TokenSampling(max_tokens=99, seed=slot, temperature=0.9, top_p=0.8, top_k=20 * slot)
        reference.admit(slot, known, 4, s)
        native.admit(slot, known, 4, s)
    for step in range(10):
        logits = rng.standard_normal((3, 700)).astype(np.float32)
        positions = np.full(3, 4 + step, np.int32)
        if step % 2:
            assert_twins(reference, native, logits, slots, positions)
            continue
        tokens = np.empty(3, np.int32)
        native.table.sample(logits, slots[::-1].copy(), slots[::-1].copy(), positions, tokens)
        assert tokens[::-1].tolist() == reference.sample(logits, slots, positions)[0].tolist()
        for slot, token in zip(slots[::-1].tolist(), tokens.tolist(), strict=True):
            native.row(slot).record(token)


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 3000), st.integers(0, 20))
def test_prompt_logprobs_are_the_references_bits(seed, n, vocab, k):
    """Red if the normalizer is summed or rounded differently, or equal values come in another order."""
    rng = np.random.default_rng(seed)
    logits = np.stack([random_logits(rng, vocab) for _ in range(n)])
    targets = rng.integers(0, vocab, n)
    expected = Sampler(1, vocab).prompt_logprobs(logits, targets, k)
    assert same(NativeSampler(1, vocab).prompt_logprobs(logits, targets, k), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 70, 99])  # in a vector, in the row's tail
@pytest.mark.parametrize("extra", [{"temperature": 0.0}, {"top_p": 0.5}, {"repetition_penalty": 1.2}])
def test_broken_logits_are_refused_and_nothing_is_recorded(bad, place, extra):
    """Red if NaN draws a token, or if the sound rows of the step have already advanced."""
    sampler = NativeSampler(4, 100)
    for slot in (1, 3):
        sampler.admit(slot, np.array([5], np.int32), 1, TokenSampling(max_tokens=9, seed=1, **extra))
    logits = np.zeros((2, 100), np.float32)
    logits[1, place] = bad
    slots, positions = np.array([1, 3]), np.array([1, 1])
    with pytest.raises(NonFiniteLogits, match=r"slots \[3\]") as caught:
        sampler.sample(logits, slots, positions)
    assert caught.value.rows == [1]
    with pytest.raises(NonFiniteLogits, match=r"prompt rows \[1\]") as caught:
        sampler.prompt_logprobs(logits, np.zeros(2, np.int32), 0)
    assert caught.value.rows == [1]
    logits[1] = -np.inf
    with pytest.raises(NonFiniteLogits):
        sampler.sample(logits, slots, positions)
    logits[1, 4] = 0.0
    assert sampler.sample(logits, slots, positions)[0][1] == 4


def test_wrong_use_is_refused():
    """Red if a free slot, a skipped position, a doubled slot or an unknown id reaches the native code."""
    sampler = NativeSampler(2, 20)
    logits = np.zeros((2, 20), np.float32)
    with pytest.raises(PenstockError, match="slot 0 holds no request"):
        sampler.sample(logits[:1], np.array([0]), np.array([3]))
    with pytest.raises(InvalidRequest):
        bad = TokenSampling(max_tokens=9, seed=0, allowed_token_ids=(20,))
        sampler.admit(0, np.array([1], np.int32), 1, bad)
    sampler.admit(0, np.array([1, 2, 3], np.int32), 3, TokenSampling(max_tokens=9, seed=0))
    with pytest.raises(PenstockError, match="position 4, 3 tokens are known"):
        sampler.sample(logits[:1], np.array([0]), np.array([4]))
    with pytest.raises(PenstockError, match="twice"):
        sampler.sample(logits, np.array([0, 0]), np.array([3, 3]))
    zero, out = np.zeros(1, np.int32), np.empty(1, np.int32)
    for rows, slots in ((zero + 2, zero), (zero - 1, zero), (zero, zero + 2), (zero, zero - 1)):
        with pytest.raises(ValueError, match="no such"):
            sampler.table.sample(logits, rows, slots, zero, out)
    with pytest.raises(ValueError, match="mmx"):
        NativeSampler(1, 20, instruction_set="mmx")
    sampler.release(0)
    with pytest.raises(PenstockError, match="slot 0 holds no request"):
        sampler.sample(logits[:1], np.array([0]), np.array([3]))


def test_logits_are_read_only_to_the_sampler():
    """Red if the native code writes into the model's buffer, or refuses one that is read-only."""
    logits = np.random.default_rng(0).standard_normal((1, 300)).astype(np.float32)
    before = logits.copy()
    logits.flags.writeable = False
    sampler = NativeSampler(1, 300)
    for s in ({"top_k": 7}, {"top_p": 0.9, "typical_p": 0.9}, {"logit_bias": ((3, 5.0),)}):
        sampler.admit(0, np.zeros(2, np.int32), 1, TokenSampling(max_tokens=9, seed=0, logprobs=3, **s))
        sampler.sample(logits, np.array([0]), np.array([2]))
    assert logits.tobytes() == before.tobytes()


class _AnyForm:
    """A grammar backend, grammar and matcher in one: each state allows a random set of tokens."""

    name = backend = "random"

    def __init__(self, seed: int = 0) -> None:
        self._seed, self._drawn = seed, 0

    def compile(self, spec: GrammarSpec) -> _AnyForm:
        return _AnyForm(int(spec.source))

    def matcher(self) -> _AnyForm:
        return _AnyForm(self._seed)

    def _allowed(self, ahead: int = 0) -> np.ndarray:
        rng = np.random.default_rng([self._seed, self._drawn + ahead])
        allowed = rng.random(VOCAB) < rng.choice([0.02, 0.5, 1.0])
        allowed[rng.integers(VOCAB)] = True
        return allowed

    def fill(self, mask: np.ndarray) -> None:
        bits = np.zeros(32 * len(mask), bool)
        bits[:VOCAB] = self._allowed()
        mask[:] = np.packbits(bits, bitorder="little").view(np.int32)

    def consume(self, token: int) -> bool:
        is_allowed = bool(self._allowed()[token])
        self._drawn += is_allowed
        return is_allowed

    def rollback(self, tokens: int) -> None:
        self._drawn -= tokens

    def accepts(self, tokens: Sequence[int]) -> int:
        return sum(1 for _ in takewhile(lambda at: self._allowed(at[0])[at[1]], enumerate(tokens)))


class _NoText:
    vocab_size, bos_id, eos_ids, special_ids = VOCAB, None, (), frozenset()

    def piece(self, token_id: int) -> bytes:
        return b"x"


@settings(max_examples=100)
@given(st.lists(st.tuples(SAMPLINGS, st.booleans()), min_size=1, max_size=5), st.integers(0, 2**32))
def test_rows_with_grammars_are_twins(requests, seed):
    """Red if a mask meets another row, is applied before what it must overrule, or bars what it allows."""
    rng = np.random.default_rng(seed)
    count = len(requests)
    stores = [GrammarStore(_AnyForm(), lambda: Vocabulary(_NoText(), VOCAB)) for _ in range(2)]
    reference, native = Sampler(count, VOCAB, stores[0]), NativeSampler(count, VOCAB, stores[1])
    prompt = np.zeros(2, np.int32)
    for slot, (sampling, is_bound) in enumerate(requests):
        grammar = GrammarSpec("regex", str(rng.integers(1000))) if is_bound else None
        for sampler in (reference, native):
            sampler.admit(slot, prompt, 2, msgspec.structs.replace(sampling, grammar=grammar))
    slots = np.arange(count)
    for step in range(6):
        logits = (rng.integers(-8, 9, (count, VOCAB)) / 4).astype(np.float32)
        forced = [reference.row(slot).forced() for slot in range(count)]
        tokens = assert_twins(reference, native, logits, slots, np.full(count, 2 + step))
        masks = reference._masks
        assert masks is not None
        for slot, (_, is_bound) in enumerate(requests):
            if is_bound and forced[slot] is None:
                mask = masks._masks[slot]
                assert mask[tokens[slot] // 32] >> (tokens[slot] % 32) & 1
    for store in stores:
        store.close()
