"""The grammar backends that are installed, each over the vocabulary of `grammar_tokens`."""

from __future__ import annotations

import pytest
from grammar_tokens import vocabulary

from penstock.decoding.grammar.backend import GrammarBackend
from penstock.decoding.grammar.backends import make_backend, unavailable


def installed(name: str) -> str:
    """`name`; skips the test where that backend is not there."""
    if reason := unavailable(name):
        pytest.skip(f"{name} is {reason}")
    return name


@pytest.fixture(scope="session", params=["llguidance", "xgrammar"])
def backend(request: pytest.FixtureRequest) -> GrammarBackend:
    return make_backend(installed(request.param), vocabulary)


@pytest.fixture(scope="session")
def llguidance() -> GrammarBackend:
    return make_backend("llguidance", vocabulary)


@pytest.fixture(scope="session")
def xgrammar() -> GrammarBackend:
    return make_backend(installed("xgrammar"), vocabulary)
