"""Preparing: requests that can't be queued yet, because their grammar is still being compiled.

They hold no slot and no memory; the scheduler does not see them. Siblings of a leader that is here wait.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from penstock.engine.requests import Request
from penstock.errors import InvalidRequest, PenstockError

if TYPE_CHECKING:
    from penstock.decoding.grammar.backend import CompiledGrammar
    from penstock.decoding.grammar.store import GrammarStore


class Preparing:
    def __init__(self, grammars: GrammarStore | None) -> None:
        self._grammars = grammars
        self._waiting: dict[Request, Future[CompiledGrammar]] = {}
        self.wake: Callable[[], None] = _ignore

    @property
    def num_ready(self) -> int:
        """Requests that `ready` would hand out."""
        return sum(future.done() for future in self._waiting.values())

    @property
    def grammar_fallbacks(self) -> int:
        """Grammars that a second backend compiled."""
        return 0 if self._grammars is None else self._grammars.fallbacks

    def add(self, request: Request) -> None:
        """Until its grammar is there. A refusal is handed out by `ready` too."""
        spec = request.sampling.grammar
        assert spec is not None
        future: Future[CompiledGrammar]
        try:
            if self._grammars is None:
                raise InvalidRequest("grammar: this engine has no tokenizer to make one for", param="grammar")
            future = self._grammars.compile(spec)
        except PenstockError as refusal:
            future = Future()
            future.set_exception(refusal)
        self._waiting[request] = future
        if not future.done():
            future.add_done_callback(lambda _: self.wake())

    def discard(self, request: Request) -> bool:
        """Forget a request. False if it is not here."""
        return self._waiting.pop(request, None) is not None

    def take(self, request: Request) -> None:
        """It is queued now, and keeps its grammar."""
        request.grammar = self._waiting.pop(request).result()

    def ready(self) -> list[tuple[Request, PenstockError | None]]:
        """Those whose grammar is there, each with what refuses it. They stay until `take` or `discard`."""
        return [(request, _refusal(future)) for request, future in self._waiting.items() if future.done()]

    def close(self) -> None:
        if self._grammars is not None:
            self._grammars.close()


def _refusal(future: Future[CompiledGrammar]) -> PenstockError | None:
    error = future.exception()
    if error is None or isinstance(error, PenstockError):
        return error
    return PenstockError(f"the grammar could not be compiled: {error!r}")


def _ignore() -> None:
    pass
