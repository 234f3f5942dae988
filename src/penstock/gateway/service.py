"""What the HTTP routes need: ModelService, which answers a Call; EmbeddingService; ModelLibrary, which keeps
the models.

Implemented by the local engine (`penstock.engine.service.EngineService`), and later by routers over
several upstreams. Errors are PenstockErrors: raised when nothing was sent yet, else a `Failure`
event ends the stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from msgspec import Struct

from penstock.call import Call, Event, Health, Message, ModelCard, PrefixMiss, ToolSpec
from penstock.embedding import EmbedCall, Embeddings, LoadedModel, ScoreCall, Scores

__all__ = [
    "EmbeddingService",
    "Health",
    "LibraryModel",
    "ModelCard",
    "ModelLibrary",
    "ModelService",
    "ModelSheet",
    "Progress",
]

# (phase, bytes done, bytes in total or None); may be called from any thread. What it raises ends the work.
Progress = Callable[[str, int, int | None], None]


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
        template_args: dict[str, Any] | None = None,
    ) -> list[int]: ...

    async def detokenize(self, model: str, tokens: list[int]) -> str: ...

    async def explain_miss(self, before: Call, after: Call) -> PrefixMiss | None:
        """Where the prompt of `after` leaves that of `before`; None if it begins with all of its turns."""
        ...

    def unpin(self, turn: str) -> None:
        """Nobody goes on from a turn (a response's id, a conversation's) any more: its prompt need not be
        kept."""
        ...

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
        """`max_context` is 0 until a model was loaded once, which its first call does."""
        ...

    def loaded(self) -> list[LoadedModel]:
        """Those that take memory now."""
        ...

    async def embed(self, call: EmbedCall) -> Embeddings: ...

    async def score(self, call: ScoreCall) -> Scores: ...

    async def close(self) -> None: ...


class LibraryModel(Struct, frozen=True):
    """A model of this machine. Of one that can't be served the fields behind `digest` are empty.

    modified: Unix seconds. digest: 64 hexadecimal digits of the content. storage: element type that most
    weights have. context: tokens, the declared longest one.
    """

    name: str
    size_bytes: int
    modified: float
    digest: str
    format: str = ""
    architecture: str = ""
    parameters: int = 0
    storage: str = ""
    context: int = 0


class ModelSheet(Struct, frozen=True):
    """Everything about one model. info: key-values under GGUF's names. template: Jinja, "" for none.

    capabilities: of "completion", "insert", "tools", "thinking"; "embedding"; "rerank" (a cross-encoder).
    """

    model: LibraryModel
    info: dict[str, Any]
    template: str
    capabilities: tuple[str, ...]
    source: str
    license: str = ""


class ModelLibrary(Protocol):
    """The models of this machine: those served and those in the model store.

    Methods wait for disks and networks: call them from a thread. Errors are PenstockErrors, NotFound for
    an unknown name. Implemented by `penstock.gateway.local_library.LocalLibrary`.
    """

    def entries(self) -> list[LibraryModel]:
        """By name."""
        ...

    def show(self, name: str) -> ModelSheet: ...

    def pull(self, name: str, progress: Progress) -> None:
        """Bring a model into the store: a catalogue or hub name, a local file or folder."""
        ...

    def create(self, name: str, source: str, progress: Progress) -> None:
        """A model `name` of the store with the files of `source`: another model, a local file or folder."""
        ...

    def copy(self, source: str, destination: str) -> None: ...

    def delete(self, name: str) -> None:
        """Raises InvalidRequest for a model that is served."""
        ...
