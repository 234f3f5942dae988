"""A vocabulary for grammars (every byte, some longer tokens), and random answers that masks let through."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from penstock.decoding.grammar.backend import GrammarBackend, Matcher, Vocabulary, mask_words
from penstock.decoding.grammar.spec import GrammarSpec

EOS = 0
# Every byte, and some longer tokens that cross the borders of JSON's own.
PIECES = [
    b"<eos>",
    *(bytes([byte]) for byte in range(256)),
    b'{"', b'":', b'",', b'": "', b'"}', b"true", b"false", b"null", b"}, ", b"12",
    b"  ", b"\n  ", b"ab", b"name",
]  # fmt: skip
SIZE = len(PIECES) + 5  # of the model's head
CLOSING = (b"<eos>", b'"', b"}", b"]", b'"}')


class ByteTokenizer:
    """A tokenizer of bytes and a few longer tokens."""

    vocab_size = len(PIECES)
    bos_id = None
    eos_ids = (EOS,)
    special_ids = frozenset({EOS})

    def piece(self, token_id: int) -> bytes:
        return PIECES[token_id]

    def encode_continuation(self, text: str) -> list[int]:
        return encode(text)


def vocabulary() -> Vocabulary:
    return Vocabulary(ByteTokenizer(), SIZE)


def encode(text: str) -> list[int]:
    """Longest token first."""
    data, tokens = text.encode(), []
    longest = sorted(range(1, len(PIECES)), key=lambda token: -len(PIECES[token]))
    while data:
        token = next(token for token in longest if data.startswith(PIECES[token]))
        tokens.append(token)
        data = data[len(PIECES[token]) :]
    return tokens


def allowed(matcher: Matcher) -> list[int]:
    """The tokens of the next mask."""
    mask = np.zeros(mask_words(SIZE), np.int32)
    matcher.fill(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert not bits[len(PIECES) :].any(), "a token that does not exist is allowed"
    return np.flatnonzero(bits).tolist()


def write(
    backend: GrammarBackend,
    spec: GrammarSpec,
    seed: int,
    most: int = 300,
    likes: Callable[[bytes], bool] = lambda piece: piece in CLOSING,
) -> tuple[str, bool]:
    """A random answer that the masks let through, and whether it came to its end. What `likes` takes is
    likelier: what closes, so that answers end soon."""
    matcher = backend.compile(spec).matcher()
    draw, text = random.Random(seed), b""
    for _ in range(most):
        tokens = allowed(matcher)
        liked = [token for token in tokens if likes(PIECES[token])]
        token = draw.choice(liked if liked and draw.random() < 0.4 else tokens)
        if token == EOS:
            return text.decode("utf-8", "replace"), True
        assert matcher.consume(token)
        text += PIECES[token]
    return text.decode("utf-8", "replace"), False


SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}},
     "required": ["name"], "additionalProperties": False},
    {"type": "array", "items": {"enum": ["a", 1, None, True]}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "integer", "minimum": 3, "maximum": 12}, {"type": "string", "maxLength": 2}]},
    {"type": "object", "additionalProperties": {"type": "boolean"}},
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"next": {"anyOf": [
        {"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["next"], "additionalProperties": False}}},
    {"const": {"ab": [1, 2]}},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    True,
]  # fmt: skip
