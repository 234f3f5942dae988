"""ModelService: what the HTTP routes need from whatever answers a Call; EmbeddingService: from what embeds.

Implemented by the local engine (`penstock.engine.service.EngineService`), and later by routers over
several upstreams. Errors are PenstockErrors: raised when nothing was sent yet, else a `Failure`
event ends the stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from penstock.call import Call, Event, Health, Message, ModelCard, ToolSpec
from penstock.embedding import EmbedCall, Embeddings, ScoreCall, Scores

__all__ = ["EmbeddingService", "Health", "ModelCard", "ModelService"]


class ModelService(Protocol):
    async def start(self) -> None:
        """Begin loading. Returns at once; `health()` tells when ready."""
        ...

    def models(self) -> list[ModelCard]:
        """Served models; known (from settings) even before the engine is ready."""
        ...

    def stream(self, call: Call, request_id: str) -> AsyncIterator[Event]:
        """Answer a call. Closing the iterator (aclose, cancellation) aborts it within one step.

        Raises NotFound (unknown model), InvalidRequest, ContextOverflow, Overloaded,
        EngineUnavailable before the first event. After it, a `Failure` event ends the stream;
        otherwise `Done` does. Per choice one `Finish`.
        """
        ...

    async def tokenize(self, model: str, text: str, add_special: bool) -> list[int]: ...

    async def tokenize_chat(
        self,
        model: str,
        messages: tuple[Message, ...],
        tools: tuple[ToolSpec, ...],
        add_generation_prompt: bool,
    ) -> list[int]: ...

    async def detokenize(self, model: str, tokens: list[int]) -> str: ...

    def health(self) -> Health: ...

    async def drain(self, timeout_s: float) -> None:
        """Stop accepting, let running requests finish for at most `timeout_s`."""
        ...

    async def close(self) -> None: ...


class EmbeddingService(Protocol):
    """Embedding models and cross-encoders. `penstock.engine.embedding.service` runs them here.

    Raises NotFound (unknown model), InvalidRequest, ContextOverflow (an input too long), Overloaded,
    EngineUnavailable, ModelRefused. Cancelling a call drops what of it has not begun.
    """

    def models(self) -> list[ModelCard]:
        """`max_context` is 0 until a model is loaded, which its first call does."""
        ...

    async def embed(self, call: EmbedCall) -> Embeddings: ...

    async def score(self, call: ScoreCall) -> Scores: ...

    async def close(self) -> None: ...
