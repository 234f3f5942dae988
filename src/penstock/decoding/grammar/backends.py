"""The grammar backends by name, and their union."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import threading
from collections.abc import Callable, Sequence

from penstock.decoding.grammar.backend import CompiledGrammar, GrammarBackend, Vocabulary
from penstock.decoding.grammar.llguidance_backend import LLGuidanceBackend
from penstock.decoding.grammar.spec import GrammarSpec
from penstock.decoding.grammar.xgrammar_backend import XGrammarBackend
from penstock.errors import ConfigError, EngineUnavailable, InvalidRequest

log = logging.getLogger("penstock.engine")

# By name: the modules that a backend needs, and what installs them.
BACKENDS = {
    "llguidance": (("llguidance",), "penstock"),
    "xgrammar": (("xgrammar", "tvm_ffi", "torch", "transformers"), "'penstock[xgrammar]'"),
}
NAMES = ("auto", *BACKENDS)


class UnionBackend:
    """The first that honours a spec serves it. If none does, the refusal is that of the first, and what the
    others say behind it."""

    name = "auto"

    def __init__(self, backends: Sequence[GrammarBackend]) -> None:
        self._backends = tuple(backends)
        self._lock = threading.Lock()
        self._logged: set[str] = set()
        self.fallbacks = 0

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        refusals: list[tuple[str, InvalidRequest | EngineUnavailable]] = []
        for backend in self._backends:
            try:
                compiled = backend.compile(spec)
            except (InvalidRequest, EngineUnavailable) as refusal:
                refusals.append((backend.name, refusal))
                continue
            if refusals:
                self._count(spec, backend.name, refusals[0][1].message)
            return compiled
        first = refusals[0][1]
        others = "".join(
            f"; {name} says: {refusal.message.removeprefix(f'{refusal.param}: ')}"
            for name, refusal in refusals[1:]
        )
        raise InvalidRequest(first.message + others, param=first.param, code=first.code)

    def _count(self, spec: GrammarSpec, name: str, refusal: str) -> None:
        with self._lock:
            self.fallbacks += 1
            is_new = spec.kind not in self._logged
            self._logged.add(spec.kind)
        if is_new:
            log.warning(
                "%s: %s serves what the first grammar backend refuses (%s); said once a kind, counted in "
                "penstock_grammar_fallbacks_total",
                spec.kind,
                name,
                refusal[:200],
            )


def unavailable(name: str) -> str | None:
    """Why a backend can't be used here; None if it can."""
    modules, package = BACKENDS[name]
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    return f"not installed ({', '.join(missing)} missing); pip install {package}"


def make_backend(name: str, vocabulary: Callable[[], Vocabulary]) -> GrammarBackend:
    """`auto`: llguidance, and xgrammar for what it refuses, where that is installed. Raises ConfigError."""
    if name not in NAMES:
        raise ConfigError(f"grammar_backend: {name!r} is unknown; use one of {', '.join(NAMES)}")
    if name == "llguidance":
        return LLGuidanceBackend(vocabulary)
    reason = unavailable("xgrammar")
    if name == "auto":
        others = [XGrammarBackend(vocabulary)] if reason is None else []
        return UnionBackend([LLGuidanceBackend(vocabulary), *others])
    if reason is not None:
        raise ConfigError(f"grammar_backend: xgrammar is {reason}, or use auto")
    try:
        importlib.import_module("xgrammar")  # torch comes with it: now, not under the first request
    except Exception as error:
        raise ConfigError(f"grammar_backend: xgrammar can't be imported: {error}") from error
    return XGrammarBackend(vocabulary)
