"""What a library tells of an encoder: a model that embeds or scores, and does not generate."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

from penstock.gateway.service import LibraryModel, ModelSheet
from penstock.models.catalogue import ENTRIES
from penstock.models.encoder.load import inspect_encoder
from penstock.models.encoder.spec import weight_bytes
from penstock.models.weights.source import open_source


def read_encoder(name: str, path: Path, size_bytes: int) -> LibraryModel:
    """Raises ModelRefused for one that can't be served."""
    info = inspect_encoder(path)
    source = open_source(path)
    try:
        stored: Counter[str] = Counter()
        for tensor in source.names():
            stored[source.dtype(tensor)] += prod(source.shape(tensor))
        return LibraryModel(
            name,
            size_bytes,
            path.stat().st_mtime,
            source.revision,
            source.kind,
            str(source.config["model_type"]),
            weight_bytes(info.spec) // 4,
            stored.most_common(1)[0][0],
            info.max_tokens,
        )
    finally:
        source.close()


def encoder_sheet(model: LibraryModel, path: Path) -> ModelSheet:
    """Raises ModelRefused."""
    info = inspect_encoder(path)
    spec, architecture = info.spec, model.architecture
    shape = {
        "context_length": info.max_tokens,
        "embedding_length": spec.hidden_size,
        "block_count": spec.num_layers,
        "vocab_size": spec.vocab_size,
        "feed_forward_length": spec.inner_size,
        "attention.head_count": spec.heads,
        "attention.layer_norm_epsilon": spec.norm_eps,
        "pooling_type": info.modules.pooling,
    }
    entry = ENTRIES.get(model.name)
    return ModelSheet(
        model=model,
        info={
            "general.architecture": architecture,
            "general.parameter_count": model.parameters,
            "general.quantization": model.storage,
        }
        | {f"{architecture}.{name}": value for name, value in shape.items()},
        template="",
        capabilities=("rerank",) if spec.labels else ("embedding",),
        source=str(path),
        license=entry.license if entry is not None else "",
    )
