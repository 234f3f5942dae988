"""The grammar backends by name."""

from __future__ import annotations

from collections.abc import Callable

from penstock.decoding.grammar.backend import GrammarBackend, Vocabulary
from penstock.decoding.grammar.llguidance_backend import LLGuidanceBackend
from penstock.errors import ConfigError


def make_backend(name: str, vocabulary: Callable[[], Vocabulary]) -> GrammarBackend:
    """`auto` is llguidance. Raises ConfigError for an unknown name."""
    if name in ("auto", "llguidance"):
        return LLGuidanceBackend(vocabulary)
    raise ConfigError(f"grammar backend {name!r} is unknown; use auto or llguidance")
