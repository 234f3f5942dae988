"""OpenCall alone: however the engine cuts its deltas and the reader its reads, the answer is one."""

from __future__ import annotations

import asyncio
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.call import Call, Event, SamplingParams
from penstock.engine.messages import Delta, Logprobs
from penstock.engine.open_call import OpenCall
from penstock.engine.prepare import Preparer
from penstock.text.tokenizer import Tokenizer
from penstock.wire.fold import Fold
from support.tiny_models import VOCAB_SIZE, write_tokenizer


@cache
def tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return Tokenizer.load(Path(folder))


def preparer(max_context: int = 1000, prefix_cache: bool = True) -> Preparer:
    return Preparer(
        tokenizer(), model="tiny", max_context=max_context, vocab_size=VOCAB_SIZE, prefix_cache=prefix_cache
    )


def logprobs_of(tokens: list[int]) -> Logprobs:
    """Values that name their token, so that a misplaced entry shows."""
    ids = np.array([[t, (t + 1) % 256] for t in tokens], "<i4").reshape(-1, 2)
    values = np.array([[-t / 8, -t / 4] for t in tokens], "<f4").reshape(-1, 2)
    chosen = np.array([-t / 8 for t in tokens], "<f4")
    return Logprobs(len(tokens), 2, chosen.tobytes(), ids.tobytes(), values.tobytes())


def run(
    call: Call, outputs: list[list[int]], cuts: list[set[int]], reads: set[int]
) -> tuple[Fold, list[tuple[str, int | None]]]:
    """Feed each choice's tokens cut at `cuts`, round robin; read after the deltas numbered in `reads`."""
    aborts: list[tuple[str, int | None]] = []
    prompts = preparer().prepare(call, "call")
    opened = OpenCall(call, prompts, tokenizer(), lambda name, keep: aborts.append((name, keep)), 0.0)
    queues = []
    for name, tokens, borders in zip(opened.request_ids, outputs, cuts, strict=True):
        edges = sorted({0, len(tokens), *(b for b in borders if b < len(tokens))})
        pieces = [tokens[a:b] for a, b in pairwise(edges)]
        queues.append(
            [
                Delta(
                    id=name,
                    tokens=piece,
                    finish="length" if i == len(pieces) - 1 else None,
                    cached_tokens=3 if i == 0 else None,
                    logprobs=logprobs_of(piece) if call.sampling.logprobs is not None else None,
                )
                for i, piece in enumerate(pieces)
            ]
        )
    events: list[Event] = []
    number = 0
    while any(queues):
        for queue in queues:
            if queue:
                opened.on_delta(queue.pop(0))
                if number in reads and opened._unread:
                    events += asyncio.run(opened.next_batch())
                number += 1
    while batch := asyncio.run(opened.next_batch()):
        events += batch
    return Fold(events), aborts


tokens_lists = st.lists(st.integers(0, 255), min_size=1, max_size=40)
cut_sets = st.sets(st.integers(1, 39), max_size=10)


@given(
    outputs=st.lists(tokens_lists, min_size=1, max_size=3),
    cuts=st.lists(cut_sets, min_size=3, max_size=3),
    reads=st.sets(st.integers(0, 60)),
    stop=st.lists(st.sampled_from(["a", "ab", "é", "\n", "t ", "tea"]), max_size=3),
    logprobs=st.sampled_from([None, 1]),
)
def test_cutting_of_deltas_and_pace_of_reading_change_nothing(
    outputs: list[list[int]],
    cuts: list[set[int]],
    reads: set[int],
    stop: list[str],
    logprobs: int | None,
) -> None:
    """Red if merged deltas (a slow reader, several tokens per step) give other text, ids, logprobs,
    usage, finish or `keep` than the same tokens one by one."""
    n = len(outputs)
    call = Call(
        kind="completion",
        model="tiny",
        prompts=("x",),
        echo=logprobs is None,  # with logprobs it would need the prompt's report too
        sampling=SamplingParams(n=n, stop=tuple(stop), logprobs=logprobs, seed=1),
    )
    plain, plain_aborts = run(call, outputs, [set(range(40))] * n, set(range(1000)))
    other, other_aborts = run(call, outputs, cuts[:n], reads)
    for a, b in zip(plain.choices(), other.choices(), strict=True):
        assert (a.text, a.token_ids, a.logprobs, a.finish, a.prompt) == (
            b.text,
            b.token_ids,
            b.logprobs,
            b.finish,
            b.prompt,
        )
    assert plain.usage == other.usage
    # A stop in a choice's very last delta needs no abort; how often that is so depends on the cuts.
    keeps = dict(plain_aborts)
    assert all(keeps.get(name, keep) == keep for name, keep in other_aborts)


def test_deltas_after_a_stop_string_are_dropped() -> None:
    """Red if tokens that were in flight when a stop string was found are shown or counted."""
    call = Call(kind="completion", model="tiny", prompts=("x",), sampling=SamplingParams(stop=("b",)))
    aborts: list[tuple[str, int | None]] = []
    prompts = preparer().prepare(call, "call")
    opened = OpenCall(call, prompts, tokenizer(), lambda name, keep: aborts.append((name, keep)), 0.0)
    a, b, c = (tokenizer().encode(letter)[0] for letter in "abc")
    name = opened.request_ids[0]
    for token in (a, b, c, c):
        opened.on_delta(Delta(id=name, tokens=[token]))
    opened.on_delta(Delta(id=name, tokens=[c], finish="length"))
    fold = Fold(asyncio.run(opened.next_batch()))
    assert fold.choices()[0].text == "a"
    assert fold.choices()[0].token_ids == [a, b]
    assert fold.usage.completion_tokens == 2
    assert aborts == [(name, 2)]


def test_one_siblings_refusal_aborts_the_others() -> None:
    """Red if the other choices of a failed call go on in the engine with nobody to read them."""
    call = Call(kind="completion", model="tiny", prompts=("x",), sampling=SamplingParams(n=3))
    aborts: list[tuple[str, int | None]] = []
    opened = OpenCall(
        call,
        preparer().prepare(call, "call"),
        tokenizer(),
        lambda name, keep: aborts.append((name, keep)),
        0.0,
    )
    first, second, third = opened.request_ids
    error = ("rate_limit_error", "full", 2.0)
    opened.on_delta(Delta(id=second, finish="error", error=error))
    assert aborts == [(first, None), (third, None)]
