"""Forms of real schemas, filled in by the real model: valid, and the same tokens with drafts as without."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from token_engine import Answer, TokenEngine

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from penstock.decoding.params import TokenSampling
from penstock.decoding.thinking import ThinkingSpec
from penstock.engine.thinking import ThinkingMarkers
from penstock.text.tokenizer import Tokenizer
from suite.schema_answers import Schema, read_schemas

validators = pytest.importorskip("jsonschema_rs")

MAX_TOKENS = 200
MOST_PROMPT = 700  # tokens: a longer schema costs more to read than to fill in
QUICK, NIGHTLY = 47, 9  # one of so many schemas; of the nightly run each once
THINKING_BUDGET = 24
LEAD_IN = "\n\n"
DRAFTERS: dict[str, dict[str, Any]] = {
    "n-gram": {"method": "ngram", "k": 4, "adaptive": False},
    "suffix": {"method": "suffix", "k": 8, "adaptive": False},
}


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    return Tokenizer.load(smollm2_path)


@pytest.fixture(scope="module")
def schemas(shared_data: Path, tokenizer: Tokenizer) -> list[Schema]:
    every = read_schemas(shared_data / "decoding" / "jsonschemabench.jsonl")
    return [schema for schema in every if len(_prompt(tokenizer, schema, "")) <= MOST_PROMPT]


def _prompt(tokenizer: Tokenizer, schema: Schema, end: str) -> list[int]:
    asked = f"Make up one short JSON example for this schema:\n{schema.spec.source}"
    return tokenizer.encode(
        f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{end}", add_special=False
    )


def _fill_in(
    path: Path,
    tokenizer: Tokenizer,
    schemas: list[Schema],
    thinking: ThinkingSpec | None,
    speculation: dict[str, Any] | None = None,
) -> tuple[list[Answer], TokenEngine]:
    """All at once, greedily."""
    with TokenEngine(path, kv_bytes=1 << 30, max_running=32, speculation=speculation) as engine:
        for schema in schemas:
            sampling = TokenSampling(
                max_tokens=MAX_TOKENS,
                seed=1,
                temperature=0.0,
                stop_token_ids=tokenizer.eos_ids,
                grammar=schema.spec,
                thinking=thinking,
            )
            prompt = _prompt(tokenizer, schema, "<think>" if thinking else "")
            engine.submit(schema.id, prompt, sampling)
        engine.run()
        return [engine.answers[schema.id] for schema in schemas], engine


def _check(schema: Schema, answer: Answer, tokenizer: Tokenizer, thinks: bool) -> bool:
    """Whether the answer came to its end. It is valid then."""
    if answer.error is not None:
        assert answer.error[0] == "invalid_request_error", answer.error  # a schema that is refused
        return False
    text = tokenizer.decode(answer.tokens, continuation=True)
    if thinks:
        reasoning, end, text = text.partition("</think>" + LEAD_IN)
        assert end
        assert len(tokenizer.encode_continuation(reasoning)) <= THINKING_BUDGET + 1  # cut in a word
    if answer.finish == "length":
        assert len(answer.tokens) == MAX_TOKENS
        return False
    assert answer.finish == "stop"
    validator = validators.validator_for(json.loads(schema.spec.source), validate_formats=True)
    assert validator.is_valid(json.loads(text)), (schema.id, text)
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "step"),
    [(3, QUICK), *(pytest.param(first, NIGHTLY, marks=pytest.mark.nightly) for first in range(NIGHTLY))],
)
@pytest.mark.parametrize("thinks", [False, True], ids=["at once", "behind reasoning"])
def test_finished_forms_are_valid_and_drafts_change_no_token(
    smollm2_path: Path, tokenizer: Tokenizer, schemas: list[Schema], thinks: bool, first: int, step: int
) -> None:
    """Red if an answer breaks a schema that was promised, or differs because it was drafted."""
    chosen = schemas[first::step]
    markers, spec = ThinkingMarkers(tokenizer), None
    if thinks:
        spec = ThinkingSpec(
            starts=markers.spellings("<think>")[:1],
            ends=markers.spellings("</think>"),
            budget=THINKING_BUDGET,
            open=True,
            lead_in=markers.ids(LEAD_IN),
        )
    plain, engine = _fill_in(smollm2_path, tokenizer, chosen, spec)
    assert engine.core.progress().forced_tokens > 0
    finished = [
        _check(schema, answer, tokenizer, thinks) for schema, answer in zip(chosen, plain, strict=True)
    ]
    assert any(finished)
    for name, speculation in DRAFTERS.items():
        drafted, engine = _fill_in(smollm2_path, tokenizer, chosen, spec, speculation)
        assert sum(engine.core.progress().accepted_tokens) > 0
        for schema, answer, other in zip(chosen, drafted, plain, strict=True):
            assert (answer.tokens, answer.finish) == (other.tokens, other.finish), (name, schema.id)
