"""From token deltas to events: the same result however the tokens are cut."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.call import Finish, SamplingParams, TextDelta, TokenLogprob
from penstock.text.assemble import ChoiceAssembler, StopHit, prompt_echo
from penstock.text.tokenizer import Tokenizer


def run(
    tokenizer: Tokenizer,
    sampling: SamplingParams,
    chunks: list[tuple[list[int], Any, str | None, int | None]],
) -> Any:
    """(text, token ids, logprobs, finishes, hit) of all events of a choice."""
    assembler = ChoiceAssembler(tokenizer, sampling, 3)
    events, hit = [], None
    for tokens, logprobs, finish, stop_token in chunks:
        new, found = assembler.feed(tokens, logprobs, finish, stop_token)
        events += new
        assert found is None or hit is None
        hit = hit or found
    deltas = [event for event in events if isinstance(event, TextDelta)]
    finishes = [event for event in events if isinstance(event, Finish)]
    assert all(event.index == 3 for event in events)
    if finishes:
        assert finishes == [events[-1]]
    return (
        "".join(delta.text for delta in deltas),
        [i for delta in deltas for i in delta.token_ids],
        [entry for delta in deltas for entry in delta.logprobs or ()],
        finishes,
        hit,
    )


@given(data=st.data())
def test_cutting_does_not_matter(smollm: Tokenizer, data: Any) -> None:
    """Red if coalescing the deltas of a slow reader changes text, ids, logprobs or the finish."""
    text = data.draw(st.text(st.sampled_from("ab \n,é😀stop."), max_size=30))
    tokens = smollm.encode(text) + data.draw(st.lists(st.integers(0, 49151), max_size=4))
    stops = data.draw(
        st.lists(st.text(st.sampled_from("ab \n,é😀stop."), min_size=1, max_size=4), max_size=3)
    )
    finish = data.draw(st.sampled_from(["stop", "length", None]))
    stop_token = data.draw(st.sampled_from([2, 0, 65])) if finish == "stop" else None
    if stop_token is not None:
        tokens = [*tokens, stop_token]
    sampling = SamplingParams(
        stop=tuple(stops),
        min_tokens=data.draw(st.integers(0, 4)),
        include_stop_str_in_output=data.draw(st.booleans()),
        skip_special_tokens=data.draw(st.booleans()),
        stop_token_ids=(65,),
        logprobs=1,
    )
    logprobs = [(-0.5 * i, [(i % 100, -0.25)]) for i in range(len(tokens))]
    steps = list(zip([[t] for t in tokens], [[p] for p in logprobs], strict=True))
    singly = [
        (t, p, finish if i == len(steps) else None, stop_token if i == len(steps) else None)
        for i, (t, p) in enumerate(steps, 1)
    ]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(tokens)))) | {0, len(tokens)})
    pairs = list(itertools.pairwise(cuts)) or [(0, 0)]
    chunked = [
        (
            tokens[a:b],
            logprobs[a:b],
            finish if b == len(tokens) else None,
            stop_token if b == len(tokens) else None,
        )
        for a, b in pairs
    ]
    if not singly:
        singly = [([], [], finish, stop_token)]
    assert run(smollm, sampling, chunked) == run(smollm, sampling, singly)


def test_stop_string_counts_through_the_token_that_completed_it(smollm: Tokenizer) -> None:
    """Red if tokens after the stop string are counted, shown, or given logprobs."""
    tokens = smollm.encode("one two STOP three four")
    expected = next(n for n in range(len(tokens) + 1) if "STOP" in smollm.decode(tokens[:n]))
    text, ids, _, finishes, hit = run(
        smollm, SamplingParams(stop=("STOP",)), [(tokens, None, "length", None)]
    )
    assert text == "one two "
    assert hit == StopHit(expected, "STOP")
    assert ids == tokens[:expected]
    assert finishes == [Finish(3, "stop", "STOP")]


def test_after_a_stop_everything_is_ignored(smollm: Tokenizer) -> None:
    """Red if steps already in flight when the stop was found still reach the client."""
    assembler = ChoiceAssembler(smollm, SamplingParams(stop=("b",), include_stop_str_in_output=True), 0)
    events, hit = assembler.feed(smollm.encode("a b c"))
    assert hit is not None and events[0] == TextDelta(0, "a b", tuple(smollm.encode("a b c")[: hit.keep]))
    assert assembler.feed([5, 6], None, "length") == ([], None)


@pytest.mark.parametrize(
    ("sampling", "token", "text", "stop"),
    [
        (SamplingParams(), 2, "hi", None),
        (SamplingParams(skip_special_tokens=False), 2, "hi", None),
        (SamplingParams(stop_token_ids=(2,)), 2, "hi", 2),
        (SamplingParams(stop_token_ids=(65,)), 65, "hi", 65),
        (SamplingParams(stop_token_ids=(2,), skip_special_tokens=False, include_stop_str_in_output=True), 2,
         "hi<|im_end|>", 2),
    ],
)  # fmt: skip
def test_the_ending_token_has_no_text(
    smollm: Tokenizer, sampling: SamplingParams, token: int, text: str, stop: int | None
) -> None:
    """Red if `<|im_end|>` shows up in answers, or a finish names the wrong stop."""
    tokens = [*smollm.encode("hi"), token]
    assert run(smollm, sampling, [(tokens, None, "stop", token)])[:2] == (text, tokens)
    assert run(smollm, sampling, [(tokens, None, "stop", token)])[3] == [Finish(3, "stop", stop)]


def test_held_back_text_comes_at_the_end(smollm: Tokenizer) -> None:
    """Red if the beginning of a stop string that never came is lost."""
    tokens = smollm.encode("all is wel")
    text, _, _, finishes, hit = run(
        smollm, SamplingParams(stop=("wellness",)), [(tokens, None, "length", None)]
    )
    assert (text, finishes, hit) == ("all is wel", [Finish(3, "length")], None)


def test_an_unfinished_character_ends_as_one_replacement(smollm: Tokenizer) -> None:
    """Red if max_tokens inside a character drops it silently or breaks the stream."""
    tokens = smollm.encode("😀")[:-1]
    assert run(smollm, SamplingParams(), [([t], None, None, None) for t in tokens])[0] == ""
    assert run(smollm, SamplingParams(), [(tokens, None, "length", None)])[0] == "\ufffd"


def test_min_tokens_ignores_earlier_stop_strings(smollm: Tokenizer) -> None:
    """Red if a stop string among the first min_tokens tokens ends the choice."""
    tokens = smollm.encode("a b a b a b")
    for least in (2, 3):  # the second token's own text counts among the first two
        text, *_, hit = run(
            smollm, SamplingParams(stop=(" b",), min_tokens=least), [(tokens, None, None, None)]
        )
        assert (text, hit) == ("a b a", StopHit(4, " b"))


def test_aborted_choices_have_no_finish(smollm: Tokenizer) -> None:
    """Red if an engine error looks like a normal end."""
    assert run(smollm, SamplingParams(stop=("xyz",)), [(smollm.encode("ax"), None, "error", None)])[0::3] == (
        "ax",
        [],
    )


def test_logprobs_carry_exact_bytes(smollm: Tokenizer) -> None:
    """Red if the bytes of partial characters are lost, or NaN-free floats become numpy's."""
    tokens = smollm.encode("é😀")
    logprobs = [(-1.0, [(t, -1.0), (17, -math.log(4))]) for t in tokens]
    entries: list[TokenLogprob] = run(
        smollm, SamplingParams(logprobs=2), [(tokens, logprobs, "length", None)]
    )[2]
    assert b"".join(entry.bytes for entry in entries) == "é😀".encode()
    assert entries[0].top[1].token == "!" and entries[0].top[1].token_id == 17
    assert all(type(entry.logprob) is float for entry in entries)


def test_prompt_echo(smollm: Tokenizer, llama_like: Tokenizer) -> None:
    """Red if the first prompt token gets a logprob, or the rest are shifted by one."""
    tokens = smollm.encode("The capital of France")
    echo = prompt_echo(smollm, 1, tokens, [(-float(i), []) for i in range(1, len(tokens))])
    assert echo.text == "The capital of France" and echo.token_ids == tuple(tokens)
    assert echo.logprobs is not None
    assert [entry.logprob for entry in echo.logprobs] == [None, *(-float(i) for i in range(1, len(tokens)))]
    assert [entry.token_id for entry in echo.logprobs] == tokens
    whole = llama_like.encode("fox", add_special=True)
    assert prompt_echo(llama_like, 0, whole, None).text == "fox"


def test_generated_text_keeps_its_leading_space(llama_like: Tokenizer) -> None:
    """Red if "France is" + "Paris" are joined without the space that the first generated token carries."""
    assert run(llama_like, SamplingParams(), [(llama_like.encode("fox"), None, "length", None)])[0] == " fox"
