"""How byte-level BPE vocabularies cut text into words before merging, by GGUF `tokenizer.ggml.pre` name.

A GGUF file carries vocabulary and merges but only the *name* of the pre-tokenizer; the regular
expressions are those of the models' published tokenizers, the names those of llama.cpp's converter.
Cutting differently than in training gives legal but wrong token ids, so a name that is not in
the table is refused.

Invariant: every recipe ends in the byte alphabet, so no text is lost and none becomes unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from penstock.errors import ModelRefused

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATION_RUN = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + _WORD + r"|\p{N}{1,3}" + _PUNCTUATION_RUN + _TAIL
_QWEN2 = _CONTRACTIONS + _WORD + r"|\p{N}" + _PUNCTUATION_RUN + _TAIL
_QWEN35 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _TAIL
_SEED = _CONTRACTIONS + _WORD + r"|\p{N}| ?[^\s\p{L}\p{N}\r\n]+" + _TAIL
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)

# Words that may begin with capitals and go on in lower case: one case change per word at most.
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _TAIL
)
_GPT4O = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _TAIL
)

_CJK_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK_WIDE = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*" + _TAIL
)
# DeepSeek-LLM lists its cased letters instead of naming a category: the letters with upper and lower case
# of the Unicode version it was made with.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
_DEEPSEEK_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"

_BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"


class Recipe(Struct, frozen=True):
    """`splits` isolate their matches one after the other; `digits` then cuts every digit off.

    `ignore_merges`: a word that is a vocabulary entry is taken whole, without merging.
    """

    splits: tuple[str, ...]
    digits: bool = False
    digits_first: bool = False
    punctuation_first: bool = False
    ignore_merges: bool = False


_RECIPES: dict[str, Recipe] = {}


def _define(names: str, recipe: Recipe) -> None:
    for name in names.split():
        _RECIPES[name] = recipe


_define(
    "default gpt-2 gpt2 phi-2 mpt olmo jais gigachat mellum exaone4 trillion granite-docling a.x-4.0 "
    "jina-es jina-de jina-v2-es jina-v2-de",
    Recipe((_GPT2,)),
)
_define(
    "smollm starcoder refact granite command-r codeshell exaone minerva-7b",
    Recipe((_GPT2,), digits_first=True),
)
_define(
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    Recipe((_LLAMA3,), ignore_merges=True),
)
_define("dbrx smaug-bpe glm4 chatglm-bpe", Recipe((_LLAMA3,)))
_define("qwen2 stablelm2 deepseek-r1-qwen hunyuan megrez kormo grok-2", Recipe((_QWEN2,)))
_define("qwen35", Recipe((_QWEN35,)))
_define("tekken", Recipe((_TEKKEN,), ignore_merges=True))
_define("gpt-4o llama4 kanana2 minimax-m2", Recipe((_GPT4O,)))
_define("seed-coder", Recipe((_SEED,)))
_define("bailingmoe bailingmoe2 llada-moe", Recipe((_BAILING,)))
_define("deepseek-v3 hunyuan-dense joyai-llm", Recipe((r"\p{N}{1,3}", _CJK_KANA, _DEEPSEEK3)))
_DEEPSEEK = (r"[\r\n]", rf"\s?[{_DEEPSEEK_LETTERS}]+", _DEEPSEEK_PUNCTUATION, r"\s+$", _CJK_WIDE)
_define("deepseek-llm", Recipe(_DEEPSEEK, digits=True))
_define("deepseek-coder", Recipe((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_WIDE), digits=True))
_define("falcon", Recipe((_GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), punctuation_first=True))
_define("bloom poro-chat gpt3-finnish", Recipe((_BLOOM,)))
_define("viking", Recipe((_BLOOM,), digits=True))

KNOWN = tuple(sorted(_RECIPES))


def recipe(name: str) -> Recipe:
    """The recipe of a `tokenizer.ggml.pre` name; ModelRefused if unknown."""
    try:
        return _RECIPES[name]
    except KeyError:
        raise ModelRefused(
            f"tokenizer.ggml.pre: {name!r} is not a known pre-tokenizer, a guess would give wrong ids; "
            f"known: {', '.join(KNOWN)}"
        ) from None


def build(name: str) -> PreTokenizer:
    """The `tokenizers` pre-tokenizer for a `tokenizer.ggml.pre` name."""
    from tokenizers import Regex
    from tokenizers import pre_tokenizers as pre

    steps = recipe(name)
    chain: list[PreTokenizer] = []
    if steps.punctuation_first:
        chain.append(pre.Punctuation(behavior="contiguous"))
    if steps.digits_first:
        chain.append(pre.Digits(individual_digits=True))
    native = steps.splits == (_GPT2,)  # built into ByteLevel, twice as fast as the regular expression
    if not native:
        chain.extend(pre.Split(Regex(pattern), behavior="isolated") for pattern in steps.splits)
    if steps.digits:
        chain.append(pre.Digits(individual_digits=True))
    chain.append(pre.ByteLevel(add_prefix_space=False, use_regex=native))
    return pre.Sequence(chain)
