"""EmbeddingModel: what a worker loads by name: an encoder, or a decoder read at its last token."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from penstock.engine.embedding.last_token import LastToken
from penstock.engine.embedding.messages import NO_ROOM, Loaded, Task
from penstock.errors import InvalidRequest, ModelRefused
from penstock.kernels.backend import BackendOptions, open_backend
from penstock.kernels.encoder import TextBatch
from penstock.models import sources
from penstock.models.encoder.load import Encoder, inspect_encoder, is_encoder, load_encoder
from penstock.models.encoder.modules import read_modules
from penstock.models.encoder.spec import weight_bytes
from penstock.models.load import inspect_model, load_model
from penstock.observe.machine import available_memory

MAX_DECODER_TOKENS = 8192  # of a text for a decoder: bounds the KV of the one text that fills a batch


class EmbeddingModel:
    """`describe` says what it is; `run` computes a batch."""

    def __init__(self, network: Encoder | LastToken, describe: Loaded) -> None:
        self._network = network
        self.describe = describe

    def run(self, task: Task, batch: TextBatch) -> np.ndarray:
        """float32[R, width] or [R, labels]. InvalidRequest for a task that the model can't do."""
        if task == "embed":
            return self._network.embed(batch)
        if not isinstance(self._network, Encoder) or not self.describe.labels:
            raise InvalidRequest("this model has no classification head")
        return self._network.classify(batch)


def open_embedding_model(name: str, backend: str = "auto", threads: int | None = None) -> EmbeddingModel:
    """Load the model of that name or path; a catalogue name that is not there is fetched first.

    Raises NotFound and ModelRefused.
    """
    path = sources.resolve(name) if sources.is_present(name) else sources.pull(name)
    if is_encoder(path):
        return _encoder(path, backend, threads)
    return _decoder(path, backend, threads)


def _encoder(path: Path, backend: str, threads: int | None) -> EmbeddingModel:
    info = inspect_encoder(path)
    _check_room(path, weight_bytes(info.spec))
    described = Loaded(
        path=str(path),
        width=info.spec.hidden_size,
        max_tokens=info.max_tokens,
        vocab_size=info.spec.vocab_size,
        labels=info.spec.labels,
    )
    return EmbeddingModel(load_encoder(info, backend, threads), described)


def _decoder(path: Path, backend: str, threads: int | None) -> EmbeddingModel:
    info = inspect_model(path)
    opened = open_backend(backend, BackendOptions(threads=threads))
    # A bare decoder is read at its last token, as vectors of length 1; files of sentence-transformers decide.
    has_modules = path.is_dir() and (path / "modules.json").is_file()
    modules = read_modules(path, "last") if has_modules else None
    if modules is not None and modules.pooling != "last":
        raise InvalidRequest(f"{path}: pooling {modules.pooling!r} of a decoder is not served; lasttoken is")
    longest = min(info.context, MAX_DECODER_TOKENS)
    if modules is not None and modules.max_tokens is not None:
        longest = min(longest, modules.max_tokens)
    _check_room(path, info.weight_bytes(opened))
    model = load_model(info, opened, context=longest)
    described = Loaded(
        path=str(path),
        width=info.spec.hidden_size,
        max_tokens=longest,
        vocab_size=info.spec.vocab_size,
        labels=0,
    )
    return EmbeddingModel(LastToken(model, opened.kv_form, modules is None or modules.normalize), described)


def _check_room(path: Path, weights: int) -> None:
    """ModelRefused before memory is taken; its code says that it is for now."""
    available = available_memory()
    if weights > available:
        raise ModelRefused(
            f"{path}: needs {weights / 2**20:.0f} MiB for its weights, {available / 2**20:.0f} MiB are free; "
            "free memory or take a smaller model",
            code=NO_ROOM,
        )
