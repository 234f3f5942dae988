"""What the plain routes answer; the OpenAPI document is made from these too."""

from __future__ import annotations

from msgspec import Struct


class ModelBody(Struct):
    """One model, as OpenAI lists it; `max_model_len` is the common extension for the context size."""

    id: str
    created: int
    owned_by: str
    max_model_len: int
    object: str = "model"


class ModelList(Struct):
    data: list[ModelBody]
    object: str = "list"


class VersionBody(Struct):
    version: str
