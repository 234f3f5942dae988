"""Vocabulary: what a loader (GGUF metadata, tokenizer.json) hands to `Tokenizer`.

Invariants: `backend` encodes to ids below `size`; `added` holds the text of every token that is matched
whole in a text; `special_ids` are those of them that `skip_special` leaves out of decoded text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from penstock.text.pieces import Spelling

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

# Tokens that end a turn, by text: formats name one end-of-sequence id, models use several.
END_TOKENS = frozenset(
    {
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<turn|>",
        "<|END_OF_TURN_TOKEN|>",
        "<end_of_utterance>",
        "<EOT>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
)


class Vocabulary(Struct, frozen=True, kw_only=True):
    """`continuation`: the backend without the automatic leading space, for text that goes on mid-sentence
    (None: `backend` adds none). `strip_leading_space`: decoding a whole text drops that space again.
    `bos_id`, `eos_ids`, `templates`, `special_tokens` (role name -> text) as the model declares them.
    `infill_ids`: fill-in-the-middle tokens that the model declares, by role: prefix, suffix, middle, end.
    """

    backend: Backend
    spelling: Spelling
    size: int
    added: Mapping[int, str]
    special_ids: frozenset[int]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    strip_leading_space: bool
    templates: Mapping[str, str]
    special_tokens: Mapping[str, str]
    digest: str
    infill_ids: Mapping[str, int] = {}


def end_ids(declared: list[int], added: Mapping[int, str]) -> tuple[int, ...]:
    """All ids that end a turn: declared ones first, then well-known added tokens by text.

    In the harmony format `<|end|>` only separates messages of one answer; `<|return|>` and
    `<|call|>` end it.
    """
    names = set(added.values())
    known = END_TOKENS - {"<|end|>"} if {"<|return|>", "<|call|>"} <= names else END_TOKENS
    found = [token for token, text in added.items() if text in known]
    return tuple(dict.fromkeys([*declared, *sorted(found)]))
