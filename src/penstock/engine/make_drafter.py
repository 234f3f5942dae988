"""The drafter that the settings name."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from penstock.config import EngineSettings, SpeculationSettings
from penstock.decoding.drafting.drafter import HostDrafter
from penstock.errors import ConfigError, ModelRefused
from penstock.kv.groups import LayerKV, plan_layout
from penstock.kv.resource import KVResource

if TYPE_CHECKING:
    from penstock.engine.build import CoreShape
    from penstock.models.forward import Model
    from penstock.models.lowered import LoweredModel

log = logging.getLogger("penstock.engine")


def make_drafter(
    settings: EngineSettings, model: Model | LoweredModel, pool: Any, shape: CoreShape, kv: KVResource
) -> HostDrafter:
    """`pool`: the KV that `model` runs over, `kv` the engine's blocks of it."""
    speculation = settings.speculation
    assert speculation is not None, "no drafter is named"
    match speculation.method:
        case "ngram":
            from penstock.decoding.drafting.ngram import NgramDrafter

            return NgramDrafter()
        case "suffix":
            from penstock.decoding.drafting.suffix import SuffixDrafter

            return SuffixDrafter()
        case "self":
            return _first_layers(speculation, model, pool, shape, kv)
        case "draft":
            return _draft_model(settings, speculation, model, shape)


def _first_layers(
    speculation: SpeculationSettings, model: Model | LoweredModel, pool: Any, shape: CoreShape, kv: KVResource
) -> HostDrafter:
    from penstock.engine.model_drafter import ModelDrafter, SharedBlocks, greedy
    from penstock.models.lowered import LoweredModel

    total = len(model.spec.layers)
    count = speculation.layers or max(1, total // 3)
    if count >= total:
        raise ConfigError(f"speculation.layers: {count} of the model's {total}; leave at least one out")
    if isinstance(model, LoweredModel):
        forward = greedy(model.first_layers(count, pool), pool)
    else:
        forward = greedy(model.first_layers(count), pool[:count])
    return ModelDrafter("self", forward, SharedBlocks(kv), shape.token_budget)


def _draft_model(
    settings: EngineSettings,
    speculation: SpeculationSettings,
    target: Model | LoweredModel,
    shape: CoreShape,
) -> HostDrafter:
    from penstock.engine.build import KV_BYTES
    from penstock.engine.model_drafter import ModelDrafter, OwnBlocks, greedy
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
