"""The real model (SmolLM2-135M-Instruct, GGUF Q4_1) against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from paged import PagedRunner

from oracle import load_greedy
from penstock.models.forward import Model
from penstock.models.load import inspect_model, load_model


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Model:
    return load_model(inspect_model(smollm2_path), "reference")


def test_what_the_headers_say(smollm2_path: Path) -> None:
    """Red if the embedded default model's size, context or storage is reported wrongly."""
    info = inspect_model(smollm2_path)
    assert (info.architecture, info.format, info.storage) == ("llama", "gguf", "Q4_1")
    assert (info.parameters, info.context) == (134_515_008, 8192)
    assert info.weight_bytes("reference") == 4 * 134_515_008


def test_greedy_tokens_of_short_prompts(model: Model) -> None:
    """Red if the model, run on ragged batches of real prompts, leaves transformers' tokens."""
    chosen = [(p, out) for p, out, _ in load_greedy() if len(p) <= 48][:12]
    runner = PagedRunner(model, block_size=16, num_blocks=200)
    steps: list[dict[int, list[int]]] = [{i: list(map(int, p)) for i, (p, _) in enumerate(chosen)}]
    got: dict[int, list[int]] = {i: [] for i in range(len(chosen))}
    for _ in range(32):
        logits = runner.step(steps[-1])
        for i in got:
            got[i].append(int(logits[i][-1].argmax()))
        steps.append({i: got[i][-1:] for i in got})
    assert got == {i: [int(t) for t in out[:32]] for i, (_, out) in enumerate(chosen)}


@pytest.mark.slow
def test_logits_equal_those_of_transformers(model: Model, smollm2_path: Path) -> None:
    """Red if a logit of the real model is off by more than 1e-3, short prompt or long, whole or cut."""
    import torch
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    prompts = [p for p, _, _ in load_greedy()]
    for prompt in (min(prompts, key=len), *(p for p in prompts if len(p) in (63, 257, 714))):
        with torch.no_grad():
            expected = oracle(torch.tensor(prompt[None].astype(np.int64))).logits[0].numpy()
        tokens, half = [int(t) for t in prompt], len(prompt) // 2
        runner = PagedRunner(model, block_size=16, num_blocks=120)
        pieces = [tokens[:half], tokens[half:]] if half else [tokens]
        got = np.concatenate([runner.step({0: piece})[0] for piece in pieces])
        assert np.abs(got - expected).max() < 1e-3
