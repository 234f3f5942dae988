"""Decoders as embedding models: the final hidden state of a text's last token, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.config import ServerSettings
from penstock.embedding import EmbedCall
from penstock.engine.embedding.last_token import _steps
from penstock.engine.embedding.model import EmbeddingModel, open_embedding_model
from penstock.engine.embedding.service import LocalEmbeddings
from penstock.errors import InvalidRequest
from penstock.kernels.encoder import TextBatch
from penstock.text.tokenizer import Tokenizer
from support.tiny_models import make_tiny

transformers = pytest.importorskip("transformers", reason="the oracle")
import torch

TEXTS = ["the cat sat on the mat, " * 40, "a", "dog ran"]


def last_states(oracle: Any, ids: list[list[int]]) -> np.ndarray:
    """float32[texts, d], of length 1."""
    states = []
    for row in ids:
        with torch.no_grad():
            hidden = oracle(torch.tensor([[int(token) for token in row]])).last_hidden_state[0, -1].numpy()
        states.append(hidden / np.linalg.norm(hidden))
    return np.stack(states)


def embed(model: EmbeddingModel, ids: list[list[int]]) -> np.ndarray:
    """All in one batch."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int32)
    return model.run("embed", TextBatch(np.concatenate(ids).astype(np.int32), offsets))


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma3"])
def test_decoders_embed_by_their_last_token(arch, tmp_path):
    """Red if a vector is not the normed final state of the text's last token: short, in several chunks, with
    sliding windows; exactly in float32, and within what the native forms of weights and KV leave."""
    path = make_tiny(arch, tmp_path / arch)
    oracle = transformers.AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    ids = Tokenizer.load(path).encode_many(TEXTS, True)
    assert max(map(len, ids)) > 512  # more than a step
    wanted = last_states(oracle, ids)
    exact = open_embedding_model(str(path), "reference", 1)
    np.testing.assert_allclose(embed(exact, ids), wanted, atol=2e-6)
    native = embed(open_embedding_model(str(path), "cpu", 1), ids)
    assert (native * wanted).sum(axis=1).min() > 0.9995
    with pytest.raises(InvalidRequest, match="no classification head"):
        exact.run("classify", TextBatch(np.array([1], np.int32), np.array([0, 1], np.int32)))


def test_smollm2_equals_transformers(smollm2_path: Path):
    """Red if the real model's vectors are off: by 1e-5 in float32, by a cosine of 0.998 as it is served."""
    oracle = transformers.AutoModel.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
    ).eval()
    ids = Tokenizer.load(smollm2_path).encode_many(["The capital of France is Paris.", "a", "日本語"], True)
    wanted = last_states(oracle, ids)
    exact = embed(open_embedding_model(str(smollm2_path), "reference", 1), ids)
    np.testing.assert_allclose(exact, wanted, atol=1e-5)
    native = embed(open_embedding_model(str(smollm2_path), "cpu", 1), ids)
    assert (native * wanted).sum(axis=1).min() > 0.998


async def test_the_served_decoder_embeds_beside_its_engine(tmp_path):
    """Red if a model that generates can't embed under its name, whatever path it was started with."""
    path = make_tiny("llama", tmp_path / "files")
    settings = ServerSettings(embedding_models=("",), embedding_threads=1)
    service = LocalEmbeddings(settings, generating=lambda: {"chat": str(path)})
    try:
        assert [card.id for card in service.models()] == ["chat"] and service.loaded() == []
        answer = await service.embed(EmbedCall(model="chat", inputs=("a", "dog ran")))
        assert answer.vectors.shape == (2, 48)
        np.testing.assert_allclose(np.linalg.norm(answer.vectors, axis=1), 1, rtol=1e-5)
        assert [model.name for model in service.loaded()] == ["chat"]
    finally:
        await service.close()


def test_long_texts_go_through_in_chunks():
    """Red if a step has more tokens than its budget, or a text's chunks are out of order or incomplete."""
    assert _steps(np.array([3, 5, 1, 4]), 4) == [
        [(0, 0, 3), (1, 0, 1)],
        [(1, 1, 5)],
        [(2, 0, 1), (3, 0, 3)],
        [(3, 3, 4)],
    ]
    assert _steps(np.array([4]), 4) == [[(0, 0, 4)]]
