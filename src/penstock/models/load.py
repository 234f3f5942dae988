"""From a path to a Model, in two steps: inspect (headers only), then load (takes the memory).

Everything that can be refused is refused while inspecting: an unsupported architecture or feature,
a tensor that is missing, misshapen or has no place. Loading then only reads.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from penstock.errors import ModelRefused
from penstock.kernels.backend import (
    Backend,
    BackendOptions,
    OpTableBackend,
    ProgramBackend,
    Role,
    WeightCache,
    open_backend,
)
from penstock.kernels.ops import WeightTensor
from penstock.models.arch import identify
from penstock.models.forward import Model
from penstock.models.lowered import LoweredModel
from penstock.models.spec import DecoderSpec, parameter_count
from penstock.models.tensors import Tensors, resolve
from penstock.models.weights.source import open_source

Progress = Callable[[str, float], None]

GATED = frozenset({"gate_up", "experts_gate_up", "shared_gate_up"})
ROLES: dict[str, Role] = {
    "embed": "vocabulary",
    "head": "vocabulary",
    "router": "router",
    "shared_gate": "router",
}

log = logging.getLogger("penstock.models")


class ModelInfo(Struct, frozen=True, kw_only=True):
    """What the headers say. `id` is the file's or folder's name; `context` the declared longest one.

    file_bytes: tensors as stored; parameters: weights that the model holds, a tied head once;
    storage: the element type that most weights have; revision: digest of the content; tensors: shape
    and stored type of everything that the model holds; quantization: "" or what a quantized checkpoint
    says it is; notes: what is served otherwise than it prescribes, in sentences.
    """

    id: str
    path: Path
    format: Literal["gguf", "safetensors"]
    architecture: str
    spec: DecoderSpec
    parameters: int
    file_bytes: int
    storage: str
    context: int
    revision: str
    tensors: tuple[tuple[tuple[int, ...], str], ...]
    quantization: str = ""
    notes: tuple[str, ...] = ()

    def weight_bytes(self, backend: Backend | str = "auto") -> int:
        """Bytes that the weights will take in memory under `backend`."""
        opened = open_backend(backend) if isinstance(backend, str) else backend
        vocabulary = (self.spec.vocab_size, self.spec.hidden_size)
        return sum(
            opened.weight_bytes(shape, dtype, "vocabulary" if shape == vocabulary else "layer")
            for shape, dtype in self.tensors
        )


@contextmanager
def _opened(info: ModelInfo) -> Iterator[Tensors]:
    """The resolved tensors of an inspected model, closed at the end."""
    source = open_source(info.path)
    try:
        if source.revision != info.revision:
            raise ModelRefused(
                f"{info.path}: changed since it was inspected (revision {source.revision[:12]}, "
                f"was {info.revision[:12]}); start again"
            )
        yield resolve(source, identify(source)[2], info.spec)
    finally:
        source.close()


def inspect_model(path: Path | str) -> ModelInfo:
    """Read headers and configuration; take no memory for weights.

    Raises ModelRefused, naming the path, the reason and the numbers, for anything that can't be
    served: unknown architecture, unsupported feature, missing, misshapen or superfluous tensor.
    """
    path = Path(path)
    source = open_source(path)
    try:
        architecture, config, names = identify(source)
        spec = architecture.spec(config)
        tensors = resolve(source, names, spec)
        stored: Counter[str] = Counter()
        for part in tensors.parts():
            stored[part.dtype] += prod(part.shape)
        for note in tensors.notes:
            log.info("%s: %s", path, note)
        return ModelInfo(
            id=path.stem if path.is_file() else path.resolve().name,
            path=path,
            format=source.kind,
            architecture=architecture.name,
            spec=spec,
            parameters=parameter_count(spec),
            file_bytes=sum(source.nbytes(name) for name in source.names()),
            storage=stored.most_common(1)[0][0],
            context=spec.max_context,
            revision=source.revision,
            tensors=tuple((part.shape, part.dtype) for part in tensors.parts()),
            quantization=tensors.quantization,
            notes=tensors.notes,
        )
    except ModelRefused as refused:
        raise ModelRefused(f"{path}: {refused.message}") from None
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelRefused(
            f"{path}: the configuration can't be read ({type(error).__name__}: {error})"
        ) from error
    finally:
        source.close()


def load_model(
    info: ModelInfo,
    backend: Backend | str = "auto",
    progress: Progress | None = None,
    *,
    context: int | None = None,
    options: BackendOptions | None = None,
    capture: tuple[int, ...] = (),
) -> Model | LoweredModel:
    """Prepare every weight for `backend` (opened, or a name and `options`) and build the model.

    `progress(what, share)` is called as tensors are done, share in 0..1, from this thread. `context` is
    the longest context that will be served (default: the declared one); LongRoPE picks its set by it.
    capture: see `models.forward.Model`.
    """
    opened = open_backend(backend, options) if isinstance(backend, str) else backend
    cache = opened.weight_cache(info.revision) if isinstance(opened, ProgramBackend) else None
    with _opened(info) as tensors:
        groups = [tensors.model, *tensors.layers]
        jobs = [(number, name, parts) for number, group in enumerate(groups) for name, parts in group.items()]
        total = sum(prod(part.shape) for _, _, parts in jobs for part in parts)
        weights: list[dict[str, Any]] = [{} for _ in groups]
        done = 0
        # The largest first: a wide head that starts last would leave the other cores idle.
        jobs.sort(key=lambda job: -sum(prod(part.shape) for part in job[2]))
        with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
            prepared = pool.map(lambda job: _prepare(opened, cache, *job), jobs)
            for (number, name, parts), weight in zip(jobs, prepared, strict=True):
                weights[number][name] = weight
                done += sum(prod(part.shape) for part in parts)
                if progress is not None:
                    progress("weights", done / total)
    if cache is not None:
        cache.finish()
    if isinstance(opened, ProgramBackend):
        return LoweredModel(info.spec, opened, weights[0], weights[1:], context, capture)
    assert isinstance(opened, OpTableBackend)
    return Model(info.spec, opened.ops, weights[0], weights[1:], context, capture)


def _prepare(
    backend: Backend, cache: WeightCache | None, group: int, name: str, parts: list[WeightTensor]
) -> Any:
    if len(parts[0].shape) == 1 or name.endswith("_bias"):
        return backend.vector(parts)
    key = f"{group}.{name}"
    if cache is not None and (kept := cache.load(key)) is not None:
        return kept
    weight = (
        backend.prepare_gated(parts) if name in GATED else backend.prepare(parts, ROLES.get(name, "layer"))
    )
    if cache is not None:
        cache.add(key, weight)
    return weight
