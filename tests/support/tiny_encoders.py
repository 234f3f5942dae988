"""Tiny random encoders in folders that can be served: BERT, RoBERTa, cross-encoders, by transformers.

`make_tiny_encoder(variant, folder)` writes config.json, model.safetensors, a WordPiece tokenizer and, where
the variant has them, sentence-transformers' files. Sizes are odd on purpose: heads of 5 and 24, widths that
are no multiple of a panel.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

_LETTERS = string.ascii_lowercase + string.digits + ".,?!"
WORDS = ("the", "a", "cat", "dog", "sat", "on", "mat", "stock", "market", "fell", "kitten", "and", "ran")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB = (*SPECIAL, *WORDS, *_LETTERS, *("##" + letter for letter in _LETTERS))

_BASE: dict[str, Any] = {
    "vocab_size": len(VOCAB),
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "intermediate_size": 52,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}

# Variant -> (class in transformers, configuration, pooling and norm of modules.json or None).
TINY: dict[str, tuple[str, dict[str, Any], tuple[str, bool] | None]] = {
    "bert-mean": ("BertModel", {}, ("mean", True)),
    "bert-cls": (
        "BertModel",
        {"hidden_size": 48, "num_attention_heads": 2, "hidden_act": "relu"},
        ("cls", False),
    ),
    "bert-last": ("BertModel", {"hidden_act": "gelu_new", "type_vocab_size": 1}, ("lasttoken", True)),
    "bert-bare": ("BertModel", {"hidden_act": "silu", "layer_norm_eps": 1e-5}, None),
    "roberta": ("RobertaModel", {"pad_token_id": 1, "type_vocab_size": 1}, ("mean", True)),
    "cross": ("BertForSequenceClassification", {"num_labels": 1}, None),
    "cross-roberta": ("RobertaForSequenceClassification", {"num_labels": 1, "pad_token_id": 1}, None),
    "classes": ("BertForSequenceClassification", {"num_labels": 3}, None),
}
EMBEDDERS = tuple(name for name, (kind, _, _) in TINY.items() if kind.endswith("Model"))
CROSS_ENCODERS = ("cross", "cross-roberta")


def make_tiny_encoder(variant: str, folder: Path, seed: int = 0) -> Any:
    """Write the model and return transformers' own, in eval mode."""
    import torch
    import transformers

    kind, changes, modules = TINY[variant]
    torch.manual_seed(seed)
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**(_BASE | changes))).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    if modules is not None:
        _write_modules(folder, *modules)
    return model


def write_tokenizer(folder: Path) -> None:
    """WordPiece over a few words and single letters, with the padding that some files ask for left in."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({text: i for i, text in enumerate(VOCAB)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(12)
    tokenizer.save(str(folder / "tokenizer.json"))


def _write_modules(folder: Path, pooling: str, normalize: bool) -> None:
    steps = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{step}"}
        for i, step in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
    (folder / "1_Pooling").mkdir()
    if pooling == "lasttoken":  # the newer spelling
        config: dict[str, Any] = {"pooling_mode": "lasttoken"}
    else:
        config = {
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
        }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
