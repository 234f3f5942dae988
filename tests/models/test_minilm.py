"""all-MiniLM-L6-v2, the real model, against transformers on the same files."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.models.encoder.load import inspect_encoder, load_encoder
from penstock.text.text_tokenizer import TextTokenizer

TEXTS = [
    "",
    "a",
    "How do I sort a list in Python?",
    "The stock market fell by three percent on Monday, the largest loss in two years. " * 3,
    "日本語のテキスト und Umlaute: äöü, emoji 🙂 and [SEP] in the middle",
    "word " * 400,
]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_minilm_equals_transformers_within_1e_4(minilm_path, backend):
    """Red if MiniLM's vectors are off by 1e-4 anywhere: contract of the embeddings API."""
    torch = pytest.importorskip("torch", reason="the oracle is transformers")
    transformers = pytest.importorskip("transformers", reason="the oracle")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_path)
    model = transformers.BertModel.from_pretrained(minilm_path).eval()
    info = inspect_encoder(minilm_path)
    assert (info.spec.hidden_size, info.max_tokens, info.modules.pooling) == (384, 256, "mean")
    ours = TextTokenizer.load(minilm_path).texts(TEXTS, info.max_tokens)
    texts = TEXTS if backend == "cpu" else TEXTS[:3]
    encoder = load_encoder(info, backend)
    for text, tokens in zip(texts, ours, strict=False):
        given = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        assert tokens.ids.tolist() == given["input_ids"][0].tolist()
        with torch.no_grad():
            hidden = model(**given).last_hidden_state[0].double().mean(dim=0).numpy()
        vector = encoder.embed(batch(tokens.ids))[0]
        assert np.abs(vector - hidden / np.linalg.norm(hidden)).max() < 1e-4
    assert [tokens.cut for tokens in ours] == [False] * 5 + [True]


def batch(ids: np.ndarray):
    from penstock.kernels.encoder import TextBatch

    return TextBatch(ids, np.array([0, len(ids)], np.int32))
