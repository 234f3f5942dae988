"""Soups of markers, JSON and text: nothing raises, nothing is lost, splits do not matter."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_output_families import CASES, TOOLS, merged, parse, readable

from penstock.text.output.choose import FORMATS
from penstock.text.output.events import CallArguments, CallStart, Malformed, ParsedEvent, Reasoning, Text
from penstock.text.output.format import OutputFormat

# Outputs in all, shared out among the families: of every run, and of the nightly one.
OUTPUTS, NIGHTLY_OUTPUTS = 10_000, 100_000

JSON_PIECES = [
    '{"name": "get_weather", "arguments": {"city": "Rome"}}',
    '{"name": "get_time", "parameters": {}}',
    '{"city": "a \\"b\\" {c}"}',
    '{"tool_name": "get_time", "parameters": {"zone": "x"}}',
    '{"get_time": {}}',
    "[", "]", "{", "}", ",", ";", ":", '"', "'", "\\", "\n", " ", "  \n", "=", "(", ")", "```json\n", "```",
    "1", "-2.5", "true", "None", "null", "get_weather", "get_time()", "city='Rome'", '"name": ',
     '"arguments": ',
    "call:", "functions.",
]  # fmt: skip
WORDS = ["word", "ünï", "😀", "a < b", "<", "<|", "</", "[T", "\x00", "\t", ">", "to="]


def soup(form: OutputFormat) -> st.SearchStrategy[list[str]]:
    """Pieces of the family's syntax, whole and broken, of JSON and of text."""
    marks = [*form.special_markers] or ["<tool_call>"]
    own = [text for name, _, text, _ in CASES if name == form.name]
    piece = (
        st.sampled_from(marks)
        | st.sampled_from(JSON_PIECES)
        | st.sampled_from(WORDS)
        | st.sampled_from(marks).flatmap(lambda mark: st.integers(1, len(mark)).map(lambda end: mark[:end]))
        | st.sampled_from(own).flatmap(
            lambda text: st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(
                lambda ends: text[min(ends) : max(ends)]
            )
        )
        | st.text(max_size=4)
    )
    return st.lists(piece, max_size=12)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[begin:end] for begin, end in pairwise(ends)]


# Names of other attributes and members, and call ids, are read as syntax: what they hold is not looked for.
UNSAID = re.compile(r'="|CALL_ID|"(id|type|index|function|tool_call_id)"|(word|ünï|😀)[^"]*"\s*:')


def kept(text: str, events: list[ParsedEvent]) -> bool:
    """Whether the words of the input are in the output, which are in no marker, key or name."""
    said = ""
    for event in events:
        if isinstance(event, Text | Reasoning | CallArguments):
            said += event.text
        elif isinstance(event, CallStart):
            said += event.name
    return all(said.count(word) >= text.count(word) for word in ("word", "ünï", "😀"))


@pytest.mark.parametrize(
    "outputs", [OUTPUTS, pytest.param(NIGHTLY_OUTPUTS, marks=pytest.mark.nightly)], ids=["1e4", "1e5"]
)
@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_soup(form: OutputFormat, outputs: int) -> None:
    """Red if an output raises, depends on its pieces, loses words, or a call's arguments are no object."""
    tried = 0

    @settings(max_examples=-(-outputs // len(FORMATS)), deadline=None)
    @given(
        pieces=soup(form),
        places=st.lists(st.integers(0, 400), max_size=6),
        prompt=st.sampled_from(["", "<think>\n"]),
    )
    def check(pieces: list[str], places: list[int], prompt: str) -> None:
        nonlocal tried
        tried += 1
        text = "".join(pieces)
        whole = parse(form, [text], prompt=prompt)
        readable(whole)
        assert parse(form, cut(text, places), prompt=prompt) == whole
        assert UNSAID.search(text) or kept(text, whole)
        without = parse(form, [text], tools=())
        assert UNSAID.search(text) or kept(text, without)
        assert parse(form, list(text), tools=()) == without

    check()
    assert tried * len(FORMATS) >= outputs


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_what_is_held_back_is_short(form: OutputFormat) -> None:
    """Red if text waits for longer than the longest marker."""
    parser = form.parser(TOOLS)
    said = fed = 0
    longest = max([len(mark) for mark in form.special_markers], default=1)
    for piece in ["Some words, ", "a <b> [c] ", "{d} `e` ", "and <|f|> more. "] * 20:
        fed += len(piece)
        said += sum(len(event.text) for event in parser.feed(piece) if isinstance(event, Text))
        assert fed - said <= longest + 1
    rest = merged(parser.close())
    assert said + sum(len(event.text) for event in rest if isinstance(event, Text)) == fed


LONG = [
    ("hermes", "<think>" + "Some words. " * 80_000),
    ("hermes", "a<b " * 250_000),
    ("hermes", " \n" * 400_000 + "x"),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "' + "x\\ny " * 200_000 + '"}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": [' + "1, " * 300_000 + "1]}}</tool_call>"),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n' * 20_000),
    ("hermes", "<tool_call>{" * 80_000),
    ("llama3", '{"name": "f", ' * 70_000),
    ("pythonic", "[f(" * 300_000),
    ("pythonic", "[f(a='" + "x" * 1_000_000 + "')]"),
    ("qwen3_coder", "<function=f>\n<parameter=a>\n" + "</par " * 150_000 + "\n</parameter>\n</function>"),
    ("qwen3_coder", "<function=" * 100_000),
    ("glm", "<tool_call>" * 90_000),
    ("deepseek_v3", "<｜tool▁call▁begin｜>" * 50_000),
    ("gemma4", '<|tool_call>call:f{a:<|"|>' + "x<" * 500_000 + '<|"|>}<tool_call|>'),
    ("minimax_m3", "]<]minimax[>[<tool_call>]<]minimax[>[<invoke name=\"f\">" + "]<]minimax[>[<a>" * 50_000),
    ("gpt_oss", "<|channel|>analysis<|message|>a" * 30_000),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), LONG, ids=[f"{name}-{text[:12]!r}" for name, text in LONG])
def test_a_megabyte(name: str, text: str) -> None:
    """Red (by taking minutes) if an output is rescanned, whole or token by token."""
    form = FORMATS[name]
    whole = parse(form, [text])
    said = sum(len(event.text) for event in whole if isinstance(event, Text | Reasoning | CallArguments))
    assert said or any(isinstance(event, Malformed) for event in whole)
    assert parse(form, [text[at : at + 7] for at in range(0, len(text), 7)]) == whole
