"""Incremental detokenization against decoding everything at once."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.text.detokenizer import Detokenizer
from penstock.text.tokenizer import Tokenizer

TEXT = st.text(
    st.one_of(st.sampled_from("aé中😀👍\u200d\ufffd <|>"), st.characters(codec="utf-8")), max_size=40
)

# A decoder with byte fallback shows each of up to three bytes of an unfinished character by itself.
UNFINISHED = ("", "\ufffd", "\ufffd" * 2, "\ufffd" * 3)


def _check(tokenizer: Tokenizer, ids: list[int], skip: bool, continuation: bool) -> None:
    detokenizer = Detokenizer(tokenizer, skip, continuation)
    text = ""
    for count, token in enumerate(ids, 1):
        text += detokenizer.feed(token)
        whole = tokenizer.decode(ids[:count], skip_special=skip, continuation=continuation)
        # What is out is right, and only an unfinished character may be missing.
        assert whole.startswith(text)
        assert whole[len(text) :] in UNFINISHED
    assert text + detokenizer.flush() == tokenizer.decode(ids, skip_special=skip, continuation=continuation)


@given(ids=st.lists(st.integers(0, 49151), max_size=40), skip=st.booleans())
def test_any_tokens_of_the_real_model(smollm: Tokenizer, ids: list[int], skip: bool) -> None:
    """Red if at some split a text differs from decoding all tokens, for byte-level vocabularies."""
    _check(smollm, ids, skip, False)


@given(data=st.data(), skip=st.booleans(), continuation=st.booleans())
def test_any_tokens_with_byte_fallback(
    llama_like: Tokenizer, data: Any, skip: bool, continuation: bool
) -> None:
    """Red if byte tokens in any order lose bytes, or the space before a text is dropped twice or never."""
    byte_tokens = st.integers(3, 258)
    ids = data.draw(st.lists(st.one_of(byte_tokens, st.integers(0, llama_like.vocab_size - 1)), max_size=40))
    _check(llama_like, ids, skip, continuation)


def test_only_the_first_space_of_a_whole_text_goes(llama_like: Tokenizer) -> None:
    """Red if words of a decoded text run together, or a text's own leading space is lost."""
    for text in ("fox fox", " fox", "fox"):
        _check(llama_like, llama_like.encode(text), skip=True, continuation=False)
        detokenizer = Detokenizer(llama_like, skip_special=True)
        assert "".join(detokenizer.feed(i) for i in llama_like.encode(text)) == text


@given(text=TEXT)
def test_text_never_shows_half_a_character(byte_like: Tokenizer, llama_like: Tokenizer, text: str) -> None:
    """Red if a U+FFFD is given out for a character that a later token completes (trap: split emoji)."""
    for tokenizer in (byte_like, llama_like):
        detokenizer = Detokenizer(tokenizer, skip_special=False, continuation=True)
        parts = [detokenizer.feed(i) for i in tokenizer.encode(text, parse_special=False)]
        parts.append(detokenizer.flush())
        assert "".join(parts).count("\ufffd") == text.count("\ufffd")


@given(text=TEXT)
def test_equals_the_librarys_own_decoding_of_valid_text(llama_like: Tokenizer, text: str) -> None:
    """Red if our bytes disagree with the `tokenizers` decoder where that is well defined."""
    if "\u2581" in text:
        return
    ids = llama_like.encode(text, parse_special=False)
    reference = llama_like._vocabulary.backend.decode(ids, skip_special_tokens=False)
    assert llama_like.decode(ids, skip_special=False, continuation=True) == reference


@pytest.mark.parametrize("byte", [0x80, 0xF0, 0xE2, 0x20])
def test_state_is_bounded(llama_like: Tokenizer, byte: int) -> None:
    """Red if a stream without white space, or of invalid bytes only, piles up in the detokenizer."""
    token = next(i for i in range(3, 259) if llama_like.token_bytes(i) == bytes([byte]))
    detokenizer = Detokenizer(llama_like, skip_special=True, continuation=True)
    given_out = sum(len(detokenizer.feed(token)) for _ in range(100_000))
    assert given_out >= 100_000 - 1
    pending, _ = detokenizer._utf8.getstate()
    assert len(pending) <= 3 and sys.getsizeof(pending) < 100


def test_padding_rows_have_no_text(smollm: Tokenizer) -> None:
    """Red if an id that only the model's padded head knows ends the stream with an error."""
    detokenizer = Detokenizer(smollm, skip_special=True)
    assert detokenizer.feed(smollm.vocab_size + 7) == ""
