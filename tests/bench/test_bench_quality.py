"""The quality measurement: its figures against plain formulas, its text, models off on purpose."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from paged import PagedRunner
from tiny_models import load_oracle, make_tiny, oracle_logits

from penstock.bench import quality
from penstock.bench.passages import MIN_CHARS, passages
from penstock.errors import ConfigError
from penstock.kernels.reference import ReferenceOps
from penstock.models.forward import Model
from penstock.models.load import inspect_model, load_model
from penstock.models.teacher import TeacherForcing, in_batches


class Perturbed(ReferenceOps):
    """The reference with logits off by a known pattern."""

    def __init__(self, size: float) -> None:
        self.size = size

    def logits(self, x: Any, weight: Any, scale: float, softcap: float | None) -> Any:  # type: ignore[override]
        exact = ReferenceOps.logits(x, weight, scale, softcap)
        return exact + self.size * np.cos(np.arange(exact.shape[1], dtype=np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("quality") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    loaded = load_model(inspect_model(folder), "reference")
    assert isinstance(loaded, Model)
    return loaded


def perturbed(folder: Path, size: float) -> Model:
    loaded = load_model(inspect_model(folder), "reference")
    assert isinstance(loaded, Model)
    loaded.ops = Perturbed(size)
    return loaded


def sequences(count: int = 9, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, rng.integers(2, 129)).astype(np.int32) for _ in range(count)]


def test_equal_models_differ_by_nothing(model: Model) -> None:
    """Red if the measurement itself adds divergence, or counts positions that predict nothing."""
    texts = sequences()
    found = quality.compare(model, model, texts)
    assert (found.kl_mean, found.kl_max, found.top1_agreement) == (0.0, 0.0, 1.0)
    assert found.perplexity == found.reference_perplexity
    assert found.positions == sum(len(text) - 1 for text in texts)


def test_figures_of_a_perturbed_model(model: Model, folder: Path) -> None:
    """Red if KL's direction, the share of agreement, a quantile or perplexity is computed otherwise than
    from transformers' logits with the plain formulas."""
    texts, size = sequences(5, seed=1), 1.5
    found = quality.compare(model, perturbed(folder, size), texts)
    oracle = load_oracle(folder)
    kl, agreed, nats = [], [], np.zeros(2)
    for text in texts:
        exact = oracle_logits(oracle, text.tolist()).astype(np.float64)[:-1]
        off = exact + size * np.cos(np.arange(exact.shape[1]))
        p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (exact, off))
        kl += list((p * np.log(p / q)).sum(axis=1))
        agreed += list(p.argmax(axis=1) == q.argmax(axis=1))
        each = np.arange(len(text) - 1)
        nats -= [np.log(p[each, text[1:]]).sum(), np.log(q[each, text[1:]]).sum()]
    assert found.kl_mean == pytest.approx(np.mean(kl), rel=1e-3)
    assert found.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-3)
    assert found.kl_max == pytest.approx(max(kl), rel=1e-3)
    assert 0.1 < found.top1_agreement < 0.9
    assert found.top1_agreement == pytest.approx(np.mean(agreed), abs=2 / len(agreed))
    assert found.reference_perplexity == pytest.approx(np.exp(nats[0] / len(kl)), rel=1e-4)
    assert found.perplexity == pytest.approx(np.exp(nats[1] / len(kl)), rel=1e-4)


def test_batches_change_nothing(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a passage's figures depend on which others share its batch, or rows are cut wrongly."""
    texts, other = sequences(12, seed=2), perturbed(folder, 0.3)
    whole = quality.compare(model, other, texts)
    monkeypatch.setattr(quality, "BATCH_TOKENS", 130)
    monkeypatch.setattr(quality, "LOGIT_ROWS", 7)
    cut = quality.compare(model, other, texts)
    assert cut.positions == whole.positions
    assert cut.kl_mean == pytest.approx(whole.kl_mean, rel=1e-4)
    assert cut.perplexity == pytest.approx(whole.perplexity, rel=1e-5)


def test_other_vocabularies_are_refused(model: Model, tmp_path: Path) -> None:
    """Red if distributions over different vocabularies are compared."""
    other = load_model(inspect_model(make_tiny("llama", tmp_path, vocab_size=321)), "reference")
    with pytest.raises(ConfigError, match="vocabularies of 320 and 321"):
        quality.compare(model, other, sequences(1))


@pytest.mark.parametrize("arch", ["gemma3", "gpt_oss"])
def test_teacher_forcing_over_groups_and_windows(arch: str, tmp_path: Path) -> None:
    """Red if groups share blocks, or a row's table is wrong: another row's keys would be attended."""
    loaded = load_model(inspect_model(make_tiny(arch, tmp_path)), "reference")
    assert isinstance(loaded, Model)
    texts = sequences(4, seed=3)
    runner = TeacherForcing(loaded, sum(map(len, texts)), len(texts))
    for _ in range(2):  # the second time over the first one's keys
        logits = loaded.logits(runner.hidden(texts))
        first = 0
        for text in texts:
            alone = PagedRunner(loaded, block_size=4).step({0: text.tolist()})[0]
            assert np.abs(logits[first : first + len(text)] - alone).max() < 1e-4
            first += len(text)


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 60))
def test_in_batches_keeps_order_and_limit(lengths: list[int], limit: int) -> None:
    """Red if a sequence is lost, repeated or reordered, or a batch outgrows the pool needlessly."""
    texts = [np.full(n, i) for i, n in enumerate(lengths)]
    batches = list(in_batches(texts, limit))
    assert [int(text[0]) for batch in batches for text in batch] == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(map(len, batch)) <= limit for batch in batches)
    for one, after in itertools.pairwise(batches):
        assert sum(map(len, one)) + len(after[0]) > limit


@given(arrays(np.float32, (3, 11), elements=st.floats(-300, 300, width=32)))
def test_log_softmax_is_stable(logits: np.ndarray) -> None:
    """Red if large logits overflow, or probabilities do not sum to 1."""
    found = quality.log_softmax(logits)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(
        found[:, 1] - found[:, 0], logits[:, 1].astype(float) - logits[:, 0], atol=1e-9
    )


def test_passages_are_fixed_distinct_and_long_enough() -> None:
    """Red if the text depends on the run, repeats itself, or holds fragments."""
    found = passages(200)
    assert found == passages(200)
    assert len(set(found)) == 200
    assert min(map(len, found)) >= MIN_CHARS
    with pytest.raises(ConfigError, match="is outside 1 to"):
        passages(10**6)
    with pytest.raises(ConfigError, match="0 is outside"):
        passages(0)


def test_read_passages(folder: Path) -> None:
    """Red if passages are not cut, or the digest does not tell texts apart."""
    text, found = quality.read_passages(folder, 20)
    assert text.tokens == sum(map(len, found))
    assert max(map(len, found)) == quality.PASSAGE_TOKENS
    assert text.digest != quality.read_passages(folder, 21)[0].digest
    assert text == quality.read_passages(folder, 20)[0]
