"""Tiny random models of every served architecture, in folders that can be served.

`make_tiny(arch, folder)` writes config.json, model.safetensors (float32), a byte-level tokenizer
with a ChatML template, and generation_config.json. Sizes are small, features are not: windows are
shorter than a test's sequence, soft caps bite, norm gains, biases and sinks are random.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCAB_SIZE = 320
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "pad_token_id": 256,
}
_HALF = {"rope_type": "default", "rope_theta": 10000.0}
_MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}

# Variant -> (class prefix in transformers, configuration).
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}),
    "llama3": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama_bias": (
        "Llama",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 11, "head_dim": 8}),
    "qwen2": (
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2_yarn": (
        "Qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
    ),
    "qwen3": (
        "Qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 10, "max_window_layers": 2},
    ),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 16,
            "sliding_window": 7,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "num_hidden_layers": 6,
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "phi3": (
        "Phi3",
        {
            "hidden_size": 64,
            "sliding_window": 13,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "phi3_longrope": (
        "Phi3",
        {
            "hidden_size": 64,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7],
                "long_factor": [1.0, 1.6, 2.2, 3.1, 4.5, 6.0],
            },
        },
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "no_rope_layer_interval": 2}),
    "granite": (
        "Granite",
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            "num_hidden_layers": 4,
            "hidden_size": 64,
            "intermediate_size": 64,
            "head_dim": 16,
            "sliding_window": 8,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 12}),
    "qwen2_moe": (
        "Qwen2Moe",
        {**_MOE, "shared_expert_intermediate_size": 56, "num_hidden_layers": 4, "mlp_only_layers": [1]},
    ),
    "qwen3_moe": ("Qwen3Moe", {**_MOE, "head_dim": 16, "norm_topk_prob": True, "decoder_sparse_step": 1}),
}


def make_tiny(arch: str, folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Write the tiny model of variant `arch` (a key of TINY) into `folder`, which is returned.

    `overrides` replace keys of the configuration."""
    import torch
    import transformers

    prefix, fields = TINY[arch]
    config_class = {"Gemma3": "Gemma3TextConfig"}.get(prefix, f"{prefix}Config")
    config = getattr(transformers, config_class)(**(_BASE | fields | overrides))
    with torch.random.fork_rng():
        model = getattr(transformers, f"{prefix}ForCausalLM")(config).float()
    _randomize(model, seed, gain=0.0 if prefix.startswith("Gemma") else 1.0)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def _randomize(model: Any, seed: int, gain: float) -> None:
    """Weights of variance 1/fan-in, norm gains around `gain`, biases and sinks of some size."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(gain + 0.3 * noise)
            elif "bias" in name or "sinks" in name:
                parameter.copy_(0.5 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise if model.config.hidden_size < 64 else 0.7 * noise)
            else:
                parameter.copy_(1.3 * noise / parameter.shape[-1] ** 0.5)


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json (byte-level BPE of VOCAB_SIZE entries) and tokenizer_config.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    for token in SPECIAL:
        vocabulary[token] = len(vocabulary)
    merges = []
    for first in "teaoinshrlduc":
        for second in "eatonihr":
            if first + second not in vocabulary and len(vocabulary) < VOCAB_SIZE:
                vocabulary[first + second] = len(vocabulary)
                merges.append((first, second))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def load_oracle(folder: Path) -> Any:
    """transformers' model of `folder`, float32, eager attention, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def oracle_logits(model: Any, tokens: list[int]) -> Any:
    """float32[len(tokens), V] as numpy, from one full pass."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def oracle_greedy(model: Any, tokens: list[int], count: int) -> list[int]:
    """`count` greedy tokens, each from a full pass without cache."""
    sequence = list(tokens)
    for _ in range(count):
        sequence.append(int(oracle_logits(model, sequence)[-1].argmax()))
    return sequence[len(tokens) :]
