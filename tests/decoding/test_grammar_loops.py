"""Loops in constrained answers: what only repeats itself is closed, and nothing else is touched."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from constrained_text import END, ByteTokens

from penstock.call import ToolSpec
from penstock.decoding.grammar.backend import Vocabulary, mask_words
from penstock.decoding.grammar.llguidance_backend import LLGuidanceBackend
from penstock.decoding.grammar.loops import MAX_DIGITS, MIN_REPEATED, MIN_REPEATS
from penstock.decoding.grammar.masks import GrammarMasks
from penstock.decoding.grammar.spec import GrammarSpec, spec_of_schema
from penstock.decoding.grammar.store import GrammarStore
from penstock.engine.tools.grammar import MOST_CALLS, forced_calls
from penstock.text.output.choose import FORMATS

NOTE = ToolSpec(
    "note",
    None,
    {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "sizes": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["text", "tags"],
    },
)
Model = Callable[[str], str]  # the text so far to what the model would write next


class Writer:
    """An engine's slot with a model that is a function of the text."""

    def __init__(self, form: str = "hermes", spec: GrammarSpec | None = None) -> None:
        self.tokens = ByteTokens()
        self.vocabulary = Vocabulary(self.tokens, self.tokens.vocab_size)
        self.spec = spec or forced_calls(FORMATS[form], (NOTE,), "required", True, self.tokens.specials)
        self.store = GrammarStore(LLGuidanceBackend(lambda: self.vocabulary), lambda: self.vocabulary)

    def write(self, model: Model, most: int, known: str = "", stop: int | None = None) -> str:
        """The answer of at most `most` tokens, going on from `known`; up to `stop` tokens of it."""
        masks = GrammarMasks(1, self.tokens.vocab_size, self.store)
        text = known
        masks.admit(0, self.spec, np.frombuffer(known.encode(), np.uint8), 0, None, most)
        slots = np.array([0])
        while len(text) < min(most, most if stop is None else stop):
            found, broken = masks.of(slots)
            assert not broken
            bits = np.unpackbits(found[0].view(np.uint8), bitorder="little")
            assert found.shape == (1, mask_words(self.tokens.vocab_size))
            wanted = model(text)
            token = ord(wanted[:1]) if wanted and bits[ord(wanted[:1])] else self._other(bits)
            masks.record(0, token)
            if token == END:
                return text
            text += chr(token)
        return text

    def _other(self, bits: np.ndarray) -> int:
        """What a model writes that may not write what it wants."""
        for char in '",]}\n<':
            if bits[ord(char)]:
                return ord(char)
        return int(np.flatnonzero(bits)[0])


HEAD = '<tool_call>\n{"name": "note", "arguments": {"text": "'


def repeating(unit: str) -> Model:
    """Begins a call and repeats `unit` for ever, wherever it is."""

    def model(text: str) -> str:
        if len(text) < len(HEAD):
            return HEAD[len(text) :]
        body = text[len(HEAD) :]
        return (unit * (len(body) // len(unit) + 2))[len(body) :]

    return model


def calls_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(part.split("</tool_call>")[0])["arguments"] for part in text.split("<tool_call>")[1:]]


@pytest.mark.parametrize("unit", ["x", "kosher, ", "It is 1.0 by the book. "])
def test_a_string_that_repeats_itself_is_closed_and_the_answer_ends(unit: str) -> None:
    """Red if a loop runs into the limit, or closes into something that is no call."""
    text = Writer().write(repeating(unit), 1024)
    assert len(text) < 1024
    (arguments,) = calls_of(text)
    repeated = arguments["text"].count(unit)
    assert repeated >= MIN_REPEATS
    assert len(arguments["text"]) <= 1024 // 4 + len(unit) + 1


def test_a_list_that_repeats_itself_is_closed() -> None:
    """Red if only strings are closed, or each of a thousand items anew."""
    begin = HEAD + 'a", "tags": [], "sizes": ['

    def model(text: str) -> str:
        return begin[len(text) :] if len(text) < len(begin) else ("91, " * 999)[len(text) - len(begin) :]

    text = Writer().write(model, 800)
    (arguments,) = calls_of(text)
    assert set(arguments["sizes"]) == {91}
    assert 10 <= len(arguments["sizes"]) <= 60


def test_the_next_loop_of_an_answer_is_closed_sooner() -> None:
    """Red if an answer with several places to loop in loops through all of them."""
    text = Writer().write(repeating("ab"), 1024)
    (arguments,) = calls_of(text)
    assert len(arguments["text"]) >= 2 * sum(map(len, arguments["tags"]))


def test_what_repeats_itself_within_reason_is_kept() -> None:
    """Red if a table or a rule of dashes is cut."""
    rule = "-" * (MIN_REPEATED - 8)
    wanted = HEAD + rule + "\\n" + "| 0 | 0 |\\n" * (MIN_REPEATS - 1) + rule + '", "tags": []}\n</tool_call>'
    wanted = wanted.replace("[]}\n", "[]}}\n")
    text = Writer().write(lambda text: wanted[len(text) :], 2000)
    assert calls_of(text)[0] == calls_of(wanted)[0]


@pytest.mark.parametrize("form", ["hermes", "jamba", "mistral"])
def test_a_call_that_is_made_again_is_the_last_one(form: str) -> None:
    """Red if a model that repeats its call repeats it to the limit."""
    syntax = FORMATS[form].syntax
    assert syntax is not None
    call = "note".join(syntax.call_begin) + '{"text": "a", "tags": []}' + syntax.call_end
    wanted = syntax.begin + syntax.separator.join([call] * 9)
    text = Writer(form).write(lambda text: wanted[len(text) :], 2000)
    assert text == syntax.begin + syntax.separator.join([call] * 2) + syntax.end
    other = [call.replace('"a"', f'"{number}"') for number in range(9)]
    wanted = syntax.begin + syntax.separator.join(other)
    text = Writer(form).write(lambda text: wanted[len(text) :], 2000)
    assert text == syntax.begin + syntax.separator.join(other[:MOST_CALLS]) + syntax.end


def test_an_answer_goes_on_after_a_preemption_as_it_would_have() -> None:
    """Red if what is closed depends on when the answer was interrupted."""
    writer = Writer()
    whole = writer.write(repeating("kosher, "), 600)
    for stop in range(40, len(whole), 7):
        begun = writer.write(repeating("kosher, "), 600, stop=stop)
        assert begun == whole[:stop]
        assert writer.write(repeating("kosher, "), 600, known=begun) == whole


def test_other_grammars_may_repeat() -> None:
    """Red if an answer of a schema, where a client may want any repetition, is closed."""
    spec = spec_of_schema({"type": "string"}, "s")
    text = Writer(spec=spec).write(lambda text: '"'[len(text) :] or "x", 500)
    assert text == '"' + "x" * 499


def test_digits_end() -> None:
    """Red if a number goes on for ever."""
    spec = spec_of_schema({"type": "array", "items": {"type": "integer"}}, "s")
    chance = random.Random(1)
    text = Writer(spec=spec).write(lambda text: "["[len(text) :] or chance.choice("123456789"), 600)
    assert max(map(len, text.strip("[]").split(","))) <= MAX_DIGITS
