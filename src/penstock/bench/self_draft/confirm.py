"""The engine's own word: plain decoding and self-drafting in turn, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from penstock.llm import LLM, SamplingParams

REPEATS = 5


def measured_ratio(
    engine: dict[str, Any],
    setting: dict[str, Any],
    prompts: Sequence[np.ndarray],
    tokens: int,
    temperature: float,
) -> float:
    """Speed of an engine with `setting` as its speculation, of one without it; one request at a time. The
    median over REPEATS rounds, each with prompts of its own."""
    params = [
        SamplingParams(max_tokens=tokens, temperature=temperature, seed=turn, ignore_eos=True)
        for turn in range(REPEATS + 1)
    ]
    ratios = []
    with LLM(**engine) as plain, LLM(**engine, speculation={**setting, "adaptive": False}) as drafting:
        for turn, each in enumerate(params):
            taken = []
            for llm in (plain, drafting):
                began = time.perf_counter()
                for prompt in prompts[turn :: len(params)] or prompts[:1]:
                    llm.generate([prompt.tolist()], each, progress=False)
                taken.append(time.perf_counter() - began)
            if turn:
                ratios.append(taken[0] / taken[1])
    return statistics.median(ratios)
