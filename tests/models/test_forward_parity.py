"""Every architecture against transformers: the same logits, however the tokens are cut and batched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paged import PagedRunner
from tiny_models import TINY, load_oracle, make_tiny, oracle_greedy, oracle_logits

from penstock.models import arch
from penstock.models.arch import ARCHITECTURES
from penstock.models.forward import Model
from penstock.models.load import inspect_model, load_model

TOLERANCE = 1e-4
LENGTH = 45  # longer than every window, the LongRoPE switch and several blocks


def tokens_of(seed: int, length: int = LENGTH) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, 256, length)]


@pytest.fixture(scope="module", params=list(TINY))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Any, Path]:
    folder = make_tiny(request.param, tmp_path_factory.mktemp(request.param))
    return load_model(inspect_model(folder), "reference"), load_oracle(folder), folder


def test_every_architecture_has_a_tiny_model() -> None:
    """Red if an architecture is added without a parity test."""
    import transformers

    covered = {
        getattr(transformers, f"{prefix}ForCausalLM").config_class().model_type for prefix, _ in TINY.values()
    }
    untried = [a.name for a in ARCHITECTURES.values() if not covered & set(a.model_types)]
    assert untried == []


def test_mapping_files_stay_short() -> None:
    """Red if an architecture grows code of its own: what is new belongs in the spec, for everybody."""
    folder = Path(arch.__file__).parent
    lengths = {name: len((folder / f"{name}.py").read_text().splitlines()) for name in ARCHITECTURES}
    assert {name: n for name, n in lengths.items() if n > 60} == {}


def test_full_prefill(pair: tuple[Model, Any, Path]) -> None:
    """Red if any part of a layer differs from the architecture's definition."""
    model, oracle, _ = pair
    tokens = tokens_of(1)
    expected = oracle_logits(oracle, tokens)
    assert np.abs(expected).max() > 1, "the oracle's logits are too flat to show anything"
    assert np.abs(PagedRunner(model).step({0: tokens})[0] - expected).max() < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 3, 4, 17])
def test_chunked_prefill_and_decode(pair: tuple[Model, Any, Path], chunk: int) -> None:
    """Red if a chunk boundary, a block boundary or the edge of a window changes what a token sees."""
    model, oracle, _ = pair
    tokens = tokens_of(2)
    runner = PagedRunner(model, block_size=4)
    got = [runner.step({0: tokens[i : i + chunk]})[0] for i in range(0, len(tokens), chunk)]
    assert np.abs(np.concatenate(got) - oracle_logits(oracle, tokens)).max() < TOLERANCE


def test_ragged_rows_in_one_batch(pair: tuple[Model, Any, Path]) -> None:
    """Red if a row reads another row's tokens, positions or blocks."""
    model, oracle, _ = pair
    sequences = {"a": tokens_of(3), "b": tokens_of(4, 35), "c": tokens_of(5, 38)}
    cuts = {"a": [20, 21, 22, 40, 45], "b": [1, 2, 13, 34, 35], "c": [5, 30, 31, 37, 38]}
    runner = PagedRunner(model, block_size=8)
    got: dict[str, list[np.ndarray]] = {row: [] for row in sequences}
    begin = dict.fromkeys(sequences, 0)
    for number in range(5):
        ends = {row: cuts[row][number] for row in sequences}
        logits = runner.step({row: sequences[row][begin[row] : ends[row]] for row in sequences})
        for row in sequences:
            got[row].append(logits[row])
        begin = ends
    for row, tokens in sequences.items():
        expected = oracle_logits(oracle, tokens)
        assert np.abs(np.concatenate(got[row]) - expected).max() < TOLERANCE, row


def test_greedy_tokens(pair: tuple[Model, Any, Path]) -> None:
    """Red if generation drifts from the oracle's tokens."""
    model, oracle, _ = pair
    prompt = tokens_of(6, 40)
    assert PagedRunner(model).greedy(0, prompt, 12) == oracle_greedy(oracle, prompt, 12)


def test_longrope_set_belongs_to_the_served_context(tmp_path: Path) -> None:
    """Red if the set of divisors is chosen per request: cached keys would mean different things."""
    folder = make_tiny("phi3_longrope", tmp_path)
    oracle, short = load_oracle(folder), tokens_of(7, 30)
    served_short = load_model(inspect_model(folder), "reference", context=32)
    assert (
        np.abs(PagedRunner(served_short).step({0: short})[0] - oracle_logits(oracle, short)).max() < TOLERANCE
    )
    long = tokens_of(8)
    served_long = load_model(inspect_model(folder), "reference", context=33)
    assert np.abs(PagedRunner(served_long).step({0: long})[0] - oracle_logits(oracle, long)).max() < TOLERANCE
    assert np.abs(PagedRunner(served_long).step({0: short})[0] - oracle_logits(oracle, short)).max() > 0.1
