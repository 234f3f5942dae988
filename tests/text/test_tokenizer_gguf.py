"""Tokenizers from GGUF metadata, against transformers, SentencePiece and known cuts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.errors import InvalidRequest, ModelRefused
from penstock.text import pretokenizers
from penstock.text.tokenizer import MAX_TEXT_CHARS, Tokenizer

# Texts that exercise the cuts: letters of several scripts and cases, digits, marks, white space.
TEXT = st.text(
    st.one_of(
        st.sampled_from("aB cD'stTvE1234567890 \t\n\r.,!?$<>|_-/\\\"éÉßøЖж中カ한ا😀👍\u0301\u200d\ufeff½²Ⅷ٣"),
        st.characters(codec="utf-8"),
    ),
    max_size=60,
)


@pytest.fixture(scope="session")
def smollm_reference(smollm2_path: Path) -> Any:
    """transformers' reading of the file, with the pre-tokenizer of the model's own tokenizer.json, which
    transformers does not know by its GGUF name (it differs for digits other than 0-9)."""
    from tokenizers import pre_tokenizers as pre
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(str(smollm2_path.parent), gguf_file=smollm2_path.name)
    own = [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
    reference.backend_tokenizer.pre_tokenizer = pre.Sequence(own)
    return reference


@given(text=TEXT)
@example(text="It's 12345 o'clock,  isn't it?\n\n  ½ Ⅷ ٣")
@example(text="<|im_start|>user\nHi<|im_end|>\n")
@example(text="")
def test_smollm2_encodes_as_transformers(smollm: Tokenizer, smollm_reference: Any, text: str) -> None:
    """Red if vocabulary, merges, pre-tokenizer or control tokens of the default model are misread."""
    assert smollm.encode(text) == smollm_reference.encode(text, add_special_tokens=False)


@given(ids=st.lists(st.integers(0, 49151), max_size=30), skip=st.booleans())
def test_smollm2_decodes_as_transformers(
    smollm: Tokenizer, smollm_reference: Any, ids: list[int], skip: bool
) -> None:
    """Red if decoding loses bytes, special tokens, or invents U+FFFD where transformers does not."""
    expected = smollm_reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    assert smollm.decode(ids, skip_special=skip) == expected


def test_smollm2_declares_what_the_model_card_says(smollm: Tokenizer) -> None:
    """Red if a role's id is lost: generation would not stop, or a BOS would be put where none belongs."""
    assert (smollm.vocab_size, smollm.bos_id, smollm.add_bos) == (49152, 1, False)
    assert smollm.eos_ids == (2, 0)  # <|im_end|> declared, <|endoftext|> known
    assert smollm.special_ids == frozenset(range(17))
    assert smollm.chat_template is not None and "<|im_start|>" in smollm.chat_template


@pytest.mark.parametrize(
    "pre", ["llama-bpe", "qwen2", "gpt-4o", "tekken", "gpt-2", "default", "qwen35", None]
)
def test_pretokenizers_cut_as_transformers(gguf_byte_bpe: Callable[..., Path], pre: str | None) -> None:
    """Red if a regular expression of the table differs from the one transformers has for the same name."""
    from transformers import AutoTokenizer

    path = gguf_byte_bpe(pre)
    ours = Tokenizer.load(path)
    reference = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    if pre in ("llama-bpe", "tekken"):  # transformers leaves out that whole words skip the merges
        reference.backend_tokenizer.model.ignore_merges = True

    @given(text=TEXT)
    @example(text="It's WE'LL HTTPServer's camelCase 1234567 +++\n\n\t x  y")
    def check(text: str) -> None:
        if "<|endoftext|>" not in text:  # which transformers adds to every GPT-2-like vocabulary
            assert ours.encode(text) == reference.encode(text, add_special_tokens=False)

    check()


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("smollm", "a 123's\n\n b", ["a", " ", "1", "2", "3", "'s", "\n\n", " b"]),
        ("falcon", "a 12345!b", ["a", " ", "123", "45", "!", "b"]),
        ("deepseek-v3", "x 12345漢字かな a.b ((", ["x", " ", "123", "45", "漢字かな", " a", ".b", " (("]),
        ("deepseek-llm", "a\nb 漢字 12", ["a", "\n", "b", " ", "漢字", " ", "1", "2"]),
        ("deepseek-coder", "a\n b! 12", ["a", "\n", " b", "!", " ", "1", "2"]),
        ("seed-coder", "a!\nb12", ["a", "!", "\n", "b", "1", "2"]),
        ("bailingmoe", "it's 12\n\nx", ["it", "'s", " ", "1", "2", "\n\n", "x"]),
        ("bloom", "a, b 12.", ["a", ",", " b", " 12", "."]),
        ("viking", "b 12", ["b", " ", "1", "2"]),
        ("glm4", "IT'S 12345", ["IT", "'S", " ", "123", "45"]),
    ],
)
def test_known_cuts(pre: str, text: str, words: list[str]) -> None:
    """Red if a recipe of the table stops cutting as the models of that name do."""
    from penstock.text.pieces import byte_level

    pieces = pretokenizers.build(pre).pre_tokenize_str(text)
    assert [byte_level(piece).decode() for piece, _ in pieces] == words


@pytest.mark.parametrize("pre", pretokenizers.KNOWN)
def test_every_recipe_keeps_the_text(gguf_byte_bpe: Callable[..., Path], pre: str) -> None:
    """Red if some pre-tokenizer drops or changes characters: the prompt would not be what was sent."""
    tokenizer = Tokenizer.load(gguf_byte_bpe(pre))

    @given(text=TEXT)
    def check(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text

    check()


def test_unknown_kinds_are_refused_by_name(gguf_byte_bpe: Callable[..., Path]) -> None:
    """Red if an unknown pre-tokenizer or model is silently read as another one."""
    with pytest.raises(ModelRefused, match="'brand-new'"):
        Tokenizer.load(gguf_byte_bpe("brand-new"))
    from penstock.text.gguf_vocabulary import from_metadata

    with pytest.raises(ModelRefused, match="'rwkv'"):
        from_metadata({"tokenizer.ggml.model": "rwkv"}, "x")
    with pytest.raises(ModelRefused, match="4096"):
        from_metadata(
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.tokens": ["a"],
                "tokenizer.ggml.eos_token_id": 4096,
            },
            "x",
        )


# ------------------------------------------------------------------------ SentencePiece


@given(text=TEXT)
@example(text="  two leading spaces")
@example(text=" one")
@example(text="unseen: ☃ \U0001f9ff")
def test_sentencepiece_encodes_as_the_original(
    llama_like: Tokenizer, sentencepiece_model: Any, text: str
) -> None:
    """Red if score merges, byte fallback or the space before the text differ from SentencePiece's."""
    if "\u2581" in text or "\0" in text:  # the mark itself and NUL are SentencePiece's own characters
        return
    assert llama_like.encode(text) == sentencepiece_model.encode(text)


@given(text=TEXT)
def test_sentencepiece_round_trip(llama_like: Tokenizer, text: str) -> None:
    """Red if the space before the text stays after decoding, or a byte is lost."""
    if "\u2581" in text:
        return
    assert llama_like.decode(llama_like.encode(text, parse_special=False)) == text


def test_sentencepiece_space_flag_and_bos(
    gguf_sentencepiece: Callable[..., Path], sentencepiece_model: Any
) -> None:
    """Red if add_space_prefix or add_bos_token of the file are ignored."""
    plain = Tokenizer.load(gguf_sentencepiece(add_space_prefix=False, add_bos=False))
    assert plain.decode(plain.encode("fox")) == "fox"
    assert plain.token_bytes(plain.encode("fox")[0])[:1] == b"f"
    assert not plain.add_bos and plain.encode("fox", add_special=True) == plain.encode("fox")
    usual = Tokenizer.load(gguf_sentencepiece())
    assert usual.add_bos
    assert usual.encode("fox", add_special=True) == [usual.bos_id, *sentencepiece_model.encode("fox")]
    assert usual.digest != plain.digest


def test_continuation_keeps_the_leading_space(llama_like: Tokenizer) -> None:
    """Red if generated text that goes on after a prompt loses the space before its first word."""
    ids = llama_like.encode("fox")
    assert llama_like.decode(ids) == "fox"
    assert llama_like.decode(ids, continuation=True) == " fox"
    assert llama_like.token_bytes(llama_like.encode_continuation("fox")[0])[:1] == b"f"


def test_control_tokens_as_text(llama_like: Tokenizer, byte_like: Tokenizer) -> None:
    """Red if parse_special=False lets a user's text inject control tokens."""
    for tokenizer in (llama_like, byte_like):
        end = tokenizer.token_id("<|im_end|>")
        assert end in tokenizer.encode("a<|im_end|>")
        literal = tokenizer.encode("a<|im_end|>", parse_special=False)
        assert end not in literal
        assert tokenizer.decode(literal) == "a<|im_end|>"


# ------------------------------------------------------------------------ the rest of the interface


@given(text=TEXT)
def test_token_bytes_join_to_the_text(byte_like: Tokenizer, text: str) -> None:
    """Red if token_bytes is not exact: logprobs and structured output build on it."""
    ids = byte_like.encode(text)
    assert b"".join(byte_like.token_bytes(i) for i in ids) == text.encode()


def test_token_text_shows_broken_characters_as_bytes(smollm: Tokenizer) -> None:
    """Red if part of a character is shown as U+FFFD: clients can't put the bytes together again."""
    shown = [smollm.token_text(i) for i in smollm.encode("😀")]
    assert all("\ufffd" not in text for text in shown)
    assert shown[0].startswith("bytes:\\x")


@pytest.mark.parametrize("bad", [-1, 49152, 2**40])
def test_ids_outside_the_vocabulary_are_refused(smollm: Tokenizer, bad: int) -> None:
    """Red if a wrong id crashes, or is silently dropped from the text."""
    for call in (
        lambda: smollm.decode([5, bad]),
        lambda: smollm.token_bytes(bad),
        lambda: smollm.token_text(bad),
    ):
        with pytest.raises(InvalidRequest, match=str(bad)):
            call()


def test_lone_surrogates_are_refused(smollm: Tokenizer) -> None:
    """Red if a half of a UTF-16 pair in a JSON string ends as an internal error."""
    with pytest.raises(InvalidRequest, match=r"U\+D83D at character 3"):
        smollm.encode("abc\ud83d")


def test_a_text_beyond_all_limits_is_refused(smollm: Tokenizer) -> None:
    """Red if a body of megabytes reaches the regular-expression engine, which panics on it."""
    with pytest.raises(InvalidRequest, match=str(MAX_TEXT_CHARS)):
        smollm.encode("A" * (MAX_TEXT_CHARS + 1))


@pytest.mark.parametrize("pre", ["tekken", "gpt-4o", "llama-bpe"])
def test_the_longest_word_taken_does_not_panic(gguf_byte_bpe: Callable[..., Path], pre: str) -> None:
    """Red if MAX_TEXT_CHARS is raised above what the regular-expression engine can search."""
    tokenizer = Tokenizer.load(gguf_byte_bpe(pre))
    text = "A" * MAX_TEXT_CHARS
    assert sum(len(tokenizer.token_bytes(i)) for i in tokenizer.encode(text)) == MAX_TEXT_CHARS


def test_encode_many_is_encode_of_each(smollm: Tokenizer) -> None:
    """Red if batching mixes texts up or adds padding."""
    texts = ["", "a", "Hello, world! " * 20, "😀"]
    assert smollm.encode_many(texts) == [smollm.encode(text) for text in texts]


def test_digest_is_the_same_in_another_process(smollm: Tokenizer, smollm2_path: Path) -> None:
    """Red if the digest depends on hash seeds or order of sets: cached KV would never be found again."""
    code = (
        "import sys, pathlib\nfrom penstock.text.tokenizer import Tokenizer\n"
        "print(Tokenizer.load(pathlib.Path(sys.argv[1])).digest)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(smollm2_path)],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == smollm.digest
