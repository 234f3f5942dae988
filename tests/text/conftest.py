"""Small real tokenizers: trained here, written as GGUF files and as model folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.text.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 1234567 o'clock, isn't it? We'll see!",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 22, 333]}  # comment\n\n\n\tprint(f(10))",
    "Größe, façade, naïve, ÉCOLE, Ångström; Привет, мир! Ελληνικά; שלום; مرحبا بالعالم",
    "今日は良い天気ですね。漢字とカタカナ、ひらがな。你好，世界！안녕하세요 세계",
    "emoji 😀👍🏽 family 👨‍👩‍👧 flags 🇩🇪   spaces     and\ttabs\r\nCRLF HTTPServer camelCase SCREAMING_CASE",
    "price: $3.50 <b>bold</b> ~~~ ... --- === !!! e-mail@example.org http://a.b/c?d=e&f=g",
] * 4

CONTROL = ["<|begin|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def smollm(smollm2_path: Path) -> Tokenizer:
    return Tokenizer.load(smollm2_path)


@pytest.fixture(scope="session")
def byte_bpe() -> tuple[list[str], list[str]]:
    """(entries, merges) of a byte-level BPE vocabulary of 600 entries, without added tokens."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    state = json.loads(backend.to_str())["model"]
    entries = sorted(state["vocab"], key=state["vocab"].__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["merges"]]
    return entries, merges


@pytest.fixture(scope="session")
def gguf_byte_bpe(
    byte_bpe: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Writes that vocabulary with the given pre-tokenizer name; control tokens come last, plus `<tool>`."""
    import gguf

    entries, merges = byte_bpe

    def make(pre: str | None, **ids: int) -> Path:
        path = tmp_path_factory.mktemp("gguf") / "model.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_tokenizer_model("gpt2")
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list([*entries, *CONTROL, "<tool>"])
        writer.add_token_types([1] * len(entries) + [3] * len(CONTROL) + [4])
        writer.add_token_merges(merges)
        first = len(entries)
        writer.add_bos_token_id(ids.get("bos", first))
        writer.add_eos_token_id(ids.get("eos", first + 2))
        for key, value in ids.items():
            if key not in ("bos", "eos"):
                writer.add_uint32(f"tokenizer.ggml.{key}", value)
        _finish(writer)
        return path

    return make


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A SentencePiece BPE model with byte fallback, trained on the corpus (spaces kept as they are)."""
    import sentencepiece as sp

    folder = tmp_path_factory.mktemp("sp")
    sp.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS for line in text.split("\n")]),
        model_prefix=str(folder / "m"),
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        num_threads=1,
    )
    return sp.SentencePieceProcessor(model_file=str(folder / "m.model"))


@pytest.fixture(scope="session")
def gguf_sentencepiece(
    sentencepiece_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Writes that model as a converter does: pieces, scores and types; `<|im_end|>` is added at the end."""
    import gguf

    sp = sentencepiece_model

    def make(**flags: int) -> Path:
        path = tmp_path_factory.mktemp("gguf") / "model.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        size = sp.get_piece_size()
        kinds = [
            2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1
            for i in range(size)
        ]
        writer.add_tokenizer_model("llama")
        writer.add_token_list([*(sp.id_to_piece(i) for i in range(size)), "<|im_end|>"])
        writer.add_token_scores([*(sp.get_score(i) for i in range(size)), 0.0])
        writer.add_token_types([*kinds, 3])
        writer.add_bos_token_id(sp.bos_id())
        writer.add_eos_token_id(sp.eos_id())
        writer.add_unk_token_id(sp.unk_id())
        if "add_space_prefix" in flags:
            writer.add_add_space_prefix(bool(flags["add_space_prefix"]))
        if "add_bos" in flags:
            writer.add_add_bos_token(bool(flags["add_bos"]))
        for key, value in flags.items():
            if key.startswith("fim_"):
                writer.add_uint32(f"tokenizer.ggml.{key}_token_id", value)
        _finish(writer)
        return path

    return make


@pytest.fixture(scope="session")
def llama_like(gguf_sentencepiece: Callable[..., Path]) -> Tokenizer:
    return Tokenizer.load(gguf_sentencepiece())


@pytest.fixture(scope="session")
def byte_like(gguf_byte_bpe: Callable[..., Path]) -> Tokenizer:
    return Tokenizer.load(gguf_byte_bpe("llama-bpe"))
