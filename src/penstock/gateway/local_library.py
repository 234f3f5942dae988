"""LocalLibrary: the models of this machine, from the model store and from what is served.

A served model may lie anywhere and have any name; the others are entries of the store. What the headers of a
model say is read once per change of its file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.errors import InvalidRequest, ModelRefused, PenstockError
from penstock.gateway.service import LibraryModel, ModelSheet, Progress
from penstock.models import sources
from penstock.models.catalogue import ENTRIES

if TYPE_CHECKING:
    from penstock.models.load import ModelInfo
    from penstock.models.spec import DecoderSpec
    from penstock.text.tokenizer import Tokenizer

log = logging.getLogger("penstock.gateway")


class LocalLibrary:
    """See `penstock.gateway.service.ModelLibrary`.

    served: tells the served models when asked: name to what the engine was given (name or path).
    """

    def __init__(self, served: Callable[[], Mapping[str, str]]) -> None:
        self._served = served
        self._known: dict[tuple[str, Path, int], LibraryModel] = {}
        self._sheets: dict[tuple[str, Path, int], ModelSheet] = {}

    def entries(self) -> list[LibraryModel]:
        """Served ones that are not there yet (being fetched) are left out."""
        paths = {model.name: model.path for model in sources.list_models()}
        for name, model in self._served().items():
            if sources.is_present(model):
                paths[name] = sources.resolve(model)
        return [self._model(name, path) for name, path in sorted(paths.items())]

    def show(self, name: str) -> ModelSheet:
        path = self._path(name)
        key = _key(name, path)
        if key not in self._sheets:
            self._sheets[key] = _sheet(self._model(name, path), path)
        return self._sheets[key]

    def pull(self, name: str, progress: Progress) -> None:
        path = _local_path(name)
        if path is None:
            sources.pull(name, progress)
            return
        self._fetch(path, sources.public_name(str(path)), progress)

    def create(self, name: str, source: str, progress: Progress) -> None:
        path = _local_path(source)
        self._fetch(self._path(source) if path is None else path, name, progress)

    def copy(self, source: str, destination: str) -> None:
        self._fetch(self._path(source), destination, lambda phase, done, total: None)

    def delete(self, name: str) -> None:
        self._check_free(name, "model")
        sources.remove(name)

    # ------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        """Raises NotFound."""
        return sources.resolve(self._served().get(name, name))

    def _fetch(self, path: Path, name: str, progress: Progress) -> None:
        from penstock.models.fetch_local import fetch_local_model

        self._check_free(name, "destination")
        if name in ENTRIES:
            raise InvalidRequest(
                f"destination: {name!r} names a model of the catalogue; take another name",
                param="destination",
            )
        try:
            fetch_local_model(path, name, progress)
        except ModelRefused as error:  # the caller named it
            raise InvalidRequest(error.message, param="source") from None

    def _check_free(self, name: str, param: str) -> None:
        if name in self._served():
            raise InvalidRequest(
                f"{param}: {name!r} is being served and has to stay; stop its server first", param=param
            )

    def _model(self, name: str, path: Path) -> LibraryModel:
        key = _key(name, path)
        if key not in self._known:
            self._known[key] = _read_model(name, path)
        return self._known[key]


def _key(name: str, path: Path) -> tuple[str, Path, int]:
    return name, path, path.stat().st_mtime_ns


def _local_path(name: str) -> Path | None:
    """The file or folder that `name` is the path of; None if it is no path. NotFound if it is absent."""
    if not name.startswith(("/", "./", "../", "~")):
        return None
    return sources.resolve(Path(name).expanduser())


def _read_model(name: str, path: Path) -> LibraryModel:
    from penstock.gateway.encoder_sheet import read_encoder
    from penstock.models.encoder.load import is_encoder
    from penstock.models.fetch_local import model_files
    from penstock.models.load import inspect_model

    size = sum(file.stat().st_size for file in model_files(path))
    modified = path.stat().st_mtime
    try:
        if is_encoder(path):
            return read_encoder(name, path, size)
        info = inspect_model(path)
    except PenstockError as error:  # it is there all the same, and can be deleted
        log.warning("%s can't be served: %s", name, error.message)
        return LibraryModel(name, size, modified, "")
    return LibraryModel(
        name,
        size,
        modified,
        info.revision,
        info.format,
        info.architecture,
        info.parameters,
        info.storage,
        info.context,
    )


def _sheet(model: LibraryModel, path: Path) -> ModelSheet:
    """Raises ModelRefused for a model that can't be served."""
    from penstock.gateway.encoder_sheet import encoder_sheet
    from penstock.models.encoder.load import is_encoder
    from penstock.models.load import inspect_model
    from penstock.text.tokenizer import Tokenizer

    if is_encoder(path):
        return encoder_sheet(model, path)
    info, tokenizer = inspect_model(path), Tokenizer.load(path)
    entry = ENTRIES.get(model.name)
    return ModelSheet(
        model=model,
        info=_key_values(info, tokenizer),
        template=tokenizer.chat_template or "",
        capabilities=capabilities_of(tokenizer),
        source=str(path),
        license=entry.license if entry is not None else "",
    )


def capabilities_of(tokenizer: Tokenizer) -> tuple[str, ...]:
    """What a model was taught, by its chat templates and marker tokens. A model without "tools" may be given
    some all the same: it is told of them in the system text."""
    from penstock.text.infill import infill_markers
    from penstock.text.output.choose import format_for_template
    from penstock.text.tool_prompt import knows_tools

    found = ["completion"]
    if infill_markers(tokenizer) is not None:
        found.append("insert")
    source = tokenizer.chat_template
    if source is None:
        return tuple(found)
    if knows_tools(tokenizer.chat_templates.get("tool_use", source)):
        found.append("tools")
    marks = format_for_template(source).reasoning
    if marks is not None and any(begin in source for begin, _ in marks.pairs):
        found.append("thinking")
    return tuple(found)


def _key_values(info: ModelInfo, tokenizer: Tokenizer) -> dict[str, Any]:
    """Under GGUF's names, whatever the model's format."""
    spec, architecture = info.spec, info.architecture
    found: dict[str, Any] = {
        "general.architecture": architecture,
        "general.basename": info.id,
        "general.parameter_count": info.parameters,
        "general.quantization": info.quantization or info.storage,
    }
    found |= {f"{architecture}.{name}": value for name, value in _shape(spec).items()}
    if tokenizer.bos_id is not None:
        found["tokenizer.ggml.bos_token_id"] = tokenizer.bos_id
    if tokenizer.eos_ids:
        found["tokenizer.ggml.eos_token_id"] = tokenizer.eos_ids[0]
    return found


def _shape(spec: DecoderSpec) -> dict[str, Any]:
    attention = spec.layers[0].attention
    return {
        "context_length": spec.max_context,
        "embedding_length": spec.hidden_size,
        "block_count": len(spec.layers),
        "vocab_size": spec.vocab_size,
        "attention.head_count": attention.shape.heads,
        "attention.head_count_kv": attention.shape.kv_heads,
        "attention.key_length": attention.shape.head_dim,
        "attention.layer_norm_rms_epsilon": spec.norm_eps,
    }
