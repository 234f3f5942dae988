"""ScriptedLibrary: the one model of a scripted server, for the routes that list and show models."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NoReturn

from penstock.errors import InvalidRequest, NotFound
from penstock.gateway.service import LibraryModel, ModelSheet, Progress
from penstock.simulate.scripted.script import SCHEME
from penstock.simulate.scripted.service import ScriptedModelService


class ScriptedLibrary:
    """See `penstock.gateway.service.ModelLibrary`. `model`: the `scripted:FILE` of the service."""

    def __init__(self, service: ScriptedModelService, model: str) -> None:
        self._service = service
        path = Path(model.removeprefix(SCHEME)).expanduser()
        data, stat = path.read_bytes(), path.stat()
        self._model = LibraryModel(
            service.name,
            len(data),
            stat.st_mtime,
            hashlib.sha256(data).hexdigest(),
            format="script",
            architecture="scripted",
            context=service.script.max_context,
        )
        self._source = str(path)

    def entries(self) -> list[LibraryModel]:
        return [self._model]

    def show(self, name: str) -> ModelSheet:
        if name != self._model.name:
            raise NotFound(f"{name}: no such model; {self._model.name} is served here", param="model")
        capabilities = (
            "completion",
            "tools",
            "thinking",
            *(["vision"] if self._service.script.images else []),
        )
        info = {"general.architecture": "scripted", "scripted.context_length": self._model.context}
        return ModelSheet(self._model, info, "", capabilities, self._source)

    def pull(self, name: str, progress: Progress) -> None:
        _refuse()

    def create(self, name: str, source: str, progress: Progress) -> None:
        _refuse()

    def copy(self, source: str, destination: str) -> None:
        _refuse()

    def delete(self, name: str) -> None:
        _refuse()


def _refuse() -> NoReturn:
    raise InvalidRequest("model: a scripted server has its one model; start `penstock serve` for others")
