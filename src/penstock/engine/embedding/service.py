"""LocalEmbeddings: `penstock.gateway.service.EmbeddingService` over models of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from penstock.call import ModelCard
from penstock.config import ServerSettings
from penstock.embedding import EmbedCall, Embeddings, LoadedModel, ScoreCall, Scores
from penstock.engine.embedding.served import ServedModel
from penstock.errors import NotFound
from penstock.models.sources import public_name


class LocalEmbeddings:
    """Nothing is loaded, and no process is there, before a model is first asked for.

    generating: tells the decoders that the server generates with, name to name or path of the model. They
    embed by their last token, in a process beside the engine's.
    """

    def __init__(
        self,
        settings: ServerSettings,
        backend: str = "auto",
        generating: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._settings, self._backend, self._generating = settings, backend, generating
        names = [name for name in settings.embedding_models if name]
        self._models = {public_name(name): self._served(public_name(name), name) for name in names}
        self._decoders: dict[str, ServedModel] = {}

    def models(self) -> list[ModelCard]:
        return [model.card for model in self._known().values()]

    def loaded(self) -> list[LoadedModel]:
        return [loaded for model in self._all() if (loaded := model.loaded) is not None]

    async def embed(self, call: EmbedCall) -> Embeddings:
        return await self._find(call.model).embed(call)

    async def score(self, call: ScoreCall) -> Scores:
        return await self._find(call.model).score(call)

    async def close(self) -> None:
        await asyncio.gather(*(model.close() for model in self._all()))

    def _served(self, name: str, model: str) -> ServedModel:
        return ServedModel(name, model, self._settings, self._backend, self._make_room)

    def _all(self) -> list[ServedModel]:
        return [*self._models.values(), *self._decoders.values()]

    def _known(self) -> dict[str, ServedModel]:
        """By name: those of the settings, then the decoders."""
        known = dict(self._models)
        for name, model in self._generating().items():
            if name not in known:
                if name not in self._decoders:
                    self._decoders[name] = self._served(name, model)
                known[name] = self._decoders[name]
        return known

    async def _make_room(self) -> bool:
        """End the idle model that was used least recently."""
        idle = [model.residence for model in self._all() if model.residence.is_idle]
        if not idle:
            return False
        await min(idle, key=lambda residence: residence.used).evict()
        return True

    def _find(self, name: str | None) -> ServedModel:
        known = self._known()
        if name is None and known:
            return next(iter(known.values()))
        if name in known:
            return known[name]
        raise NotFound(
            f"model: {name!r} is no embedding model of this server; they are {', '.join(known) or 'none'} "
            "(--embedding-models)",
            param="model",
            code="model_not_found",
        )
