"""Penstock: an LLM inference stack in one package.

`from penstock import LLM, AsyncLLM, SamplingParams`. Names are resolved on first use, so that
`import penstock` itself costs nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.call import SamplingParams
    from penstock.llm import LLM, AsyncLLM

__all__ = ["LLM", "AsyncLLM", "SamplingParams", "__version__"]

__version__ = "0.1.0"

# Read by numpy's OpenBLAS when it loads, so it must stand before numpy's import. Its workers spin 2**26
# cycles between products by default and starve whoever shares their core: batch 1 fell from 21 to 0.8
# tokens/s beside a busy neighbour. 2**14 sleeps between steps, not within one: 30 alone, 11 to 18 beside
# a neighbour. What the user set stays.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "14")

_HOMES = {"LLM": "penstock.llm", "AsyncLLM": "penstock.llm", "SamplingParams": "penstock.call"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
