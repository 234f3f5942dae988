"""Penstock: an LLM inference stack in one package.

`from penstock import LLM, AsyncLLM, SamplingParams`. Names are resolved on first use, so that
`import penstock` itself costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.call import SamplingParams
    from penstock.llm import LLM, AsyncLLM

__all__ = ["LLM", "AsyncLLM", "SamplingParams", "__version__"]

__version__ = "0.1.0"

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
