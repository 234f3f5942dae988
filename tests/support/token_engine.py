"""A real engine (model, runner, sampler, KV, scheduler) driven with token ids on this thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from penstock.config import EngineSettings, build
from penstock.decoding.params import RowLogprobs, TokenSampling
from penstock.engine.build import build_engine
from penstock.engine.messages import Delta, Submit, pack_tokens
from penstock.engine.outputs import unpack_logprobs


class Answer(msgspec.Struct):
    """Everything that a request got."""

    tokens: list[int] = []
    finish: str | None = None
    cached_tokens: int = 0
    logprobs: list[RowLogprobs] = []
    prompt_logprobs: list[RowLogprobs] = []
    error: tuple[str, str, float | None] | None = None


class TokenEngine:
    """`with TokenEngine(path, token_budget=…) as engine: engine.submit(…); engine.run()`"""

    def __init__(self, model: Path, **settings: Any) -> None:
        self.answers: dict[str, Answer] = {}
        self.core, self.ready = build_engine(
            build(EngineSettings, model=str(model), **settings), self._sink, lambda loading: None
        )

    def __enter__(self) -> TokenEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.core.close()

    def _sink(self, client: str, deltas: list[Delta]) -> None:
        for delta in deltas:
            answer = self.answers.setdefault(delta.id, Answer(tokens=[], logprobs=[], prompt_logprobs=[]))
            answer.tokens.extend(delta.tokens)
            answer.finish = delta.finish or answer.finish
            answer.error = delta.error or answer.error
            if delta.cached_tokens is not None:
                answer.cached_tokens = delta.cached_tokens
            if delta.logprobs is not None:
                answer.logprobs.append(unpack_logprobs(delta.logprobs))
            if delta.prompt_logprobs is not None:
                answer.prompt_logprobs.append(unpack_logprobs(delta.prompt_logprobs))

    def submit(self, request_id: str, tokens: Any, sampling: TokenSampling, **fields: Any) -> None:
        self.core.submit(
            "test", Submit(id=request_id, tokens=pack_tokens(tokens), sampling=sampling, **fields)
        )

    def run(self) -> None:
        """Until idle; then every slot and block must be back."""
        while self.core._requests or self.core.has_work:
            if not self.core.has_work:  # in the engine's own loop a message wakes it then
                for future in list(self.core._preparing._waiting.values()):
                    future.exception()
            self.core.step()
        self.core.check_idle()

    def alone(self, tokens: Any, sampling: TokenSampling, **fields: Any) -> Answer:
        """Submit one request, run it, return its answer."""
        request_id = f"alone-{len(self.answers)}"
        self.submit(request_id, tokens, sampling, **fields)
        self.run()
        return self.answers[request_id]


def same_logprobs(ours: list[RowLogprobs], theirs: list[RowLogprobs], tolerance: float) -> None:
    """Assert that two streams of log-probabilities agree, however they were cut into parts."""
    for field in ("chosen", "top"):
        a = np.concatenate([getattr(part, field).reshape(part.top_ids.shape[0], -1) for part in ours])
        b = np.concatenate([getattr(part, field).reshape(part.top_ids.shape[0], -1) for part in theirs])
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)
