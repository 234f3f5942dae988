"""Which API a request speaks, known from its path and headers before any route is."""

from __future__ import annotations

from starlette.types import Scope

from penstock.wire.anthropic_dialect import ANTHROPIC
from penstock.wire.dialect import Dialect
from penstock.wire.ollama_dialect import OLLAMA
from penstock.wire.openai_dialect import OPENAI


def dialect_of(scope: Scope) -> Dialect:
    """The dialect of an ASGI scope's request; OpenAI's where nothing else is told."""
    if scope["path"].startswith("/v1/messages") or _has(scope, b"anthropic-version"):
        return ANTHROPIC
    if scope["path"].startswith("/api/"):
        return OLLAMA
    return OPENAI


def _has(scope: Scope, name: bytes) -> bool:
    return any(key == name for key, _ in scope["headers"])
