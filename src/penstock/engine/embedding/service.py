"""LocalEmbeddings: `penstock.gateway.service.EmbeddingService` over models of this machine."""

from __future__ import annotations

import asyncio

from penstock.call import ModelCard
from penstock.config import ServerSettings
from penstock.embedding import EmbedCall, Embeddings, ScoreCall, Scores
from penstock.engine.embedding.served import ServedModel
from penstock.errors import NotFound


class LocalEmbeddings:
    """Nothing is loaded, and no process is there, before a model is first asked for."""

    def __init__(self, settings: ServerSettings, backend: str = "auto") -> None:
        names = [name for name in settings.embedding_models if name]
        served = [
            ServedModel(name, backend, settings.embedding_threads, settings.embedding_queue) for name in names
        ]
        self._models = {model.name: model for model in served}

    def models(self) -> list[ModelCard]:
        return [model.card for model in self._models.values()]

    async def embed(self, call: EmbedCall) -> Embeddings:
        return await self._find(call.model).embed(call)

    async def score(self, call: ScoreCall) -> Scores:
        return await self._find(call.model).score(call)

    async def close(self) -> None:
        await asyncio.gather(*(model.close() for model in self._models.values()))

    def _find(self, name: str | None) -> ServedModel:
        if name is None and self._models:
            return next(iter(self._models.values()))
        if name in self._models:
            return self._models[name]
        known = ", ".join(self._models) or "none"
        raise NotFound(
            f"model: {name!r} is no embedding model of this server; they are {known} (--embedding-models)",
            param="model",
            code="model_not_found",
        )
