"""Bodies of Ollama's routes about models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from msgspec import Struct, field

from penstock.api.ollama_calls import tagged_name
from penstock.errors import InvalidRequest
from penstock.gateway.service import LibraryModel, ModelSheet

# How Ollama's own client reads "for ever": over a hundred years away.
NEVER = "9999-12-31T23:59:59Z"


# --------------------------------------------------------------------------- requests


class ModelRequest(Struct):
    """`name` is the older spelling of `model`."""

    model: str = ""
    old_name: str = field(default="", name="name")

    @property
    def name(self) -> str:
        """Raises InvalidRequest if there is none."""
        found = self.model or self.old_name
        if not found:
            raise InvalidRequest("model: this field is required", param="model")
        return found


class ShowRequest(ModelRequest):
    verbose: bool | None = None


class PullRequest(ModelRequest):
    stream: bool | None = None
    insecure: bool | None = None


class CreateRequest(ModelRequest):
    source: str | None = field(default=None, name="from")
    stream: bool | None = None
    license: str | list[str] | None = None


class CopyRequest(Struct):
    source: str
    destination: str


# --------------------------------------------------------------------------- answers


class VersionBody(Struct):
    version: str


class Details(Struct):
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    parent_model: str = ""


class ModelBody(Struct):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class ModelList(Struct):
    models: list[ModelBody]


class RunningBody(Struct):
    """`size_vram` is 0: the weights lie in the machine's memory."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    context_length: int
    expires_at: str = NEVER
    size_vram: int = 0


class RunningList(Struct):
    models: list[RunningBody]


class ShowBody(Struct):
    """`template` is Jinja, not Go's language."""

    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    license: str


def model_body(model: LibraryModel) -> ModelBody:
    name = tagged_name(model.name)
    return ModelBody(name, name, _time(model.modified), model.size_bytes, model.digest, _details(model))


def running_body(model: LibraryModel, context: int, expires: float | None = None) -> RunningBody:
    """expires: Unix seconds; None: never."""
    name = tagged_name(model.name)
    until = NEVER if expires is None else _time(expires)
    return RunningBody(name, name, model.size_bytes, model.digest, _details(model), context, until)


def show_body(sheet: ModelSheet) -> ShowBody:
    return ShowBody(
        modelfile=f"FROM {sheet.source}\n",
        parameters="",
        template=sheet.template,
        details=_details(sheet.model),
        model_info=sheet.info,
        capabilities=list(sheet.capabilities),
        modified_at=_time(sheet.model.modified),
        license=sheet.license,
    )


def _details(model: LibraryModel) -> Details:
    family = model.architecture
    return Details(model.format, family, [family] if family else [], _count(model.parameters), model.storage)


def _count(parameters: int) -> str:
    """134515008 → "134.52M"."""
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= unit:
            return f"{round(parameters / unit, 2):g}{letter}"
    return str(parameters) if parameters else ""


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
