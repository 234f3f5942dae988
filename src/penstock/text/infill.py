"""Infill: a prompt that asks for the text between a beginning and an end.

Models trained for it know three marker tokens. Most read `prefix-marker BEGINNING suffix-marker END
middle-marker` and go on with what is between (PSM, arXiv:2207.14255); Codestral reads
`[SUFFIX]END[PREFIX]BEGINNING`. Nothing in the two texts counts as a marker, whatever is written there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from penstock.errors import InvalidRequest

if TYPE_CHECKING:
    from penstock.text.tokenizer import Tokenizer

# Spellings of the markers of beginning, end and middle.
_MARKERS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),  # Code Llama
)
_SUFFIX_FIRST = ("[PREFIX]", "[SUFFIX]")  # Codestral
# What such a model writes behind the middle: the end of the hole, or the next file.
_ENDS = (
    *("<|fim_pad|>", "<fim_pad>", "<fim-pad>", "<|file_sep|>", "<|file_separator|>", "<file_sep>"),
    *("<|repo_name|>", "<repo_name>", "\u2581<EOT>", "[MIDDLE]"),
)


class InfillMarkers(Struct, frozen=True):
    """Token ids. middle: None where the end comes first and nothing stands behind the beginning. ends: those
    that end an answer."""

    prefix: int
    suffix: int
    middle: int | None
    ends: tuple[int, ...]

    def prompt(self, tokenizer: Tokenizer, beginning: list[int], end: str) -> list[int]:
        """`beginning` is in ids, without BOS."""
        bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        after = [self.suffix, *tokenizer.encode_continuation(end, parse_special=False)]
        before = [self.prefix, *beginning]
        return [*bos, *after, *before] if self.middle is None else [*bos, *before, *after, self.middle]


def infill_markers(tokenizer: Tokenizer) -> InfillMarkers | None:
    """Those that the model's file declares, else known ones of its vocabulary; None if it has none."""
    declared = tokenizer.infill_ids
    found: tuple[int | None, ...] = tuple(map(declared.get, ("prefix", "suffix", "middle")))
    names = iter(_MARKERS)
    while None in found:
        spelled = next(names, None)
        if spelled is None:
            found = (*map(tokenizer.token_id, _SUFFIX_FIRST), None)
            break
        found = tuple(map(tokenizer.token_id, spelled))
    prefix, suffix, middle = found
    if prefix is None or suffix is None:
        return None
    others = (token for name in _ENDS if (token := tokenizer.token_id(name)) is not None)
    ends = [declared.get("end"), prefix, suffix, middle, *others]
    return InfillMarkers(prefix, suffix, middle, tuple(dict.fromkeys(i for i in ends if i is not None)))


def needed_markers(tokenizer: Tokenizer, model: str) -> InfillMarkers:
    """InvalidRequest for a model that has none."""
    markers = infill_markers(tokenizer)
    if markers is None:
        raise InvalidRequest(
            f"suffix: {model} does not support insert: its vocabulary has no fill-in-the-middle tokens; "
            "leave suffix out or use a model trained for it",
            param="suffix",
        )
    return markers
