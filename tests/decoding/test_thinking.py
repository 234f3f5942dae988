"""Thinking budgets: the state of an answer against brute force, and what the samplers make of it."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np
import pytest
from grammar_tokens import EOS, PIECES, ByteTokenizer, encode
from hypothesis import given
from hypothesis import strategies as st
from naive_sampler import forced_token, sections

from penstock.decoding.grammar.backend import Vocabulary
from penstock.decoding.grammar.backends import make_backend
from penstock.decoding.grammar.spec import GrammarSpec, spec_of_schema, spec_of_text
from penstock.decoding.grammar.store import GrammarStore
from penstock.decoding.params import TokenSampling
from penstock.decoding.sampling import Sampler
from penstock.decoding.thinking import Thinking, ThinkingSpec
from penstock.errors import InvalidRequest

TOKENS = st.integers(0, 3)  # few, so that markers come about
MARKER = st.lists(TOKENS, min_size=1, max_size=4).map(tuple)
MARKERS = st.lists(MARKER, min_size=1, max_size=3).map(tuple)


@st.composite
def specs(draw: st.DrawFn, prompt_len: int) -> ThinkingSpec:
    is_open = draw(st.booleans())
    return ThinkingSpec(
        starts=draw(MARKERS),
        ends=draw(MARKERS),
        ended_by=draw(st.just(()) | MARKERS),
        budget=draw(st.none() | st.integers(0, 12)),
        closing=draw(st.just(()) | st.lists(TOKENS, max_size=3).map(tuple)),
        open=is_open,
        used=draw(st.integers(0, prompt_len)) if is_open else 0,
    )


PROMPTS = st.lists(TOKENS, max_size=6)


@given(data=st.data(), prompt=PROMPTS, output=st.lists(TOKENS, max_size=40), leading=st.booleans())
def test_state_equals_brute_force_over_any_tokens(data, prompt, output, leading):
    """Red if the state forces another token, or counts another number, than the definitions read."""
    spec = data.draw(specs(len(prompt)))
    state = Thinking(spec, prompt, len(prompt), leading)
    for n, token in enumerate(output):
        assert state.forced() == forced_token(prompt, output[:n], spec, leading)
        assert state.is_open == (sections(prompt, output[:n], spec, leading)[1] is not None)
        state.record(token)
    closed, section = sections(prompt, output, spec, leading)
    count = sum(map(len, closed))
    if section is None:
        assert state.tokens == count + (spec.used if not spec.open else 0)
    else:
        assert count + len(section) - len(spec.ends[0]) < state.tokens <= count + len(section)


@given(data=st.data(), prompt=PROMPTS, output=st.lists(TOKENS, max_size=30))
def test_coming_back_with_tokens_equals_having_stayed(data, prompt, output):
    """Red if a preempted answer thinks longer, or shorter, than one that ran through."""
    spec = data.draw(specs(len(prompt)))
    cut = data.draw(st.integers(0, len(output)))
    stayed = Thinking(spec, prompt, len(prompt))
    for token in output[:cut]:
        stayed.record(token)
    came_back = Thinking(spec, np.array(prompt + output[:cut], np.int32), len(prompt))
    for token in output[cut:]:
        assert (stayed.forced(), stayed.tokens) == (came_back.forced(), came_back.tokens)
        stayed.record(token)
        came_back.record(token)


@pytest.mark.parametrize("end", [(9,), (9, 8), (9, 8, 9)])
@pytest.mark.parametrize("closing", [(), (5,), (5, 9), (9, 8, 5)])
@pytest.mark.parametrize("budget", range(13))
def test_thinking_never_exceeds_its_budget(budget, closing, end):
    """Red if one token too many is thought, in one section or in all of them, whatever the model writes."""
    spec = ThinkingSpec(starts=((7, 6),), ends=(end, (4,)), budget=budget, closing=closing, open=True)
    rng = np.random.default_rng(budget)
    for used in range(4):
        spec = msgspec.structs.replace(spec, used=used)
        prompt = [1] * used
        for _ in range(20):
            state, output = Thinking(spec, prompt, used), []
            for _ in range(60):
                token = state.forced()
                output.append(int(rng.choice([4, 5, 6, 7, 7, 8, 9])) if token is None else token)
                state.record(output[-1])
            closed, _ = sections(prompt, output, spec)
            assert sum(map(len, closed)) <= max(budget, used)
            assert state.tokens <= max(budget, used)
            assert closed, "no section ended"


def test_forced_end_comes_exactly_at_the_budget_and_in_full():
    """Red if a budget is cut short or a marker of several tokens is left half written."""
    spec = ThinkingSpec(starts=((7,),), ends=((9, 8),), budget=3, open=True)
    assert _forced(spec, [1, 1, 1]) == [None, None, None, 9, 8, None, None]
    assert _forced(msgspec.structs.replace(spec, budget=0), []) == [9, 8, None, None]
    assert _forced(msgspec.structs.replace(spec, closing=(5, 6)), [1]) == [None, 5, 6, 9, 8, None, None]
    # A budget that the sentence does not fit in ends without it; a marker that has begun is completed.
    assert _forced(msgspec.structs.replace(spec, closing=(5, 6, 5, 6)), [1] * 3)[3:] == [9, 8, None, None]
    assert _forced(spec, [1, 1, 9]) == [None, None, None, 8, None, None]
    # The rest of the budget is that of the next section.
    assert _forced(spec, [1, 9, 8, 1, 7, 1, 1])[-4:] == [9, 8, None, None]


def _forced(spec: ThinkingSpec, tokens: list[int]) -> list[int | None]:
    """What is forced at each position, the forced tokens and two free ones included."""
    state, found = Thinking(spec, [], 0), []
    for token in tokens:
        found.append(state.forced())
        state.record(token)
    free = 0
    while free < 2:
        token = state.forced()
        found.append(token)
        free += token is None
        state.record(1 if token is None else token)
    return found


# ---------------------------------------------------------------- samplers


def _sampling(**fields: Any) -> TokenSampling:
    return TokenSampling(**{"max_tokens": 100, "seed": 5, **fields})


def _answer(sampler: Sampler, logits: np.ndarray, sampling: TokenSampling, prompt: list[int]) -> list[int]:
    sampler.admit(0, np.array(prompt, np.int32), len(prompt), sampling)
    slots = np.zeros(1, np.int32)
    return [
        int(sampler.sample(row[None], slots, np.array([len(prompt) + n], np.int32))[0][0])
        for n, row in enumerate(logits)
    ]


def _samplers(vocab: int, grammars: GrammarStore | None = None) -> list[Sampler]:
    native = pytest.importorskip("penstock.decoding.native")
    return [Sampler(1, vocab, grammars), native.NativeSampler(1, vocab, grammars)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forced_tokens_overrule_masks_and_use_up_no_noise(temperature):
    """Red if a mask keeps the end marker from coming, or a forced token shifts the later draws."""
    logits = np.random.default_rng(1).standard_normal((12, 30)).astype(np.float32)
    spec = ThinkingSpec(starts=((7,),), ends=((9, 8),), budget=2, open=True)
    settings: dict[str, Any] = {
        "temperature": temperature,
        "allowed_token_ids": tuple(range(10, 30)),
        "bad_words": ((9,), (9, 8)),
        "min_tokens": 9,
        "stop_token_ids": (8, 9),
    }
    for fields in ({"temperature": temperature}, settings):
        plain, *_ = (_answer(s, logits, _sampling(**fields), [1, 2]) for s in _samplers(30))
        for sampler in _samplers(30):
            tokens = _answer(sampler, logits, _sampling(thinking=spec, **fields), [1, 2])
            assert tokens == [*plain[:2], 9, 8, *plain[4:]]


def test_rows_with_a_budget_are_the_hosts():
    """Red if a device that draws by itself never hears of a budget."""
    spec = ThinkingSpec(starts=((7,),), ends=((9,),), budget=2)
    assert _sampling(thinking=spec).host_tokens == 100
    assert _sampling().host_tokens == 0


def test_markers_that_can_not_be_are_refused():
    """Red if an empty marker or an id beyond the vocabulary reaches a step."""
    for spec in (
        ThinkingSpec(starts=((7,),), ends=((40,),), budget=2),
        ThinkingSpec(starts=((7,),), ends=((),), budget=2),
        ThinkingSpec(starts=(), ends=((8,),), budget=2),
    ):
        with pytest.raises(InvalidRequest, match="thinking"):
            Sampler(1, 30).admit(0, np.array([1]), 1, _sampling(thinking=spec))


# ---------------------------------------------------------------- with a grammar

OPEN, CLOSE, HEAD = range(len(PIECES), len(PIECES) + 3)  # special tokens
VOCAB = len(PIECES) + 8
SHORT, LONG = ((OPEN,), (CLOSE,)), (tuple(encode("<t>")), tuple(encode("</t>")))
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}
FORMS = [
    spec_of_text("regex", "[a-z]{2,6}!", "regex"),
    spec_of_schema(SCHEMA, "s"),
    # It shares the start marker's first characters, and may be empty.
    spec_of_text("regex", "(<[a-z]{3})?", "regex"),
]


@pytest.fixture(scope="module")
def store() -> GrammarStore:
    def vocabulary() -> Vocabulary:
        return Vocabulary(_WithSpecials(), VOCAB)

    return GrammarStore(make_backend("llguidance", vocabulary), vocabulary)


def _text(tokens: list[int]) -> str:
    return b"".join(PIECES[token] if token < len(PIECES) else b"?" for token in tokens).decode(
        "utf-8", "replace"
    )


class _WithSpecials(ByteTokenizer):
    vocab_size = len(PIECES) + 3
    special_ids = frozenset({EOS, OPEN, CLOSE, HEAD})

    def piece(self, token_id: int) -> bytes:
        return PIECES[token_id] if token_id < len(PIECES) else b"<special %d>" % token_id


def _matches(form: GrammarSpec, text: str) -> bool:
    if form.kind == "regex":
        return re.fullmatch(form.source, text) is not None
    return re.fullmatch(r'\{\s*"a"\s*:\s*[12]\s*\}', text) is not None


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("markers", [SHORT, LONG])
@pytest.mark.parametrize("form", FORMS)
def test_the_answer_behind_the_reasoning_has_its_form_at_every_budget(store, form, markers, is_open):
    """Red if a grammar constrains the reasoning, sees a marker, or misses the answer's first token."""
    start, end = markers
    kinds = set()
    for budget in (*range(13), None):
        spec = ThinkingSpec(
            starts=(start,), ends=(end,), budget=budget, open=is_open, lead_in=(HEAD,) * ((budget or 0) % 3)
        )
        rng = np.random.default_rng(budget)
        logits = rng.standard_normal((200, VOCAB)).astype(np.float32)
        logits[:, [EOS, *start, *end]] += 4.0
        first = 0 if is_open else len(start)
        logits[first : first + (budget or 3), EOS] += 20.0  # the model would end in its reasoning
        if budget is None:
            logits[np.arange(8, 8 + len(end)), end] += 40.0
        sampling = _sampling(thinking=spec, grammar=form, temperature=1.0)
        answers = [_answer_to_end(s, logits, sampling) for s in _samplers(VOCAB, store)]
        assert answers[0] == answers[1]
        tokens, prompt = answers[0], [1]
        closed, section = sections(prompt, tokens, spec, leading=True)
        assert section is None, _text(tokens)
        reasoned = is_open or tokens[: len(start)] == list(start)
        kinds.add(reasoned)
        head = sum(map(len, closed)) + len(end) + (0 if is_open else len(start)) + len(spec.lead_in)
        assert not reasoned or tokens[head - len(spec.lead_in) : head] == list(spec.lead_in)
        assert tokens[-1] == EOS
        assert EOS not in tokens[:-1]
        assert _matches(form, _text(tokens[head if reasoned else 0 : -1]))
        assert sum(map(len, closed)) <= (200 if budget is None else budget)
    assert is_open or kinds == {True, False} or form is not FORMS[2], "one way was never tried"


def _answer_to_end(sampler: Sampler, logits: np.ndarray, sampling: TokenSampling) -> list[int]:
    """Until the end of sequence, preempted at every third token."""
    tokens: list[int] = [1]
    slots = np.zeros(1, np.int32)
    for n, row in enumerate(logits):
        if n % 3 == 0:
            sampler.admit(0, np.array(tokens, np.int32), 1, sampling)
        sampler.begin(slots)
        drawn, _ = sampler.sample(row[None], slots, np.array([len(tokens)], np.int32))
        tokens.append(int(drawn[0]))
        if tokens[-1] == EOS:
            break
    return tokens[1:]


def test_a_grammar_that_describes_the_reasoning_keeps_it(store):
    """Red if reasoning that a caller's own grammar spells out is taken for reasoning before it."""
    form = spec_of_text("regex", "<t>[a-z]{4}</t>[0-9]", "regex")
    spec = ThinkingSpec(starts=LONG[:1], ends=LONG[1:], budget=2)
    logits = np.random.default_rng(3).standard_normal((60, VOCAB)).astype(np.float32)
    for sampler in _samplers(VOCAB, store):
        tokens = _answer_to_end(sampler, logits, _sampling(thinking=spec, grammar=form))
        assert re.fullmatch(form.source, _text(tokens[:-1]))


def test_calls_can_not_begin_in_reasoning_before_a_grammar(store):
    """Red if a marker of calls ends the reasoning, and the grammar then starts in the middle of one."""
    spec = ThinkingSpec(starts=SHORT[:1], ends=SHORT[1:], ended_by=((HEAD,),), budget=6, open=True)
    logits = np.zeros((60, VOCAB), np.float32)
    logits[:, HEAD] = 50.0
    for sampler in _samplers(VOCAB, store):
        tokens = _answer_to_end(sampler, logits, _sampling(thinking=spec, grammar=FORMS[0]))
        assert HEAD not in tokens
        assert _matches(FORMS[0], _text(tokens[7:-1]))


def test_what_must_come_is_taken_at_once_from_the_marker_on(store):
    """Red if tokens that a grammar forces are taken in the middle of the reasoning, or out of order."""
    form = spec_of_text("regex", "abc[0-9]", "regex")
    spec = ThinkingSpec(starts=LONG[:1], ends=LONG[1:], budget=2, open=True, lead_in=tuple(encode("head")))
    for sampler in _samplers(VOCAB, store):
        sampling = _sampling(thinking=spec, grammar=form, temperature=0.0)
        sampler.admit(0, np.array([1], np.int32), 1, sampling)
        slots, logits = np.zeros(1, np.int32), np.zeros((1, VOCAB), np.float32)
        for position in (1, 2):
            assert sampler.take_forced(0) == []
            sampler.sample(logits, slots, np.array([position], np.int32))
        assert _text(sampler.take_forced(0)) == "</t>headabc"
        assert sampler.row(0).known == 3 + len(encode("</t>headabc"))
        short = msgspec.structs.replace(sampling, max_tokens=2)
        sampler.admit(0, np.array([1, 1, 1], np.int32), 1, short)
        assert sampler.take_forced(0) == []  # the answer is over
