"""Grammar backends against independent judges: JSON schema by jsonschema_rs, expressions by `re`."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from grammar_tokens import EOS, PIECES, SCHEMAS, ByteTokenizer, allowed, encode, write
from hypothesis import given
from hypothesis import strategies as st

from penstock.decoding.grammar.backend import GrammarBackend, Vocabulary, mask_words
from penstock.decoding.grammar.backends import make_backend
from penstock.decoding.grammar.spec import (
    MAX_CHOICES,
    MAX_DEPTH,
    GrammarSpec,
    spec_of_choices,
    spec_of_schema,
    spec_of_structural_tag,
    spec_of_text,
)
from penstock.errors import InvalidRequest


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_what_masks_let_through_is_valid(backend: GrammarBackend, number: int) -> None:
    """Red if a token is allowed after which the schema can't be met."""
    validators = pytest.importorskip("jsonschema_rs")
    schema = SCHEMAS[number]
    ended = 0
    for seed in range(20):
        text, complete = write(backend, spec_of_schema(schema, "s"), seed)
        if complete:
            ended += 1
            assert validators.is_valid(schema, json.loads(text)), text
    assert ended >= 5


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_any_json_object_is_one(backend: GrammarBackend, number: int) -> None:
    """Red if `json_object` lets anything but one object through."""
    text, complete = write(backend, GrammarSpec("json_object"), number)
    if complete:
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("pattern", [r"[a-z]+@[a-z]+\.(com|org)", r"\d{3}-\d{4}", r"(yes|no)(, sir)?"])
def test_expressions_are_matched_whole(backend: GrammarBackend, pattern: str) -> None:
    """Red if a regular expression is searched for instead of matched, or left early."""
    ended = 0
    for seed in range(10):
        text, complete = write(backend, spec_of_text("regex", pattern, "regex"), seed)
        if complete:
            ended += 1
            assert re.fullmatch(pattern, text)
    assert ended


def test_one_of_the_choices_comes(backend: GrammarBackend) -> None:
    """Red if a choice that begins another, or holds quotes and line breaks, is mistaken."""
    choices = ["a", "ab", 'say "x"\n', "né"]
    found = {write(backend, spec_of_choices(choices, "choice"), seed)[0] for seed in range(40)}
    assert found == set(choices)


@pytest.mark.parametrize(
    "source",
    ['start: "(" start ")" | "x"', 'root ::= "(" root ")" | "x"'],
    ids=["lark", "gbnf"],
)
def test_grammars_in_both_notations(backend: GrammarBackend, source: str) -> None:
    """Red if a recursive grammar is flattened, or one of the notations is read as the other."""
    if backend.name == "xgrammar" and "::=" not in source:
        with pytest.raises(InvalidRequest, match="write GBNF"):
            backend.compile(spec_of_text("grammar", source, "grammar"))
        return
    for seed in range(10):
        text, complete = write(backend, spec_of_text("grammar", source, "grammar"), seed, most=60)
        if complete:
            assert re.fullmatch(r"\(*x\)*", text) and text.count("(") == text.count(")")


def test_structural_tags_bind_what_follows_their_trigger(backend: GrammarBackend) -> None:
    """Red if text before a trigger is bound, or what follows it is free."""
    tag = {
        "structures": [{"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"}],
        "triggers": ["<f="],
    }
    matcher = backend.compile(spec_of_structural_tag(tag, "structural_tag")).matcher()
    for token in encode("hello <f=a>"):
        assert matcher.consume(token)
    letters = {PIECES[token] for token in allowed(matcher)}
    assert b"1" in letters and b"a" not in letters
    for token in encode("12</f> and more"):
        assert matcher.consume(token)
    assert EOS in allowed(matcher)


@given(data=st.data())
def test_rolling_back_restores_everything(backend: GrammarBackend, data: st.DataObject) -> None:
    """Red if a rejected draft leaves a trace in the matcher."""
    schema = data.draw(st.sampled_from(SCHEMAS))
    matcher = backend.compile(spec_of_schema(schema, "s")).matcher()
    masks = [allowed(matcher)]
    for _ in range(data.draw(st.integers(0, 12))):
        tokens = [token for token in masks[-1] if token != EOS]
        if not tokens:
            break
        assert matcher.consume(data.draw(st.sampled_from(tokens)))
        masks.append(allowed(matcher))
    back = data.draw(st.integers(0, len(masks) - 1))
    matcher.rollback(back)
    assert allowed(matcher) == masks[len(masks) - 1 - back]


def test_a_refused_token_changes_nothing(backend: GrammarBackend) -> None:
    """Red if a token out of place breaks the matcher for those that are in place."""
    matcher = backend.compile(spec_of_choices(["ab", "ba"], "choice")).matcher()
    before = allowed(matcher)
    assert not matcher.consume(encode("x")[0])
    assert allowed(matcher) == before
    assert matcher.accepts(encode("ab")) == 1
    assert matcher.consume(encode("ab")[0])
    assert matcher.is_complete


def test_forced_tokens_are_those_that_alone_may_come(backend: GrammarBackend) -> None:
    """Red if a token is forced that the masks would not force, or spelled otherwise."""
    schema = {
        "type": "object",
        "properties": {"name": {"type": "integer"}},
        "required": ["name"],
        "additionalProperties": False,
    }
    matcher = backend.compile(spec_of_schema(schema, "s")).matcher()
    matcher.consume(encode("{")[0])
    matcher.consume(encode('"')[0])
    forced = matcher.forced()
    assert forced
    assert encode('name"')[: len(forced)] == forced
    assert matcher.accepts(forced) == len(forced)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "unevaluatedProperties": {"type": "string"}}, "unevaluatedProperties"),
        ({"type": "strin"}, "strin"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"type": "string", "pattern": "(unclosed"}, "unclosed"),
        ({"type": "array", "contains": {"type": "string"}}, "contains"),
    ],
)
def test_a_schema_that_can_not_be_honoured_is_refused_by_name(
    backend: GrammarBackend, schema: dict[str, Any], named: str
) -> None:
    """Red if a keyword is ignored, or the refusal does not say which."""
    with pytest.raises(InvalidRequest, match=named):
        backend.compile(spec_of_schema(schema, "json_schema"))


@pytest.mark.parametrize(
    ("kind", "source"), [("regex", "(a"), ("grammar", "start: nothing"), ("grammar", "%%%")]
)
def test_expressions_and_grammars_that_mean_nothing_are_refused(
    backend: GrammarBackend, kind: Any, source: str
) -> None:
    """Red if damaged input compiles, or raises something that is no 400."""
    with pytest.raises(InvalidRequest):
        backend.compile(spec_of_text(kind, source, kind))


def test_limits_of_what_is_compiled() -> None:
    """Red if one request can make the engine compile without bound."""
    deep: Any = {}
    for _ in range(MAX_DEPTH + 1):
        deep = {"items": deep}
    with pytest.raises(InvalidRequest, match="nested deeper"):
        spec_of_schema(deep, "s")
    with pytest.raises(InvalidRequest, match="bytes, at most"):
        spec_of_schema({"description": "x" * (1 << 20)}, "s")
    with pytest.raises(InvalidRequest, match="choices, at most"):
        spec_of_choices(["x"] * (MAX_CHOICES + 1), "s")
    with pytest.raises(InvalidRequest, match="not JSON"):
        spec_of_schema("{", "s")
    with pytest.raises(InvalidRequest, match="lone surrogates"):
        spec_of_text("regex", "\ud800", "s")


def test_formats_that_nobody_defines_say_nothing(backend: GrammarBackend) -> None:
    """Red if an annotation makes a schema unusable, or a property called "format" is taken for one."""
    schema = {
        "type": "object",
        "properties": {"format": {"type": "string", "format": "topic", "maxLength": 3}},
        "required": ["format"],
        "additionalProperties": False,
    }
    matcher = backend.compile(spec_of_schema(schema, "s")).matcher()
    assert matcher.accepts(encode('{"format": "abc"}')) == len(encode('{"format": "abc"}'))
    assert matcher.accepts(encode('{"x')) < len(encode('{"x'))


def test_a_head_far_wider_than_the_vocabulary_has_masks(backend: GrammarBackend) -> None:
    """Red if padding rows of a model's head (Qwen has hundreds) make its masks too wide for the library."""
    size = len(PIECES) + 300
    wide = make_backend(backend.name, lambda: Vocabulary(ByteTokenizer(), size))
    matcher = wide.compile(spec_of_text("regex", "(.|\\n)*", "regex")).matcher()
    mask = np.zeros(mask_words(size), np.int32)
    matcher.fill(mask)
    ids = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
    assert len(ids) > 0
    assert ids.max() < len(PIECES)
    assert matcher.accepts([size - 1]) == 0
