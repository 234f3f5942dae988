"""SamplingParams: how tokens are chosen and when generation ends; and its ranges, stated once."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import Struct

from penstock.errors import InvalidRequest

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024
MAX_TOKEN_SET = 4096  # stop ids, bad words, logit_bias entries

# field: (low, high, low is open)
RANGES: dict[str, tuple[float, float, bool]] = {
    "n": (1, MAX_N, False),
    "min_tokens": (0, math.inf, False),
    "temperature": (0.0, 100.0, False),
    "top_p": (0.0, 1.0, True),
    "top_k": (-1, math.inf, False),
    "min_p": (0.0, 1.0, False),
    "typical_p": (0.0, 1.0, True),
    "repetition_penalty": (0.0, 100.0, True),
    "presence_penalty": (-2.0, 2.0, False),
    "frequency_penalty": (-2.0, 2.0, False),
    "seed": (-(2**63), 2**64 - 1, False),
    "max_tokens": (1, math.inf, False),
    "thinking_budget": (-1, math.inf, False),
    "logprobs": (0, MAX_LOGPROBS, False),
    "prompt_logprobs": (0, MAX_LOGPROBS, False),
}

_SIZES = {
    "stop": MAX_STOP_STRINGS,
    "stop_token_ids": MAX_TOKEN_SET,
    "bad_words": MAX_TOKEN_SET,
    "logit_bias": MAX_TOKEN_SET,
}


class SamplingParams(Struct, frozen=True, kw_only=True):
    """How tokens are chosen and when generation ends. Public in the Python API.

    Defaults are neutral: every field left alone means "the model's own distribution".
    `validate()` raises InvalidRequest naming the field, the value and the range.
    """

    n: int = 1
    max_tokens: int | None = None  # None: what is left of the context
    min_tokens: int = 0
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 (or -1): off
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0  # over prompt and output, as in CTRL (arXiv:1909.05858)
    presence_penalty: float = 0.0  # over output only, as in the OpenAI API
    frequency_penalty: float = 0.0  # over output only, as in the OpenAI API
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    # Tokens of reasoning at most, in all sections of an answer; then its end is forced. -1: any number.
    # A model that does not reason is not affected.
    thinking_budget: int | None = None
    seed: int | None = None
    logprobs: int | None = None  # top-N beside the chosen token; 0: the chosen one only
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    # What the answer must look like; one of them at most.
    json_schema: dict[str, Any] | bool | str | None = None  # a schema, or its JSON text
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None  # in Lark's notation or GBNF
    structural_tag: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        # Lists are the natural thing to write in Python; tuples keep the struct hashable.
        for field in ("bad_words", "stop", "stop_token_ids", "allowed_token_ids", "choice"):
            value = getattr(self, field)
            if isinstance(value, str):
                msgspec.structs.force_setattr(self, field, (value,))
            elif isinstance(value, list):
                msgspec.structs.force_setattr(self, field, tuple(value))

    def validate(self) -> SamplingParams:
        """Check every range; returns self. Raises InvalidRequest naming the field."""
        try:
            check_sampling(self)
        except TypeError:  # a value that can't be compared at all; msgspec names its field
            try:
                msgspec.convert(msgspec.structs.asdict(self), SamplingParams)
            except msgspec.ValidationError as error:
                raise InvalidRequest(f"params: {error}", param="params") from None
            raise
        return self


def check_sampling(params: SamplingParams) -> None:
    """Raise InvalidRequest for the first field out of its range."""
    for field, (low, high, low_open) in RANGES.items():
        value = getattr(params, field)
        if value is None:
            continue
        below = value <= low if low_open else value < low
        if below or value > high or (isinstance(value, float) and not math.isfinite(value)):
            bracket = "(" if low_open else "["
            raise InvalidRequest(f"{field}: {value} is outside {bracket}{low:g}, {high:g}]", param=field)
    for field, most in _SIZES.items():
        value = getattr(params, field)
        if value is not None and len(value) > most:
            raise InvalidRequest(f"{field}: {len(value)} entries, at most {most}", param=field)
    for text in (*params.stop, *params.bad_words):
        if not text:
            raise InvalidRequest(
                "stop and bad_words: an empty string matches everywhere; drop it", param="stop"
            )
        if len(text) > MAX_STOP_CHARS:
            raise InvalidRequest(
                f"stop: a string of {len(text)} characters, at most {MAX_STOP_CHARS}", param="stop"
            )
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        raise InvalidRequest(
            f"min_tokens: {params.min_tokens} is above max_tokens ({params.max_tokens})", param="min_tokens"
        )
    if params.allowed_token_ids is not None and not params.allowed_token_ids:
        raise InvalidRequest(
            "allowed_token_ids: an empty list allows no token; leave it out", param="allowed_token_ids"
        )
    for token, bias in (params.logit_bias or {}).items():
        if not math.isfinite(bias) or abs(bias) > 100:
            raise InvalidRequest(
                f"logit_bias: {bias} for token {token} is outside [-100, 100]", param="logit_bias"
            )
