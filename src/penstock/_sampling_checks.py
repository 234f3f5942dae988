"""Ranges of SamplingParams, stated once. Errors name the field, the value and the range."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penstock.errors import InvalidRequest

if TYPE_CHECKING:
    from penstock.call import SamplingParams

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024
MAX_TOKEN_SET = 4096  # stop ids, bad words, logit_bias entries

# field: (low, high, low is open)
_RANGES: dict[str, tuple[float, float, bool]] = {
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
    "logprobs": (0, MAX_LOGPROBS, False),
    "prompt_logprobs": (0, MAX_LOGPROBS, False),
}

_SIZES = {
    "stop": MAX_STOP_STRINGS,
    "stop_token_ids": MAX_TOKEN_SET,
    "bad_words": MAX_TOKEN_SET,
    "logit_bias": MAX_TOKEN_SET,
}


def check_sampling(params: SamplingParams) -> None:
    """Raise InvalidRequest for the first field out of its range."""
    for field, (low, high, low_open) in _RANGES.items():
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
