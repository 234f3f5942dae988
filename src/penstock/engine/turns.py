"""Prompts of conversations: each made from that of the turn before, where it is still known here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from penstock.call import Call, PrefixMiss, ToolSpec
from penstock.recent import Recent

if TYPE_CHECKING:
    from penstock.text.transcript import Transcriber, Transcript

EXPLAIN = "usage.prefix_miss"  # in `include`: usage says where the prompt leaves that of the turn before


class Turn(Struct, frozen=True):
    """A prompt as a turn of its conversation. shared_tokens: that it has in common with the prompt of the
    turn before; None: that one is not known here. last_tokens: what that one had, where its answer said
    so."""

    transcript: Transcript
    shared_tokens: int | None = None
    last_tokens: int = 0
    miss: PrefixMiss | None = None

    def evicted_tokens(self, cached_tokens: int, block_size: int) -> int:
        """Tokens of the turn before that were not in the cache any more. Only whole blocks are ever there,
        and one token is always computed. Without the prompt of that turn only an empty cache is
        evidence."""
        known = self.shared_tokens
        if known is None:
            known = 0 if cached_tokens else self.last_tokens
        known = min(known, len(self.transcript.encoded.ids) - 1)
        return max(0, known // block_size * block_size - cached_tokens)


class TurnPrompts:
    """The prompts that were made last, up to `max_bytes`, by the names of their turns."""

    def __init__(self, max_bytes: int, make: Callable[[], Transcriber]) -> None:
        self._kept: Recent[str, Transcript] = Recent(max_bytes)
        self._make = make
        self._transcriber: Transcriber | None = None

    def forget(self, turn: str) -> None:
        self._kept.forget(turn)

    def num_known(self, call: Call) -> int:
        """Messages of a call that an earlier prompt was made of."""
        last = self._last(call)
        return len(last.given) if last is not None and _goes_on(call, last) else 0

    def turn(
        self, call: Call, tools: tuple[ToolSpec, ...], args: dict[str, Any], check: Callable[[str], None]
    ) -> Turn:
        """The prompt of a call. args: template arguments; check: sees its text. Raises InvalidRequest."""
        last, name = self._last(call), turn_after(call)
        before = last if last is not None and _goes_on(call, last) else None
        made = self.transcribe(call, tools, args, before, check)
        if name is not None:
            self._kept.put(name, made, made.num_bytes)
        last_tokens = call.session.last_tokens if call.session is not None else 0
        if last is None:
            return Turn(made, None, last_tokens)
        miss = self.explain(call, last, made) if EXPLAIN in call.extra.get("include", ()) else None
        return Turn(made, shared_tokens(last, made), last_tokens, miss)

    def transcribe(
        self,
        call: Call,
        tools: tuple[ToolSpec, ...],
        args: dict[str, Any],
        before: Transcript | None = None,
        check: Callable[[str], None] = lambda text: None,
    ) -> Transcript:
        """The prompt of a call, which is kept nowhere."""
        if self._transcriber is None:
            self._transcriber = self._make()
        return self._transcriber.transcribe(call.messages, tools, args, before, check)

    def explain(self, call: Call, before: Transcript, after: Transcript) -> PrefixMiss | None:
        """Where the prompt of a call, `after`, leaves another one."""
        from penstock.text.prefix_miss import explain

        transcriber = self._transcriber
        miss = None if transcriber is None else explain(transcriber, before, after)
        if miss is not None and "instructions" in call.extra and miss.field.startswith("messages[0]"):
            miss = msgspec.structs.replace(miss, field="instructions")
        return miss

    def _last(self, call: Call) -> Transcript | None:
        name = turn_before(call)
        return None if name is None else self._kept.get(name)


def shared_tokens(before: Transcript, after: Transcript) -> int:
    a, b = before.encoded.ids, after.encoded.ids
    size = min(len(a), len(b))
    differs = a[:size] != b[:size]
    return int(differs.argmax()) if differs.any() else size


def turn_before(call: Call) -> str | None:
    """The name of the turn that a call goes on from: a response's, a conversation's, or, of calls that bring
    all their turns, that of the session that they say they are of."""
    session = call.session
    if session is None:
        return None if call.cache.key is None else f"\x00{len(call.tenant)}:{call.tenant}:{call.cache.key}"
    return session.previous_response_id or session.conversation


def turn_after(call: Call) -> str | None:
    """The name of the turn that a call becomes."""
    session = call.session
    if session is None:
        return turn_before(call)
    return (session.conversation or session.response_id) if session.store else None


def _goes_on(call: Call, before: Transcript) -> bool:
    # Equal objects are compared by identity first, and mostly they are the same ones.
    return call.messages[: len(before.given)] == before.given
