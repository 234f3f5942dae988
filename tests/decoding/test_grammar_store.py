"""GrammarStore: once per spec, bounded, and never twice for those who hold it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.decoding.grammar.spec import GrammarSpec
from penstock.decoding.grammar.store import GrammarStore
from penstock.errors import InvalidRequest, Overloaded


class _Compiled:
    backend = "test"


class _Backend:
    """Compiles when it is let to; "bad" is refused."""

    name = "test"

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.compiled: list[str] = []

    def compile(self, spec: GrammarSpec) -> Any:
        assert self.go.wait(60)
        self.compiled.append(spec.source)
        if spec.source == "bad":
            raise InvalidRequest("no")
        return _Compiled()


@pytest.fixture
def backend() -> Iterator[_Backend]:
    made = _Backend()
    yield made
    made.go.set()


def _store(backend: _Backend, **limits: Any) -> GrammarStore:
    return GrammarStore(backend, lambda: pytest.fail("no vocabulary is needed"), **limits)


def _spec(source: str) -> GrammarSpec:
    return GrammarSpec("regex", source)


def test_a_spec_is_compiled_once_for_all_who_ask_meanwhile(backend: _Backend) -> None:
    """Red if a burst of equal requests compiles one schema many times."""
    store = _store(backend)
    backend.go.clear()
    futures = [store.compile(_spec("a")) for _ in range(5)]
    backend.go.set()
    assert len({id(future.result(60)) for future in futures}) == 1
    assert backend.compiled == ["a"]


def test_a_refusal_is_remembered_and_raised(backend: _Backend) -> None:
    """Red if a bad schema costs a compilation each time it is sent."""
    store = _store(backend)
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            store.compiled(_spec("bad"))
    assert backend.compiled == ["bad"]


def test_too_many_that_wait_are_told_to_come_back(backend: _Backend) -> None:
    """Red if clients can queue compilations without bound."""
    store = _store(backend, pending=2)
    backend.go.clear()
    waiting = [store.compile(_spec(name)) for name in "ab"]
    with pytest.raises(Overloaded):
        store.compile(_spec("c"))
    backend.go.set()
    for future in waiting:
        future.result(60)
    store.compile(_spec("c")).result(60)


def test_what_a_request_holds_is_not_compiled_again(backend: _Backend) -> None:
    """Red if the device compiles, in the middle of a step, what the cache forgot while its request waited."""
    store = _store(backend, entries=1)
    held = store.compiled(_spec("a"))
    store.compiled(_spec("b"))
    assert store.compiled(_spec("a")) is held
    assert backend.compiled == ["a", "b"]
    del held
    store.compiled(_spec("c"))
    gc.collect()
    store.compiled(_spec("a"))
    assert backend.compiled == ["a", "b", "c", "a"]


def test_what_takes_too_long_is_refused_but_not_for_ever(backend: _Backend) -> None:
    """Red if a request waits without end, or a busy moment makes a schema unusable."""
    store = _store(backend, wait_s=0.01)
    backend.go.clear()
    with pytest.raises(InvalidRequest, match="longer than"):
        store.compile(_spec("a")).result(60)
    backend.go.set()
    store._wait_s = 60.0
    assert isinstance(store.compiled(_spec("a")), _Compiled)


def test_a_busy_machine_refuses_no_simple_grammar(backend: _Backend) -> None:
    """Red if the clock goes on while the compiling thread is kept from the processor."""
    store = _store(backend, compile_s=0.2)
    backend.go.clear()
    future = store.compile(_spec("a"))
    with pytest.raises(TimeoutError):
        future.result(1.0)
    backend.go.set()
    assert isinstance(future.result(60), _Compiled)


def test_a_grammar_that_keeps_the_processor_busy_is_given_up() -> None:
    """Red if one schema can occupy a compiling thread, and its request, for as long as the clock allows."""
    stop = threading.Event()

    class Endless(_Backend):
        def compile(self, spec: GrammarSpec) -> Any:
            while not stop.is_set():
                pass
            return _Compiled()

    store = _store(Endless(), compile_s=0.05, wait_s=60.0)
    with pytest.raises(InvalidRequest, match="longer than"):
        store.compile(_spec("a")).result(30)
    stop.set()
