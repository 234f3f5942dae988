"""Instances of real schemas as answers: drafts, forced tokens and reasoning change none of them."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from penstock.decoding.grammar.backend import Vocabulary
from penstock.decoding.grammar.backends import make_backend
from penstock.text.tokenizer import Tokenizer
from suite.schema_answers import Mode, Schema, SchemaAnswers, read_schemas

MOST_DRAFTS = 8
MODES = [Mode(drafts, thinking) for drafts in range(MOST_DRAFTS + 1) for thinking in (False, True)]
LEAST_PASSING = 207


@pytest.fixture(scope="module")
def schemas(shared_data: Path) -> list[Schema]:
    return read_schemas(shared_data / "decoding" / "jsonschemabench.jsonl")


@pytest.fixture(scope="module")
def answers(smollm2_path: Path) -> SchemaAnswers:
    tokenizer = Tokenizer.load(smollm2_path)
    backend = make_backend("auto", lambda: Vocabulary(tokenizer, tokenizer.vocab_size))
    return SchemaAnswers(tokenizer, backend, MOST_DRAFTS)


def test_every_schema_says_the_same_with_drafts_and_behind_reasoning(
    answers: SchemaAnswers, schemas: list[Schema]
) -> None:
    """Red if a draft, a forced token, a preemption or a section of reasoning changes what an answer may be,
    or if too few schemas pass. Each schema in one mode; all of them in all modes are nightly."""
    counts: Counter[str] = Counter()
    for number, schema in enumerate(schemas):
        alone = answers.verdict(schema, Mode(None))
        counts[alone.name] += 1
        mode = MODES[number % len(MODES)]
        assert answers.verdict(schema, mode) == alone, (schema.id, mode)
    assert counts["pass"] >= LEAST_PASSING
    assert not counts["false accept"] and not counts["crash"]


@pytest.mark.nightly
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_every_schema_says_the_same_in_every_mode(
    answers: SchemaAnswers, schemas: list[Schema], mode: Mode
) -> None:
    """Red if a crossing of drafts and reasoning that the quick test leaves out changes an answer."""
    for schema in schemas:
        assert answers.verdict(schema, mode) == answers.verdict(schema, Mode(None)), schema.id
