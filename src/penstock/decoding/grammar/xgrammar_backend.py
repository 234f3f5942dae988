"""xgrammar: the second backend, an extra (`pip install 'penstock[xgrammar]'`).

Its masks are tables that are made when a grammar is compiled: 3 us where llguidance takes 8, for tens to
hundreds of milliseconds of compiling instead of one. Of the library its automata and its parser are used. Its
own reading of JSON schemas is not: it drops what it does not know, and what it knows it keeps in part
(control characters in strings with a length, names of members spelled with escapes): of 220 schemas of
JSONSchemaBench it takes wrong instances for 6. `ebnf/` writes the grammars.

Source: github.com/mlc-ai/xgrammar.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from penstock.decoding.grammar.backend import GrammarBroken, Vocabulary, mask_words, refusal
from penstock.decoding.grammar.ebnf.rules import UnkeptError
from penstock.decoding.grammar.ebnf.sources import source_of
from penstock.decoding.grammar.spec import GrammarSpec
from penstock.errors import EngineUnavailable

STEP_S = 0.1  # of a processor, for one mask or one token: real schemas take a hundredth


class _Tokens:
    """What the matchers of one vocabulary share."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        tokens = vocabulary.tokenizer
        self.encode = tokens.encode_continuation
        self.piece = tokens.piece
        self.ends = frozenset(tokens.eos_ids)
        self.pieces = [
            b"" if token in tokens.special_ids else tokens.piece(token) for token in range(tokens.vocab_size)
        ]
        self._sorted = sorted(filter(None, self.pieces))
        self._longest = max(map(len, self.pieces), default=0)
        bits = np.arange(mask_words(vocabulary.size) * 32)
        self.every = _packed(bits < vocabulary.size)
        self.only_ends = _packed(np.isin(bits, list(self.ends)))

    def settled(self, text: bytes) -> int:
        """How many bytes of `text` keep their tokens whatever follows: no token begins in them and goes on
        behind the end."""
        for at in range(max(0, len(text) - self._longest), len(text)):
            rest = text[at:]
            place = bisect.bisect_right(self._sorted, rest)
            if place < len(self._sorted) and self._sorted[place].startswith(rest):
                return at
        return len(text)


def _packed(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits, bitorder="little").view(np.int32)


class XGrammarMatcher:
    def __init__(self, compiled: Any, tokens: _Tokens, may_force: bool) -> None:
        from xgrammar import GrammarMatcher

        self._may_force = may_force
        self._matcher = GrammarMatcher(compiled)
        self._tokens = tokens
        self._taken: list[int] = []
        self._slow_s = 0.0  # of the call that took too long

    def fill(self, mask: np.ndarray) -> None:
        if self._matcher.is_terminated():
            mask[:] = self._tokens.only_ends
            return
        try:
            with self._timed():
                self._matcher.fill_next_token_bitmask(mask[None])
        except Exception as error:
            raise GrammarBroken(f"the grammar can't be followed further: {error}") from error
        if self._slow_s:
            raise GrammarBroken(
                f"the grammar can't be followed further: one token took {self._slow_s:.1f} s, at most "
                f"{STEP_S:g} s; make it less ambiguous"
            )
        mask &= self._tokens.every

    def consume(self, token: int) -> bool:
        if self._slow_s or self._matcher.is_terminated():
            return False
        with self._timed():
            taken = self._matcher.accept_token(token)
        if taken:
            self._taken.append(token)
        return bool(taken)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """The library has no limit of its own, and what an ambiguous grammar takes grows with every token."""
        began = time.thread_time()
        yield
        if (took := time.thread_time() - began) > STEP_S:
            self._slow_s = took

    def rollback(self, tokens: int) -> None:
        if tokens > len(self._taken):
            raise GrammarBroken(f"the grammar can't be rolled back by {tokens} of {len(self._taken)} tokens")
        if tokens:
            self._matcher.rollback(tokens)
            del self._taken[-tokens:]

    def forced(self) -> list[int]:
        """The library forces bytes. They are spelled behind the last token: where that would have been
        another one, had the model known what is forced, nothing is. Tokens that what follows could change are
        left."""
        if not self._may_force or self._slow_s or self._matcher.is_terminated():
            return []
        try:
            text = self._matcher.find_jump_forward_string()
            last = self._tokens.piece(self._taken[-1]).decode() if self._taken else ""
        except UnicodeDecodeError:  # inside of a character
            return []
        if not text:
            return []
        spelled = self._tokens.encode(last + text)
        before = self._taken[-1:]
        if spelled[: len(before)] != before:
            return []
        return self._settled(spelled[len(before) :], text.encode())

    def _settled(self, spelled: list[int], text: bytes) -> list[int]:
        keep, end, count = self._tokens.settled(text), 0, 0
        for token in spelled:
            end += len(self._tokens.piece(token))
            if end > keep:
                break
            count += 1
        return spelled[: self.accepts(spelled[:count])]

    def accepts(self, tokens: Sequence[int]) -> int:
        done = 0
        while done < len(tokens) and self.consume(tokens[done]):
            done += 1
        self.rollback(done)
        return done

    @property
    def is_complete(self) -> bool:
        return bool(self._matcher.is_completed())


class _Compiled:
    backend = "xgrammar"

    def __init__(self, compiled: Any, tokens: _Tokens, may_force: bool) -> None:
        self._compiled, self._tokens, self._may_force = compiled, tokens, may_force

    def matcher(self) -> XGrammarMatcher:
        return XGrammarMatcher(self._compiled, self._tokens, self._may_force)


class XGrammarBackend:
    name = "xgrammar"
    fallbacks = 0

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        """`vocabulary` is asked for on first use: it may have to be loaded."""
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._ready: tuple[Any, _Tokens] | None = None

    def compile(self, spec: GrammarSpec) -> _Compiled:
        try:
            source = source_of(spec, self._vocabulary().size)
        except UnkeptError as reason:
            raise refusal(spec, str(reason)) from None
        compiler, tokens = self._compiler()  # only now: what is refused above needs no library
        try:
            # Of a caller's rules that never end (`root ::= "a" root`) the library forces text without end.
            return _Compiled(compiler.compile_grammar(source), tokens, may_force=spec.kind != "grammar")
        except Exception as error:  # noqa: BLE001  whatever the library has against the grammar
            raise refusal(spec, _reason(error)) from None

    def _compiler(self) -> tuple[Any, _Tokens]:
        """Made on first use: the library brings torch with it, which takes seconds."""
        try:
            from xgrammar import GrammarCompiler, TokenizerInfo
        except ImportError as error:
            raise EngineUnavailable(f"xgrammar can't be imported: {error}") from error
        with self._lock:
            if self._ready is None:
                vocabulary = self._vocabulary()
                tokens = _Tokens(vocabulary)
                info = TokenizerInfo(
                    tokens.pieces, vocab_size=vocabulary.size, stop_token_ids=sorted(tokens.ends) or None
                )
                # No cache: grammars are kept by the store, and masks shared between grammars were wrong where
                # two lookaheads had one hash (xgrammar pull request 816).
                self._ready = GrammarCompiler(info, max_threads=1, cache_enabled=False), tokens
        return self._ready


def _reason(error: Exception) -> str:
    """What the library says, without its place in its own source."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", text)
