"""Encoders against transformers on the same weights, on every backend; texts alone and together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import ModelRefused
from penstock.kernels.backend import backend_names
from penstock.kernels.encoder import TextBatch
from penstock.models.encoder.load import inspect_encoder, is_encoder, load_encoder
from penstock.models.load import inspect_model
from support.tiny_encoders import CROSS_ENCODERS, EMBEDDERS, TINY, make_tiny_encoder
from support.tiny_models import make_tiny

torch = pytest.importorskip("torch", reason="the oracle is transformers")

LENGTHS = (1, 2, 15, 16, 17, 31, 32, 3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Any:
    """variant -> (folder, transformers' model), made once."""
    made: dict[str, tuple[Path, Any]] = {}

    def make(variant: str) -> tuple[Path, Any]:
        if variant not in made:
            folder = tmp_path_factory.mktemp(variant)
            made[variant] = (folder, make_tiny_encoder(variant, folder))
        return made[variant]

    return make


def batch_of(texts: list[np.ndarray], kinds: list[np.ndarray] | None = None) -> TextBatch:
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int32)
    joined = None if kinds is None else np.concatenate(kinds).astype(np.int32)
    return TextBatch(np.concatenate(texts).astype(np.int32), offsets, joined)


def random_texts(vocab_size: int, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[np.ndarray]:
    """No padding token: transformers' RoBERTa would count positions around it."""
    random = np.random.default_rng(seed)
    return [random.integers(2, vocab_size, length).astype(np.int32) for length in lengths]


def oracle_hidden(model: Any, text: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(text[None].astype(np.int64))).last_hidden_state[0].numpy()


def expected(hidden: np.ndarray, pooling: str, normalize: bool) -> np.ndarray:
    """In double precision, as sentence-transformers defines them."""
    hidden = hidden.astype(np.float64)
    vector = {"cls": hidden[0], "mean": hidden.mean(axis=0), "lasttoken": hidden[-1]}[pooling]
    return vector / np.linalg.norm(vector) if normalize else vector


@pytest.mark.parametrize("backend", backend_names())
@pytest.mark.parametrize("variant", EMBEDDERS)
def test_embeddings_equal_transformers(tiny, variant, backend):
    """Red if an activation, a pooling, an odd width or length, or RoBERTa's positions are off."""
    folder, model = tiny(variant)
    pooling, normalize = TINY[variant][2] or ("mean", False)
    encoder = load_encoder(inspect_encoder(folder), backend)
    texts = random_texts(encoder.info.spec.vocab_size)
    found = encoder.embed(batch_of(texts))
    for text, vector in zip(texts, found, strict=True):
        wanted = expected(oracle_hidden(model, text), pooling, normalize)
        np.testing.assert_allclose(vector, wanted, atol=2e-5 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("backend", backend_names())
@pytest.mark.parametrize("variant", [*CROSS_ENCODERS, "classes"])
def test_classification_heads_equal_transformers(tiny, variant, backend):
    """Red if a cross-encoder's pooler, head or token types are left out or mixed up."""
    folder, model = tiny(variant)
    encoder = load_encoder(inspect_encoder(folder), backend)
    texts = random_texts(encoder.info.spec.vocab_size)
    two = encoder.info.spec.token_types > 1
    kinds = [np.arange(len(text)) >= len(text) // 2 for text in texts] if two else None
    found = encoder.classify(batch_of(texts, kinds))
    for index, text in enumerate(texts):
        types = None if kinds is None else torch.tensor(kinds[index][None].astype(np.int64))
        with torch.no_grad():
            wanted = model(torch.tensor(text[None].astype(np.int64)), token_type_ids=types).logits[0].numpy()
        np.testing.assert_allclose(found[index], wanted, atol=5e-5)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_text_has_the_same_bits_alone_and_in_any_batch(tiny, threads):
    """Red if grouping, batch size or the number of threads change a text's vector."""
    folder, _ = tiny("bert-mean")
    encoder = load_encoder(inspect_encoder(folder), "cpu", threads)
    texts = random_texts(encoder.info.spec.vocab_size, LENGTHS * 12)
    together = encoder.embed(batch_of(texts))
    backwards = encoder.embed(batch_of(texts[::-1]))[::-1]
    alone = np.stack([encoder.embed(batch_of([text]))[0] for text in texts])
    assert np.array_equal(together, alone)
    assert np.array_equal(together, backwards)


def test_the_longest_text_has_the_last_position(tiny):
    """Red if the table of positions is read past its end, or a text of full length is refused."""
    for variant, longest in (("bert-bare", 64), ("roberta", 62)):
        folder, model = tiny(variant)
        info = inspect_encoder(folder)
        assert info.spec.max_tokens == longest
        encoder = load_encoder(info, "cpu")
        (text,) = random_texts(info.spec.vocab_size, (longest,))
        hidden = encoder.network.hidden(batch_of([text]))
        np.testing.assert_allclose(hidden, oracle_hidden(model, text), atol=5e-5)
        with pytest.raises(ValueError, match="positions"):
            encoder.network.hidden(batch_of(random_texts(info.spec.vocab_size, (longest + 1,))))


def test_native_encoder_refuses_ids_beyond_its_tables(tiny):
    """Red if an id or a token type outside a table reads memory that is not the table's."""
    encoder = load_encoder(inspect_encoder(tiny("bert-mean")[0]), "cpu")
    size = encoder.info.spec.vocab_size
    for tokens, kinds in (([size], None), ([-1], None), ([5], [2]), ([5], [-1])):
        with pytest.raises(ValueError, match=r"outside the vocabulary|token type"):
            encoder.network.hidden(
                TextBatch(
                    np.array(tokens, np.int32),
                    np.array([0, 1], np.int32),
                    None if kinds is None else np.array(kinds, np.int32),
                )
            )


def test_max_tokens_is_what_the_model_was_made_for(tiny):
    """Red if sentence-transformers' max_seq_length is ignored: longer texts were never trained."""
    assert inspect_encoder(tiny("bert-mean")[0]).max_tokens == 32
    assert inspect_encoder(tiny("bert-bare")[0]).max_tokens == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "relative_key.*not supported"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish'.*gelu"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 7}, "7 attention heads can't share 40"),
        ({"intermediate_size": 53}, r"'encoder.layer.0.intermediate.dense.weight' gives shape \(52, 40\)"),
        ({"num_hidden_layers": 2}, "has no place"),
    ],
)
def test_what_is_not_served_is_refused_by_name(tiny, tmp_path, change, message):
    """Red if a checkpoint with a feature that is not computed loads and gives wrong vectors."""
    folder, _ = tiny("bert-mean")
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelRefused, match=message):
        inspect_encoder(tmp_path)


def test_poolings_and_steps_that_are_not_served_are_refused(tiny, tmp_path):
    """Red if max pooling or a Dense step is dropped in silence."""
    folder, _ = tiny("bert-mean")
    for name in ("model.safetensors", "config.json", "modules.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "1_Pooling").mkdir()
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ModelRefused, match=r"pooling_mode_max_tokens.*not served"):
        inspect_encoder(tmp_path)
    pooling.write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}')
    with pytest.raises(ModelRefused, match="not served"):
        inspect_encoder(tmp_path)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "2"}]')
    with pytest.raises(ModelRefused, match="'Dense' is not served"):
        inspect_encoder(tmp_path)


def test_encoders_and_decoders_are_told_apart(tiny, tmp_path):
    """Red if an encoder is served as a generator, or the refusal does not say how to serve it."""
    folder, _ = tiny("bert-mean")
    assert is_encoder(folder)
    with pytest.raises(ModelRefused, match="--embedding-models"):
        inspect_model(folder)
    make_tiny("llama", tmp_path)
    assert not is_encoder(tmp_path)
