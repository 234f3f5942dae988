"""Grammars in the engine: every answer has its form, whatever else happens to its request."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from token_engine import Answer, TokenEngine

from penstock.decoding.grammar.spec import GrammarSpec, spec_of_choices, spec_of_schema, spec_of_text
from penstock.decoding.params import TokenSampling
from penstock.text.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "size": {"type": "integer", "minimum": 1, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["old", "new"]}, "maxItems": 2},
    },
    "required": ["city", "size", "tags"],
    "additionalProperties": False,
}
FORMS = [
    spec_of_schema(SCHEMA, "s"),
    spec_of_text("regex", r"[A-Z][a-z]{1,8}, (19|20)\d\d", "regex"),
    spec_of_choices(["Paris", "Paris, France", "London"], "choice"),
]


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    return Tokenizer.load(smollm2_path)


def _sampling(tokenizer: Tokenizer, grammar: GrammarSpec | None, **fields: Any) -> TokenSampling:
    fields = {"max_tokens": 80, "seed": 1, "temperature": 0.0, **fields}
    return TokenSampling(stop_token_ids=tokenizer.eos_ids, grammar=grammar, **fields)


def _prompt(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode("<|im_start|>user\nTell me about a town.<|im_end|>\n<|im_start|>assistant\n")


def _check(form: GrammarSpec, answer: Answer, tokenizer: Tokenizer) -> None:
    assert answer.error is None
    text = tokenizer.decode(answer.tokens, continuation=True)
    assert answer.finish == "stop", text
    if form.kind == "json_schema":
        value = json.loads(text)
        assert list(value) == ["city", "size", "tags"]
        assert (
            isinstance(value["city"], str)
            and 1 <= value["size"] <= 99
            and set(value["tags"]) <= {"old", "new"}
        )
    elif form.kind == "regex":
        assert re.fullmatch(form.source, text)
    else:
        assert text in json.loads(form.source)


@pytest.fixture(scope="module", params=["cpu", "reference"])
def engine_of(request: pytest.FixtureRequest, smollm2_path: Path) -> Iterator[Callable[..., TokenEngine]]:
    made = []

    def make(**settings: Any) -> TokenEngine:
        settings = {"kv_bytes": 256 << 20, "max_running": 8, **settings}
        made.append(TokenEngine(smollm2_path, backend=request.param, **settings))
        return made[-1]

    yield make
    for engine in made:
        engine.core.close()


@pytest.mark.parametrize("depth", [0, 1])
def test_answers_have_their_form_at_any_temperature_beside_free_ones(
    engine_of: Callable[..., TokenEngine], tokenizer: Tokenizer, depth: int
) -> None:
    """Red if a mask is applied to another row, a step late, or not at all."""
    engine = engine_of(async_depth=depth)
    prompt = _prompt(tokenizer)
    wanted: dict[str, GrammarSpec | None] = {}
    for number, form in enumerate([*FORMS, None]):
        for temperature in (0.0, 1.5):
            name = f"{number}/{temperature}"
            wanted[name] = form
            engine.submit(name, prompt, _sampling(tokenizer, form, temperature=temperature, max_tokens=60))
    engine.run()
    for name, form in wanted.items():
        if form is not None:
            _check(form, engine.answers[name], tokenizer)
    free = engine.alone(prompt, _sampling(tokenizer, None, max_tokens=60))
    assert engine.answers["3/0.0"].tokens == free.tokens


def test_penalties_and_grammars_together(engine_of: Callable[..., TokenEngine], tokenizer: Tokenizer) -> None:
    """Red if a row whose scores are made in Python escapes its grammar."""
    engine = engine_of()
    for number, fields in enumerate(
        [{"repetition_penalty": 1.3}, {"logit_bias": ((5, 100.0),)}, {"logprobs": 3}, {"bad_words": ((28,),)}]
    ):
        for form in FORMS:
            engine.submit(f"{number}/{form.kind}", _prompt(tokenizer), _sampling(tokenizer, form, **fields))
    engine.run()
    for name, answer in engine.answers.items():
        form = next(form for form in FORMS if form.kind == name.split("/")[1])
        _check(form, answer, tokenizer)


def test_preempted_answers_go_on_in_their_form(
    engine_of: Callable[..., TokenEngine], tokenizer: Tokenizer
) -> None:
    """Red if a matcher forgets what was written before a preemption."""
    roomy = engine_of(prefix_cache=False)
    tight = engine_of(prefix_cache=False, kv_bytes=10 * roomy.core.kv.layout.block_bytes)
    prompt = _prompt(tokenizer)
    for engine in (roomy, tight):
        for number in range(6):
            engine.submit(str(number), prompt, _sampling(tokenizer, FORMS[0], temperature=1.0, seed=number))
        engine.run()
    assert tight.core.scheduler.preemptions > 0
    for number in range(6):
        _check(FORMS[0], tight.answers[str(number)], tokenizer)
        assert tight.answers[str(number)].tokens == roomy.answers[str(number)].tokens


def test_a_form_that_can_not_be_honoured_ends_its_request_only(
    engine_of: Callable[..., TokenEngine], tokenizer: Tokenizer
) -> None:
    """Red if a refused grammar takes others with it, or its request waits for ever."""
    engine = engine_of()
    bad = spec_of_schema({"type": "array", "contains": {"const": "x"}}, "json_schema")
    engine.submit("bad", _prompt(tokenizer), _sampling(tokenizer, bad))
    engine.submit("good", _prompt(tokenizer), _sampling(tokenizer, FORMS[2]))
    engine.run()
    error = engine.answers["bad"].error
    assert error is not None and error[0] == "invalid_request_error" and "contains" in error[1]
    _check(FORMS[2], engine.answers["good"], tokenizer)


def test_an_aborted_request_whose_grammar_compiles_is_forgotten(
    engine_of: Callable[..., TokenEngine], tokenizer: Tokenizer
) -> None:
    """Red if a request that left before its grammar was there is queued afterwards."""
    engine = engine_of()
    form = spec_of_text("regex", "[a-z]{3}-" + "x" * 7, "regex")  # nobody else's: not compiled yet
    engine.submit("gone", _prompt(tokenizer), _sampling(tokenizer, form))
    engine.core.abort("test", "gone")
    engine.run()
    assert "gone" not in engine.answers
    assert not engine.core._requests


def test_an_engine_whose_requests_all_wait_for_a_grammar_has_nothing_to_do(
    engine_of: Callable[..., TokenEngine], tokenizer: Tokenizer
) -> None:
    """Red if siblings of a request that is not ready keep the loop turning: it takes the interpreter from
    the thread that compiles."""
    engine = engine_of()
    grammars = engine.core._preparing._grammars
    assert grammars is not None
    go, compile_now = threading.Event(), grammars._backend.compile
    grammars._backend.compile = lambda spec: compile_now(spec) if go.wait(60) else None  # type: ignore
    form = _sampling(tokenizer, spec_of_choices(["Rome", "Oslo"], "choice"))
    engine.submit("a", _prompt(tokenizer), form)
    engine.submit("b", _prompt(tokenizer), form, leader="a")
    engine.core.step()
    assert not engine.core.has_work
    go.set()
    engine.run()
    assert engine.answers["a"].tokens == engine.answers["b"].tokens
    assert engine.answers["b"].finish == "stop"
