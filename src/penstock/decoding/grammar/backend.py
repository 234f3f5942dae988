"""What a grammar library offers the engine: compile a spec, then follow an answer token by token.

A matcher is the state of one answer. Between two tokens: `fill` says what may come, `consume` says what came.

Invariants that every backend keeps: `consume` of a token that `fill` allows succeeds; `rollback(n)` restores
what was before the last n tokens; once the answer is complete and nothing can follow, only end-of-sequence
tokens are allowed; masks have bit i % 32 of word i // 32 for token i, and no bit beyond the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from msgspec import Struct

from penstock.decoding.grammar.spec import GrammarSpec
from penstock.errors import InvalidRequest, PenstockError


class GrammarBroken(PenstockError):
    """A matcher can't go on: its library gave up in the middle of an answer."""


class TokenBytes(Protocol):
    """What a backend needs of a tokenizer (`penstock.text.tokenizer.Tokenizer`)."""

    vocab_size: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    special_ids: frozenset[int]

    def piece(self, token_id: int) -> bytes: ...

    def encode_continuation(self, text: str) -> list[int]: ...


class Matcher(Protocol):
    def fill(self, mask: np.ndarray) -> None:
        """mask: int32[words]: bits of the tokens that may come next. Raises GrammarBroken."""
        ...

    def consume(self, token: int) -> bool:
        """False if the token may not come; nothing changed then."""
        ...

    def rollback(self, tokens: int) -> None:
        """Forget the last `tokens` consumed."""
        ...

    def forced(self) -> list[int]:
        """Tokens that must come next whatever the model says, in the tokenizer's own spelling."""
        ...

    def accepts(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` could be consumed one after the other; nothing changes."""
        ...

    @property
    def is_complete(self) -> bool:
        """The answer may end here."""
        ...


class CompiledGrammar(Protocol):
    backend: str

    def matcher(self) -> Matcher:
        """At the beginning of an answer."""
        ...


class GrammarBackend(Protocol):
    """`fallbacks`: grammars compiled so far after another backend refused them."""

    name: str
    fallbacks: int

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """Raises InvalidRequest for what it can't honour, naming the keyword."""
        ...


def mask_words(vocab_size: int) -> int:
    """int32 words of a mask."""
    return -(-vocab_size // 32)


class Vocabulary(Struct, frozen=True):
    """A tokenizer and the width of the model's head, which may be larger."""

    tokenizer: TokenBytes
    size: int


_PARAMS = {"json_schema": "json_schema", "json_object": "response_format"}


def refusal(spec: GrammarSpec, reason: str) -> InvalidRequest:
    """Of a spec that a backend can't honour. `reason` names the keyword."""
    param = "tools" if spec.loops is not None else _PARAMS.get(spec.kind, spec.kind)
    return InvalidRequest(f"{param}: {reason.strip()}", param=param, code="unsupported_grammar")
