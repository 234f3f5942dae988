"""Every architecture on the native backend: the reference's logits, and the same bits however cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from paged import PagedRunner
from tiny_models import TINY, make_tiny

from penstock.kernels.backend import BackendOptions, WeightsForm
from penstock.models.load import ModelInfo, inspect_model, load_model

pytest.importorskip("penstock.kernels.cpu._native", reason="the native module is not built")

TOLERANCE = 1e-4
LENGTH = 45  # longer than every window, the LongRoPE switch and several blocks
# How weights are held -> bytes of a KV element that goes with it
FORMS: dict[WeightsForm, int] = {"float32": 4, "bf16": 2, "int8": 2, "int4": 2}


def tokens_of(seed: int, length: int = LENGTH) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, 256, length)]


def native(info: ModelInfo, weights: WeightsForm) -> Any:
    return load_model(info, "cpu", options=BackendOptions(weights=weights))


@pytest.fixture(scope="module", params=list(TINY))
def info(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return inspect_model(make_tiny(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def exact(info: ModelInfo) -> Any:
    return native(info, "float32")


@pytest.fixture(scope="module")
def expected(info: ModelInfo) -> Any:
    """fn(tokens) -> the reference's logits."""
    model = load_model(info, "reference")
    return lambda tokens: PagedRunner(model).step({0: tokens})[0]


def run_ragged(model: Any, sequences: dict[str, list[int]], itemsize: int) -> dict[str, np.ndarray]:
    """Logits of several sequences cut at random into steps that they share, in an order that changes."""
    rng = np.random.default_rng(9)
    runner = PagedRunner(model, block_size=8, itemsize=itemsize)
    done = dict.fromkeys(sequences, 0)
    got: dict[str, list[np.ndarray]] = {row: [] for row in sequences}
    while pending := [row for row in sequences if done[row] < len(sequences[row])]:
        rows = rng.permutation(pending)[: rng.integers(1, len(pending) + 1)]
        ends = {row: done[row] + int(rng.choice([1, 2, 5, 13])) for row in rows}
        for row, logits in runner.step({row: sequences[row][done[row] : ends[row]] for row in rows}).items():
            got[row].append(logits)
            done[row] = min(ends[row], len(sequences[row]))
    return {row: np.concatenate(parts) for row, parts in got.items()}


@pytest.mark.parametrize("chunk", [1, 3, LENGTH])
def test_float32_gives_the_reference_logits(exact: Any, expected: Any, chunk: int) -> None:
    """Red if an operation of the program, or a chunk or block boundary, changes what is computed."""
    tokens = tokens_of(2)
    runner = PagedRunner(exact, block_size=4)
    got = np.concatenate([runner.step({0: tokens[i : i + chunk]})[0] for i in range(0, LENGTH, chunk)])
    assert np.abs(got - expected(tokens)).max() < TOLERANCE


def test_float32_in_ragged_batches(exact: Any, expected: Any) -> None:
    """Red if a row of a batch reads another row's tokens, positions, blocks or experts."""
    sequences = {"a": tokens_of(3), "b": tokens_of(4, 35), "c": tokens_of(5, 38)}
    for row, got in run_ragged(exact, sequences, 4).items():
        assert np.abs(got - expected(sequences[row])).max() < TOLERANCE, row


def test_float32_greedy_tokens(info: ModelInfo, exact: Any) -> None:
    """Red if generation on the native backend leaves the reference's tokens."""
    prompt = tokens_of(6, 40)
    reference = load_model(info, "reference")
    assert PagedRunner(exact).greedy(0, prompt, 12) == PagedRunner(reference).greedy(0, prompt, 12)


@pytest.mark.parametrize("weights", list(FORMS))
def test_bits_do_not_depend_on_batch_or_chunks(info: ModelInfo, weights: WeightsForm) -> None:
    """Red if a row's logits change in a bit with its neighbours, its chunks or its place in the batch."""
    model, itemsize = native(info, weights), FORMS[weights]
    sequences = {"a": tokens_of(3), "b": tokens_of(4, 35), "c": tokens_of(5, 38), "d": tokens_of(7, 20)}
    together = run_ragged(model, sequences, itemsize)
    for row, tokens in sequences.items():
        alone = PagedRunner(model, block_size=8, itemsize=itemsize).step({0: tokens})[0]
        assert np.array_equal(alone, together[row]), row
