"""Features: the hidden states that a model hands out are those of transformers, and cost it nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from paged import PagedRunner
from tiny_models import TINY, load_oracle, make_tiny

from penstock.kernels.backend import BackendOptions
from penstock.kernels.reference.norm import rms_norm
from penstock.models.load import inspect_model, load_model

TOKENS = np.random.default_rng(5).integers(0, 256, 45).tolist()


def _load(folder: Path, backend: str, capture: tuple[int, ...]) -> PagedRunner:
    options = BackendOptions(weights="float32")
    return PagedRunner(load_model(inspect_model(folder), backend, options=options, capture=capture))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("arch", list(TINY))
def test_features_are_the_hidden_states_of_transformers(arch: str, backend: str, tmp_path: Path) -> None:
    """Red if a feature is of another layer, or taken before all of its layer joined the residual."""
    folder = make_tiny(arch, tmp_path)
    with torch.no_grad():
        found = load_oracle(folder)(torch.tensor([TOKENS]), output_hidden_states=True).hidden_states
    states = [state[0].numpy() for state in found]
    last = len(states) - 2
    capture = tuple(range(last, -2, -1))  # in any order
    runner = _load(folder, backend, capture)
    at = 0
    for count in (1, 3, 17, 5, 19):  # several forms of the native steps
        runner.step({0: TOKENS[at : at + count]})
        parts = np.split(runner.features[0], len(capture), axis=1)
        for layer, part in zip(capture, parts, strict=True):
            want = states[layer + 1][at : at + count]
            if layer == last:  # transformers norms the last one
                model = runner.model
                part = rms_norm(part, model.final_norm, model.spec.norm_eps)
            np.testing.assert_allclose(part, want, atol=2e-4 * max(1.0, np.abs(want).max()), rtol=0)
        at += count


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_capturing_changes_no_logit(backend: str, tmp_path: Path) -> None:
    """Red if an operation in between changes a sum, or breaks what the native side joins."""
    folder = make_tiny("gemma3", tmp_path)
    work = {"a": TOKENS[:30], "b": TOKENS[7:9], "c": TOKENS[:1]}
    plain, captured = (_load(folder, backend, capture).step(work) for capture in ((), (-1, 0, 2, 5)))
    for row in work:
        assert np.array_equal(plain[row], captured[row])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("weights", ["float32", "file"])
def test_embeddings_are_those_of_the_file(backend: str, weights: str, tmp_path: Path) -> None:
    """Red if they are scaled: a drafter of the model takes them as they are stored."""
    folder = make_tiny("gemma2", tmp_path)
    options = BackendOptions(weights=weights)
    model = load_model(inspect_model(folder), backend, options=options)
    want = load_oracle(folder).get_input_embeddings().weight.detach().numpy()[[3, 0, 319, 3]]
    found = model.embedding(np.array([3, 0, 319, 3], np.int32))
    # The native side holds float32 files as bf16.
    np.testing.assert_allclose(found, want, atol=1e-6, rtol=0 if weights == "float32" else 2**-8)
