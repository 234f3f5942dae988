"""The real model in one continuous batch against transformers, token for token."""

from __future__ import annotations

import pytest
from token_engine import TokenEngine

from oracle import load_greedy
from penstock.decoding.params import TokenSampling


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_greedy_tokens_equal_transformers_for_100_prompts_in_one_batch(smollm2_path, backend):
    """Red if prefix cache, chunked prefill, continuous batching or depth 1 change a single token, or if the
    native backend's exact path rounds anything."""
    cases = load_greedy()
    settings = {"async_depth": 1, "prefix_cache": True, "token_budget": 512, "max_running": 64}
    settings |= {"backend": backend, "weights": "float32"}
    with TokenEngine(smollm2_path, **settings) as engine:
        for i, (prompt, _, _) in enumerate(cases):
            engine.submit(str(i), prompt, TokenSampling(max_tokens=64, seed=0, temperature=0.0))
        engine.run()
        answers = engine.answers
        assert engine.core.progress().cached_tokens > 0, "the prompts share prefixes: nothing was reused"
    wrong = [i for i, (_, output, _) in enumerate(cases) if answers[str(i)].tokens != output.tolist()]
    assert not wrong, f"prompts {wrong} differ from transformers"
    assert len(cases) == 100
