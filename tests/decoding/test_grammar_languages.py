"""Grammar backends against other readings of generated grammars, text by text and token by token."""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
import pytest
from grammar_languages import (
    EXPRESSION_TEXTS,
    EXPRESSIONS,
    GRAMMARS,
    SCHEMAS,
    TEXTS,
    Grammar,
    as_answer,
    instances,
    language,
    written,
)
from grammar_tokens import PIECES, encode
from hypothesis import given
from hypothesis import strategies as st

from penstock.decoding.grammar.backend import CompiledGrammar, GrammarBackend
from penstock.decoding.grammar.spec import spec_of_schema, spec_of_text
from penstock.errors import InvalidRequest


def accepted(grammar: CompiledGrammar, text: str, by_bytes: bool = False) -> bool:
    """Whether `text` is an answer, consumed token by token."""
    tokens = [PIECES.index(bytes([byte])) for byte in text.encode()] if by_bytes else encode(text)
    matcher = grammar.matcher()
    return all(map(matcher.consume, tokens)) and matcher.is_complete


def compiled(backend: GrammarBackend, spec: Any) -> CompiledGrammar | None:
    """None where it is refused."""
    try:
        return backend.compile(spec)
    except InvalidRequest:
        return None


@given(expression=EXPRESSIONS)
def test_an_expression_takes_what_re_matches(backend: GrammarBackend, expression: str) -> None:
    """Red if an automaton takes more than its expression, or less."""
    grammar = compiled(backend, spec_of_text("regex", expression, "regex"))
    if grammar is not None:
        want = {text for text in EXPRESSION_TEXTS if re.fullmatch(expression, text)}
        assert {text for text in EXPRESSION_TEXTS if accepted(grammar, text)} == want


@given(rules=GRAMMARS)
def test_a_grammar_takes_the_texts_of_its_rules(xgrammar: GrammarBackend, rules: Grammar) -> None:
    """Red if empty, ambiguous or left-recursive rules are followed wrongly."""
    grammar = xgrammar.compile(spec_of_text("grammar", written(rules, "gbnf"), "grammar"))
    assert {text for text in TEXTS if accepted(grammar, text)} == language(rules)


@pytest.mark.parametrize("notation", ["gbnf", "lark"])
@given(rules=GRAMMARS)
def test_a_grammar_takes_no_other_texts(llguidance: GrammarBackend, notation: str, rules: Grammar) -> None:
    """Red if a text that no rules lead to is taken. llguidance takes words greedily, so it may take fewer."""
    grammar = compiled(llguidance, spec_of_text("grammar", written(rules, notation), "grammar"))
    if grammar is not None:
        assert {text for text in TEXTS if accepted(grammar, text)} <= language(rules)


@given(data=st.data())
def test_a_schema_takes_its_instances(backend: GrammarBackend, data: st.DataObject) -> None:
    """Red if an instance is taken that is not valid, or a valid one is not whose members are in order."""
    schema = data.draw(SCHEMAS)
    grammar = compiled(backend, spec_of_schema(schema, "s"))
    for value in data.draw(st.lists(instances(schema), min_size=4, max_size=8)):
        valid = jsonschema_rs.is_valid(schema, value)
        if grammar is None:
            assert not valid
        else:
            assert accepted(grammar, as_answer(schema, value), data.draw(st.booleans())) == valid, value
