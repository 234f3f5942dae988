"""Bad words as token sequences."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.errors import InvalidRequest
from penstock.text.tokenizer import Tokenizer, check_text


def bad_word_ids(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The token sequences that spell `words`, each once: inside a text and after a space.

    A word has other tokens after a space than without one, so both spellings are banned (as transformers'
    `bad_words_ids` asks of its callers and vLLM does by itself). Only the canonical tokens of a word
    are banned: a model may still spell it in pieces. Raises InvalidRequest for a word without any
    character but white space in front.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        check_text(word)
        bare = word.lstrip()
        if not bare:
            raise InvalidRequest(f"bad_words: {word!r} has no character but white space", param="bad_words")
        for text in (bare, " " + bare):
            found[tuple(tokenizer.encode_continuation(text))] = None
    return tuple(found)
