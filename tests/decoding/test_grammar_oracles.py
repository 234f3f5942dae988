"""Grammar backends against brute force: masks against trying every token, states against their past."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from grammar_tokens import EOS, PIECES, SCHEMAS, allowed, encode, write

from penstock.decoding.grammar.backend import CompiledGrammar, GrammarBackend, Matcher
from penstock.decoding.grammar.spec import (
    GrammarSpec,
    spec_of_choices,
    spec_of_schema,
    spec_of_structural_tag,
    spec_of_text,
)

TAG = {
    "structures": [
        {"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"},
        {"begin": "<f=ab>", "schema": SCHEMAS[0], "end": "</f>"},
    ],
    "triggers": ["<f="],
}
SPECS: dict[str, GrammarSpec] = {
    **{f"schema {at}": spec_of_schema(schema, "s") for at, schema in enumerate(SCHEMAS)},
    "short": spec_of_schema({"type": "string", "maxLength": 20, "minLength": 3}, "s"),
    "number": spec_of_schema({"type": "number", "minimum": -12.5, "exclusiveMaximum": 120}, "s"),
    "object": GrammarSpec("json_object"),
    "regex": spec_of_text("regex", r"(a+|ab)*(é|\d{2,3})?", "regex"),
    "choice": spec_of_choices(["a", "ab", "b\n", 'say "ab"', "né", "name"], "choice"),
    "lark": spec_of_text("grammar", 'start: "(" start ")" | /ab*/', "grammar"),
    "gbnf": spec_of_text("grammar", 'root ::= "(" root ")" | [ab]*', "grammar"),
    "tag": spec_of_structural_tag(TAG, "structural_tag"),
}


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> GrammarSpec:
    return SPECS[request.param]


@pytest.fixture
def grammar(backend: GrammarBackend, spec: GrammarSpec) -> CompiledGrammar:
    if backend.name == "xgrammar" and spec == SPECS["lark"]:
        pytest.skip("Lark's notation is llguidance's")
    return backend.compile(spec)


def _tried(matcher: Matcher) -> list[int]:
    """The tokens that can be consumed, each tried alone, ends of sequence apart."""
    return [token for token in range(len(PIECES)) if token != EOS and matcher.accepts([token]) == 1]


def _is_forced(tokens: list[int], tried: list[int]) -> bool:
    """Whether `tokens` is one that all of `tried` begin to spell: llguidance leaves no choice of spelling."""
    return len(tokens) == 1 and all(PIECES[tokens[0]].startswith(PIECES[token]) for token in tried)


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_what_trying_every_token_finds(
    backend: GrammarBackend, grammar: CompiledGrammar, seed: int
) -> None:
    """Red if a mask allows a token that is then refused, or leaves out one that would be taken."""
    chance, matcher = random.Random(seed), grammar.matcher()
    for _ in range(25):
        tokens, tried = allowed(matcher), _tried(matcher)
        assert (EOS in tokens) == matcher.is_complete
        further = [token for token in tokens if token != EOS]
        if further != tried:
            assert backend.name == "llguidance"
            assert _is_forced(further, tried)
        if not further:
            return
        assert matcher.consume(chance.choice(further))


@pytest.mark.parametrize("seed", range(3))
def test_every_state_of_the_past_comes_back(grammar: CompiledGrammar, seed: int) -> None:
    """Red if a state depends on what was tried and taken back before it, or on an end that was."""
    chance, matcher = random.Random(seed), grammar.matcher()
    past: list[tuple[list[int], list[int], bool]] = []
    for _ in range(40):
        past.append((allowed(matcher), matcher.forced(), matcher.is_complete))
        if chance.random() < 0.3:
            back = chance.randint(0, len(past) - 1)
            matcher.rollback(back)
            del past[len(past) - back :]
            assert (allowed(matcher), matcher.forced(), matcher.is_complete) == past[-1]
        token = chance.choice(past[-1][0])
        if token != EOS:
            assert matcher.consume(token)
        elif matcher.consume(token):  # llguidance takes none where nothing else could come
            assert allowed(matcher) == [EOS]
            matcher.rollback(1)
            assert (allowed(matcher), matcher.forced(), matcher.is_complete) == past.pop()
        else:
            past.pop()


def test_what_is_forced_is_all_that_can_come(grammar: CompiledGrammar, spec: GrammarSpec) -> None:
    """Red if a token is forced where the masks leave a choice of texts."""
    chance, matcher, count = random.Random(1), grammar.matcher(), 0
    for _ in range(60):
        forced = matcher.forced()
        text = b"".join(PIECES[token] for token in forced)
        for token in forced:
            for other in allowed(matcher):
                piece = PIECES[other]
                assert other != EOS and (text.startswith(piece) or piece.startswith(text)), (piece, text)
            assert matcher.consume(token)
            text, count = text[len(PIECES[token]) :], count + 1
        further = [token for token in allowed(matcher) if token != EOS]
        if not further:
            break
        assert matcher.consume(chance.choice(further))
    if spec in (SPECS["schema 4"], SPECS["schema 5"]):
        assert count >= 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("schema 0", '{"name": "ab", "n": 12}'),
        ("schema 4", '{"next": {"next": null}}'),
        ("schema 5", '{"ab": [1, 2]}'),
        ("choice", 'say "ab"'),
        ("tag", '<f=ab>{"name": "true"}</f>'),
    ],
)
def test_forced_tokens_are_the_tokenizers_own(backend: GrammarBackend, name: str, text: str) -> None:
    """Red if forced text is spelled otherwise than the tokenizer spells the whole answer."""
    matcher, tokens = backend.compile(SPECS[name]).matcher(), encode(text)
    for at, token in enumerate(tokens):
        forced = matcher.forced()
        assert forced == tokens[at : at + len(forced)]
        assert matcher.consume(token)
    assert matcher.is_complete


@pytest.mark.parametrize("name", ["schema 0", "schema 1", "schema 3", "schema 4", "schema 7", "object"])
def test_white_space_ends(backend: GrammarBackend, name: str) -> None:
    """Red if a model that likes line breaks or spaces can write nothing else."""
    for seed in range(6):
        text, _ = write(backend, SPECS[name], seed, 200, lambda piece: not piece.strip())
        between = re.sub(r'"(\\.|[^"\\])*"?', '""', text)
        for space in re.findall(r"\s+", between):
            assert re.fullmatch(r"[ \t]|\r?\n[ \t]{0,64}", space), repr(space)


@pytest.mark.parametrize("length", [17, 20, 33])
def test_a_long_string_is_never_too_long(backend: GrammarBackend, length: int) -> None:
    """Red if escapes, which are several characters of text and one of the string, lengthen it."""
    spec = spec_of_schema({"type": "string", "maxLength": length, "minLength": 3}, "s")
    longest = 0
    for seed in range(60):
        text, complete = write(backend, spec, seed, 120, lambda piece: piece in (b"\\", b"u", b"ab", b"0"))
        if complete:
            value: Any = json.loads(text)
            assert 3 <= len(value) <= length, text
            longest = max(longest, len(value))
    assert longest > length / 2
