"""OpenCall: one call in flight, from the deltas of its choices to one stream of events.

Invariants
- Deltas are assembled as they come, so a stop string is found, and the engine told, whether or not
  anybody reads. What waits to be read is merged: per choice one run of text, ids and logprobs.
- Reading slowly changes how events are cut, never what they add up to.
- At most MAX_UNREAD entries wait; beyond that the call fails and its requests are aborted.
- A choice's last event is its Finish; after the last Finish comes Done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from penstock.call import (
    Call,
    Done,
    Event,
    Finish,
    SpeculationUsage,
    TextDelta,
    Timings,
    TokenLogprob,
    Usage,
)
from penstock.decoding.thinking import Thinking
from penstock.engine.messages import Delta, Logprobs
from penstock.engine.outputs import unpack_logprobs
from penstock.engine.prepare import Prompt
from penstock.errors import DeadlineExceeded, EngineUnavailable, PenstockError, from_kind
from penstock.text.assemble import ChoiceAssembler, TopPairs, prompt_echo

if TYPE_CHECKING:
    from penstock.text.output.answer import AnswerParser
    from penstock.text.tokenizer import Tokenizer

# Tokens, each logprob alternative counting as one more: a few megabytes, and minutes of a fast stream.
MAX_UNREAD = 65_536

Abort = Callable[[str, int | None], None]


class _PromptState(Struct):
    prompt: Prompt
    logprobs: list[tuple[float, TopPairs]] = []
    cached_tokens: int = 0


class _Choice(Struct):
    id: str
    index: int
    prompt: _PromptState
    assembler: ChoiceAssembler
    parser: AnswerParser | None = None
    thinking: Thinking | None = None
    opened: bool = False
    finished: bool = False
    draft_steps: int = 0
    drafted: int = 0
    accepted: int = 0


class _TextRun:
    """Text deltas of one choice that nobody has read yet."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._texts: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._has_logprobs = False

    def add(self, delta: TextDelta) -> None:
        self._texts.append(delta.text)
        self._ids.extend(delta.token_ids)
        if delta.logprobs is not None:
            self._has_logprobs = True
            self._logprobs.extend(delta.logprobs)

    def merged(self) -> TextDelta:
        logprobs = tuple(self._logprobs) if self._has_logprobs else None
        return TextDelta(self._index, "".join(self._texts), tuple(self._ids), logprobs)


class OpenCall:
    """`abort(request_id, keep)` tells the engine; it must not call back."""

    def __init__(
        self,
        call: Call,
        prompts: Sequence[Prompt],
        tokenizer: Tokenizer,
        abort: Abort,
        arrived_s: float,
        synthetic_acceptance: bool = False,
    ) -> None:
        """`arrived_s`: time.monotonic() when the call came in, for the timings. synthetic_acceptance: of the
        engine's drafts, as its Ready says."""
        self._call = call
        self._tokenizer = tokenizer
        self._abort = abort
        self._arrived_s = arrived_s
        self._synthetic_acceptance = synthetic_acceptance
        self._prompts = [_PromptState(prompt) for prompt in prompts]
        self._choices: dict[str, _Choice] = {}
        for state in self._prompts:
            for submit in state.prompt.submits:
                index = len(self._choices)
                reading = state.prompt.output
                keep = frozenset() if reading is None else reading.keep
                assembler = ChoiceAssembler(tokenizer, call.sampling, index, keep)
                parser = None if reading is None else reading.parser()
                spec, ids = state.prompt.thinking, state.prompt.tokens
                thinking = None if spec is None else Thinking(spec, ids, len(ids))
                self._choices[submit.id] = _Choice(submit.id, index, state, assembler, parser, thinking)
        first = prompts[0].submits[0].sampling
        self._wants_echo = call.echo or first.prompt_logprobs >= 0
        self._entry_weight = 1 + max(0, first.logprobs)
        self._unfinished = len(self._choices)
        self._queue_s = self._ttft_s = 0.0
        self._unread: list[Event | _TextRun] = []
        self._runs: dict[int, _TextRun] = {}
        self._unread_entries = 0
        self._error: PenstockError | None = None
        self._wake = asyncio.Event()

    @property
    def request_ids(self) -> list[str]:
        return list(self._choices)

    # ------------------------------------------------------------------ from the engine

    def on_delta(self, delta: Delta) -> None:
        choice = self._choices[delta.id]
        if choice.finished or self._error is not None:
            return  # what the engine had in flight when the choice ended
        if delta.error is not None:
            kind, message, retry_after_s = delta.error
            choice.finished = True
            self.fail(from_kind(kind, message, retry_after_s=retry_after_s))
            return
        self._note(choice, delta)
        if not delta.tokens and delta.finish is None:
            return
        if not choice.opened:
            self._open(choice)
        pairs = None if delta.logprobs is None else logprob_pairs(delta.logprobs)
        events, hit = choice.assembler.feed(delta.tokens, pairs, delta.finish, delta.stop_token)
        if delta.finish is not None or hit is not None:
            choice.finished = True
        if hit is not None and delta.finish is None:
            self._abort(choice.id, hit.keep)
        if delta.finish in ("abort", "error"):
            self.fail(EngineUnavailable(f"the engine gave up request {delta.id}", retry_after_s=1.0))
            return
        if choice.thinking is not None:
            _count_thinking(choice.thinking, events, delta.stop_token)
        for event in events if choice.parser is None else choice.parser.convert(events):
            self._push(event)
        self._bound()

    def _note(self, choice: _Choice, delta: Delta) -> None:
        if choice.index % self._call.sampling.n == 0:
            if delta.cached_tokens is not None:
                choice.prompt.cached_tokens = delta.cached_tokens
            if delta.queue_s is not None:
                self._queue_s = max(self._queue_s, delta.queue_s)
        if delta.drafts is not None:
            choice.draft_steps += 1
            choice.drafted += delta.drafts[0]
            choice.accepted += delta.drafts[1]
        if delta.prompt_logprobs is not None:
            choice.prompt.logprobs.extend(logprob_pairs(delta.prompt_logprobs))
        if delta.tokens and not self._ttft_s:
            self._ttft_s = time.monotonic() - self._arrived_s

    def _open(self, choice: _Choice) -> None:
        """Before a choice's first delta. Its leader's prefill, with the report on the prompt, is done."""
        choice.opened = True
        if self._wants_echo:
            state = choice.prompt
            wanted = state.prompt.submits[0].sampling.prompt_logprobs >= 0
            self._push(
                prompt_echo(
                    self._tokenizer,
                    choice.index,
                    np.asarray(state.prompt.tokens).tolist(),
                    state.logprobs if wanted else None,
                    self._call.sampling.skip_special_tokens,
                )
            )

    def fail(self, error: PenstockError) -> None:
        """End the stream with `error` (after what is unread) and abort what still runs."""
        if self._error is None and self._unfinished:
            self._error = error
            self.abort_unfinished()
            self._wake.set()

    def abort_unfinished(self) -> None:
        """Tell the engine to drop every choice that has not ended. Idempotent."""
        for choice in self._choices.values():
            if not choice.finished:
                choice.finished = True
                self._abort(choice.id, None)

    # ------------------------------------------------------------------ to the reader

    def _push(self, event: Event) -> None:
        self._wake.set()
        if isinstance(event, TextDelta):
            run = self._runs.get(event.index)
            if run is None:
                run = self._runs[event.index] = _TextRun(event.index)
                self._unread.append(run)
            run.add(event)
            self._unread_entries += self._entry_weight * len(event.token_ids)
            return
        self._runs.pop(getattr(event, "index", -1), None)  # what comes after it is read after it
        self._unread.append(event)
        self._unread_entries += 1
        if isinstance(event, Finish):
            self._unfinished -= 1
            if not self._unfinished:
                self._unread.append(self._done())

    def _bound(self) -> None:
        if self._unread_entries > MAX_UNREAD:
            self.fail(
                DeadlineExceeded(
                    f"the reader is too slow: {self._unread_entries} entries are unread, at most {MAX_UNREAD}"
                )
            )

    def _done(self) -> Done:
        generated = sum(choice.assembler.num_tokens for choice in self._choices.values())
        usage = Usage(
            prompt_tokens=sum(len(state.prompt.tokens) for state in self._prompts),
            completion_tokens=generated,
            cached_tokens=sum(state.cached_tokens for state in self._prompts),
            reasoning_tokens=sum(_reasoning_tokens(choice) for choice in self._choices.values()),
            speculation=self._speculation(),
            evicted_tokens=sum(_evicted_tokens(state) for state in self._prompts),
            prefix_miss=next((state.prompt.turn.miss for state in self._prompts if state.prompt.turn), None),
        )
        total_s = time.monotonic() - self._arrived_s
        return Done(usage, Timings(queue_s=self._queue_s, ttft_s=self._ttft_s, total_s=total_s))

    def _speculation(self) -> SpeculationUsage | None:
        choices = self._choices.values()
        steps = sum(choice.draft_steps for choice in choices)
        if not steps:
            return None
        return SpeculationUsage(
            steps,
            sum(choice.drafted for choice in choices),
            sum(choice.accepted for choice in choices),
            self._synthetic_acceptance,
        )

    async def next_batch(self) -> list[Event]:
        """What has come since the last batch, at least one event; [] after the one with Done.

        Raises the error that ended the call once everything before it was read.
        """
        while not self._unread:
            if self._error is not None:
                raise self._error
            if not self._unfinished:
                return []
            self._wake.clear()
            await self._wake.wait()
        unread, self._unread = self._unread, []
        self._runs.clear()
        self._unread_entries = 0
        return [item.merged() if isinstance(item, _TextRun) else item for item in unread]


def _evicted_tokens(state: _PromptState) -> int:
    turn = state.prompt.turn
    if turn is None or not state.prompt.submits[0].cache_read:
        return 0
    return turn.evicted_tokens(state.cached_tokens, state.prompt.block_size)


def _count_thinking(thinking: Thinking, events: Sequence[Event], stop_token: int | None) -> None:
    for event in events:
        for token in event.token_ids if isinstance(event, TextDelta) else ():
            if token != stop_token:  # the end of the answer is no thought, wherever it comes
                thinking.record(token)


def _reasoning_tokens(choice: _Choice) -> int:
    """Generated ones: those that the prompt had are part of the prompt."""
    spec = choice.prompt.prompt.thinking
    return 0 if choice.thinking is None or spec is None else max(0, choice.thinking.tokens - spec.used)


def logprob_pairs(packed: Logprobs) -> list[tuple[float, TopPairs]]:
    """(chosen, [(id, logprob), …]) per position, as `ChoiceAssembler.feed` takes them."""
    rows = unpack_logprobs(packed)
    ids, values = rows.top_ids.tolist(), rows.top.tolist()
    return [
        (chosen, list(zip(top_ids, top, strict=True)))
        for chosen, top_ids, top in zip(rows.chosen.tolist(), ids, values, strict=True)
    ]
