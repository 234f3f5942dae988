"""What transformers generated, stored once: see tests/oracle/make_greedy_fixture.py."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

_FIXTURE = Path(__file__).resolve().parents[1] / "oracle" / "greedy_smollm2.json.gz"


def read_greedy() -> dict[str, Any]:
    """The whole document: versions, model_sha256, min_margin, replaced, prompts."""
    return json.loads(gzip.decompress(_FIXTURE.read_bytes()))


def tokens_of(text: str) -> np.ndarray:
    """int32[n] from base64 of little-endian u16."""
    return np.frombuffer(base64.b64decode(text), "<u2").astype(np.int32)


def load_greedy() -> list[tuple[np.ndarray, np.ndarray, float]]:
    """100 times (prompt int32[1..1500], greedy output int32[64], smallest gap of the two best logits).

    Some prompts share prefixes, repeat, or continue an earlier prompt and its output, in the order in which
    they must be sent for those to be hits. No gap is below 2e-4, so float32 decides every token.
    """
    return [
        (tokens_of(p["prompt"]), tokens_of(p["output"]), p["min_margin"]) for p in read_greedy()["prompts"]
    ]
