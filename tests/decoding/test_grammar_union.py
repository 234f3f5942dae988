"""The two grammar backends together, the second one's limits, and machines without it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from grammar_tokens import EOS, allowed, encode, vocabulary

from penstock.decoding.grammar import backends, xgrammar_backend
from penstock.decoding.grammar.backend import GrammarBackend, GrammarBroken
from penstock.decoding.grammar.backends import UnionBackend, make_backend
from penstock.decoding.grammar.spec import spec_of_choices, spec_of_schema, spec_of_text
from penstock.decoding.grammar.store import GrammarStore
from penstock.errors import ConfigError, InvalidRequest

NEEDS_SECOND = {  # llguidance refuses `dependencies`
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "dependencies": {"a": ["b"]},
    "additionalProperties": False,
}


def _json(schema: Any) -> Any:
    return spec_of_schema(schema, "json_schema")


def test_what_the_first_refuses_the_second_serves(xgrammar: GrammarBackend) -> None:
    """Red if the union asks the second first, not at all, or does not count it."""
    union = make_backend("auto", vocabulary)
    assert isinstance(union, UnionBackend)
    assert union.compile(_json({"type": "integer"})).backend == "llguidance"
    assert union.fallbacks == 0
    grammar = union.compile(_json(NEEDS_SECOND))
    assert grammar.backend == xgrammar.name
    assert union.fallbacks == 1
    matcher = grammar.matcher()
    assert matcher.accepts(encode('{"a": 1}')) < len(encode('{"a": 1}'))
    for token in encode('{"a": 1, "b": 2}'):
        assert matcher.consume(token)
    assert EOS in allowed(matcher)


def test_what_both_refuse_is_refused_in_the_words_of_the_first(xgrammar: GrammarBackend) -> None:
    """Red if a 400 names another keyword than that which llguidance stumbled over, or not both reasons."""
    union = make_backend("auto", vocabulary)
    schema = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    with pytest.raises(
        InvalidRequest, match=r'json_schema: .*"uniqueItems".*; xgrammar says: uniqueItems'
    ) as error:
        union.compile(_json(schema))
    assert error.value.param == "json_schema"
    assert union.fallbacks == 0


def test_without_the_second_the_first_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a machine without xgrammar can't answer, or falls back where it was asked for by name."""
    monkeypatch.setitem(backends.BACKENDS, "xgrammar", (("no_such_library",), "'penstock[xgrammar]'"))
    union = make_backend("auto", vocabulary)
    assert union.compile(_json({"type": "integer"})).backend == "llguidance"
    with pytest.raises(InvalidRequest, match="dependencies"):
        union.compile(_json(NEEDS_SECOND))
    with pytest.raises(ConfigError, match=r"no_such_library missing.*pip install 'penstock\[xgrammar\]'"):
        make_backend("xgrammar", vocabulary)


def test_nothing_loads_the_second_before_it_is_needed() -> None:
    """Red if torch is loaded into an engine whose grammars llguidance serves, or which nobody can."""
    code = """
import sys
from grammar_tokens import vocabulary
from penstock.decoding.grammar.backends import make_backend
from penstock.decoding.grammar.spec import spec_of_schema, spec_of_text
from penstock.errors import InvalidRequest
union = make_backend("auto", vocabulary)
union.compile(spec_of_schema({"type": "integer"}, "s"))
for spec in (spec_of_schema({"type": "strin"}, "s"), spec_of_text("regex", "(a", "r")):
    try:
        union.compile(spec)
    except InvalidRequest:
        continue
    raise AssertionError(spec)
assert not {"xgrammar", "torch", "transformers"} & sys.modules.keys()
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)}, timeout=120
    )


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("root ::= root{2}", "comes to itself"),
        ('root ::= x\nx ::= ("a" y){0,3}\ny ::= "b" | x', "comes to itself"),
        ('root ::= (("a"{1,128}){1,128}){1,128}', "too large"),
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "[Nn]est"),
        ('root ::= Regex("a")', "Regex"),
        ('root[max_chars=3] ::= "a"', "attributes"),
        ("root ::= nothing", "nothing"),
    ],
)
def test_rules_that_would_crash_or_block_the_library_are_refused(
    xgrammar: GrammarBackend, source: str, named: str
) -> None:
    """Red if one request's grammar can take down the engine: some of these crash the library or hang it."""
    with pytest.raises(InvalidRequest, match=named):
        xgrammar.compile(spec_of_text("grammar", source, "grammar"))


@pytest.mark.parametrize(
    "spec",
    [
        spec_of_text("regex", "((a{1,100}){1,100}){1,100}", "regex"),
        spec_of_text("regex", "(a|b)*a(a|b){14}", "regex"),
        _json({"properties": {f"p{i}": {"pattern": f"^(a|b)*a(a|b){{8}}{i}$"} for i in range(100)}}),
        _json({"properties": {f"p{i}": {"type": "integer"} for i in range(2000)}}),
    ],
    ids=["repeats", "states", "patterns", "members"],
)
def test_what_takes_too_long_to_write_is_refused(xgrammar: GrammarBackend, spec: Any) -> None:
    """Red if a small request keeps a thread of the engine busy for minutes."""
    with pytest.raises(InvalidRequest, match=r"simpler|states"):
        xgrammar.compile(spec)


def test_many_members_are_no_deep_recursion(xgrammar: GrammarBackend) -> None:
    """Red if an object with hundreds of members runs into Python's limit."""
    members = {f"p{i}": {"type": "integer"} for i in range(500)}
    matcher = xgrammar.compile(_json({"properties": members, "type": "object"})).matcher()
    assert matcher.accepts(encode('{"p0": 1, "p499": 2}')) == len(encode('{"p0": 1, "p499": 2}'))


def test_an_endless_rule_forces_nothing(xgrammar: GrammarBackend) -> None:
    """Red if the text that a rule without an end forces is asked of the library, which writes it all."""
    matcher = xgrammar.compile(spec_of_text("grammar", 'root ::= "a" root', "grammar")).matcher()
    assert matcher.forced() == []
    assert matcher.consume(encode("a")[0])


def test_an_answer_whose_grammar_is_too_slow_ends(
    xgrammar: GrammarBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if an ambiguous grammar, whose every token takes longer, may stop the engine's steps."""
    monkeypatch.setattr(xgrammar_backend, "STEP_S", 0.01)
    rules = "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(30))
    spec = spec_of_text("grammar", f'root ::= r0\n{rules}\nr30 ::= "a"?', "grammar")
    matcher = xgrammar.compile(spec).matcher()
    with pytest.raises(GrammarBroken, match="less ambiguous"):
        for _ in range(60):
            allowed(matcher)
            matcher.consume(encode("a")[0])
    assert not matcher.consume(encode("a")[0])


def test_a_slow_compilation_is_given_up_and_does_not_block_others(xgrammar: GrammarBackend) -> None:
    """Red if the store gives the second backend all the time it wants, or its compiler blocks the others."""
    store = GrammarStore(xgrammar, vocabulary, compile_s=0.05)
    slow = store.compile(spec_of_choices(["a" * length for length in range(1, 700)], "choice"))
    assert store.compiled(_json({"type": "integer"})).backend == "xgrammar"
    with pytest.raises(InvalidRequest, match=r"takes longer than 0\.05 s"):
        slow.result(60)
    store.close()
