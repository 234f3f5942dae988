"""The architectures that Penstock serves: one mapping file each, listed here."""

from __future__ import annotations

from penstock.errors import ModelRefused
from penstock.models.arch import (
    bert,
    gemma2,
    gemma3,
    gpt_oss,
    granite,
    llama,
    mistral,
    mixtral,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    smollm3,
)
from penstock.models.arch.base import Architecture
from penstock.models.arch.config import Config
from penstock.models.arch.gguf import gguf_config
from penstock.models.tensors import TensorNames
from penstock.models.weights.source import WeightSource

_MODULES = (
    llama, mistral, qwen2, qwen3, gemma2, gemma3, phi3, smollm3, granite, gpt_oss, mixtral, qwen2_moe,
    qwen3_moe,
)  # fmt: skip
ARCHITECTURES: dict[str, Architecture] = {m.ARCHITECTURE.name: m.ARCHITECTURE for m in _MODULES}


def identify(source: WeightSource) -> tuple[Architecture, Config, TensorNames]:
    """The architecture of `source`, its configuration and its tensor names (ModelRefused if none)."""
    if source.kind == "gguf":
        return _identify_gguf(source)
    config = dict(source.config)
    if isinstance(text := config.get("text_config"), dict):
        config = {"tie_word_embeddings": config.get("tie_word_embeddings"), **text}
    model_type = source.config.get("model_type")
    for architecture in ARCHITECTURES.values():
        if model_type in architecture.model_types:
            return architecture, Config(config), architecture.hf_names
    if model_type in bert.MODEL_TYPES:
        raise ModelRefused(
            f"architecture {model_type!r} embeds, it does not generate; serve it beside a model "
            "that does, with --embedding-models"
        )
    known = ", ".join(t for a in ARCHITECTURES.values() for t in a.model_types)
    raise ModelRefused(f"architecture {model_type!r} is not supported; supported are {known}")


def _identify_gguf(source: WeightSource) -> tuple[Architecture, Config, TensorNames]:
    name = source.metadata.get("general.architecture")
    experts = bool(source.metadata.get(f"{name}.expert_count"))
    served = [a for a in ARCHITECTURES.values() if a.gguf_arch == name]
    if not served:
        known = ", ".join(dict.fromkeys(a.gguf_arch for a in ARCHITECTURES.values() if a.gguf_arch))
        raise ModelRefused(f"GGUF architecture {name!r} is not supported; supported are {known}")
    architecture = next((a for a in served if a.gguf_experts == experts), served[0])
    config = gguf_config(source, str(name))
    return architecture, Config(config | architecture.gguf_extra(source, config)), architecture.gguf_names
