"""The drafter that the settings name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.config import FEATURE_METHODS, EngineSettings, SpeculationSettings
from penstock.decoding.drafting.acceptance import SyntheticAcceptance
from penstock.decoding.drafting.drafter import HostDrafter
from penstock.errors import ConfigError, ModelRefused
from penstock.kv.groups import LayerKV, plan_layout
from penstock.kv.resource import KVResource

if TYPE_CHECKING:
    from penstock.engine.shape import CoreShape
    from penstock.models.forward import Model
    from penstock.models.lowered import LoweredModel
    from penstock.models.spec import DecoderSpec

log = logging.getLogger("penstock.engine")


def make_drafter(
    settings: EngineSettings, model: Model | LoweredModel, pool: Any, shape: CoreShape, kv: KVResource
) -> HostDrafter:
    """`pool`: the KV that `model` runs over, `kv` the engine's blocks of it."""
    speculation = settings.speculation
    assert speculation is not None, "no drafter is named"
    match speculation.method:
        case "self":
            return _own_layers(speculation, model, pool, shape, kv)
        case "draft":
            return _draft_model(settings, speculation, model, shape)
        case "dflash" | "eagle" | "mtp":
            return _feature_drafter(speculation, model, shape)
        case _:
            return host_drafter(speculation, model.spec.vocab_size)


def host_drafter(speculation: SpeculationSettings, vocab_size: int) -> HostDrafter:
    """One that knows tokens only. ConfigError for a method that runs a model."""
    match speculation.method:
        case "ngram":
            from penstock.decoding.drafting.ngram import NgramDrafter

            return NgramDrafter()
        case "suffix":
            from penstock.decoding.drafting.suffix import SuffixDrafter

            return SuffixDrafter()
        case "synthetic":
            from penstock.decoding.drafting.synthetic import SyntheticDrafter

            return SyntheticDrafter(vocab_size)
        case method:
            raise ConfigError(
                f"speculation.method: {method} runs a model; here it is ngram, suffix or synthetic"
            )


def synthetic_acceptance(speculation: SpeculationSettings | None) -> SyntheticAcceptance | None:
    """How drafts are accepted if not by what the model says; None if they are."""
    if speculation is None or speculation.synthetic_acceptance is None:
        return None
    return SyntheticAcceptance(speculation.synthetic_acceptance, speculation.k)


def captured_layers(speculation: SpeculationSettings | None, spec: DecoderSpec) -> tuple[int, ...]:
    """Layers of the model of `spec` whose hidden states the drafter reads; known before either is loaded."""
    if speculation is None or speculation.method not in FEATURE_METHODS:
        return ()
    from penstock.models.drafters.open import layers_of
    from penstock.models.sources import resolve

    assert speculation.model is not None
    layers = layers_of(speculation.method, Path(resolve(speculation.model)), len(spec.layers))
    wrong = [layer for layer in layers if not -1 <= layer < len(spec.layers)]
    if wrong or len(set(layers)) != len(layers):
        raise ModelRefused(
            f"{speculation.model}: reads the results of layers {list(layers)}, the model has "
            f"{len(spec.layers)}; it is a drafter for another model"
        )
    return layers


def _feature_drafter(
    speculation: SpeculationSettings, model: Model | LoweredModel, shape: CoreShape
) -> HostDrafter:
    from penstock.engine.drafts.context import ContextPool
    from penstock.engine.drafts.feature_drafter import FeatureDrafter
    from penstock.models.drafters.open import open_network
    from penstock.models.sources import resolve

    assert speculation.model is not None
    path = Path(resolve(speculation.model))
    network = open_network(speculation.method, path, model, shape.max_context)
    room = speculation.kv_bytes or shape.num_blocks * shape.layout.block_bytes // 4
    pool = ContextPool(network.cache_shape, room // network.cache_shape.token_bytes)
    log.info("speculation: %s drafts, context of %d tokens for it", speculation.model, pool.budget)
    return FeatureDrafter(network, pool, shape.prefix_cache)


def _own_layers(
    speculation: SpeculationSettings, model: Model | LoweredModel, pool: Any, shape: CoreShape, kv: KVResource
) -> HostDrafter:
    from penstock.engine.drafts.model_drafter import ModelDrafter, SharedBlocks, greedy_with_layers

    total = len(model.spec.layers)
    layers = speculation.layers or max(1, total // 3)
    kept = tuple(range(layers)) if isinstance(layers, int) else layers
    if len(kept) >= total:
        raise ConfigError(f"speculation.layers: {len(kept)} of the model's {total}; leave at least one out")
    if kept[-1] >= total:
        raise ConfigError(f"speculation.layers: {kept[-1]}; the model's are 0 to {total - 1}")
    return ModelDrafter("self", greedy_with_layers(model, kept, pool), SharedBlocks(kv), shape.token_budget)


def _draft_model(
    settings: EngineSettings,
    speculation: SpeculationSettings,
    target: Model | LoweredModel,
    shape: CoreShape,
) -> HostDrafter:
    from penstock.engine.drafts.model_drafter import ModelDrafter, OwnBlocks, greedy
    from penstock.engine.shape import KV_BYTES
    from penstock.kernels.backend import BackendOptions, open_backend
    from penstock.models.load import inspect_model, load_model
    from penstock.models.sources import resolve
    from penstock.models.spec import kv_layers

    assert speculation.model is not None
    info = inspect_model(resolve(speculation.model))
    if info.spec.vocab_size != target.spec.vocab_size:
        raise ModelRefused(
            f"{speculation.model}: {info.spec.vocab_size} tokens, the model it shall draft for has "
            f"{target.spec.vocab_size}; a draft model needs the same tokenizer"
        )
    options = BackendOptions(weights=speculation.weights, threads=speculation.threads or settings.threads)
    backend = open_backend(speculation.backend, options)
    model = load_model(info, backend, context=shape.max_context)
    layers, block_size = [LayerKV(*layer) for layer in kv_layers(info.spec)], shape.layout.block_size
    layout = plan_layout(layers, block_size, KV_BYTES[backend.kv_form])
    kv_bytes = speculation.kv_bytes or shape.num_blocks * shape.layout.block_bytes // 4
    num_blocks = max(kv_bytes // layout.block_bytes, len(layout.groups))
    log.info("speculation: %s drafts, %d blocks of KV for it", speculation.model, num_blocks)
    kv = model.allocate_kv(layout, num_blocks)
    blocks = OwnBlocks(num_blocks, len(layout.groups), shape.num_slots, shape.max_context, block_size)
    return ModelDrafter("draft", greedy(model, kv), blocks, shape.token_budget)
