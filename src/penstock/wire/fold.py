"""Fold: a stream of Events added up to the answer that a non-streaming body shows.

Invariant: adding deltas one by one or merged gives the same Fold, so coalescing for a slow reader
never changes an answer.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, field

from penstock.call import (
    Done,
    Event,
    Failure,
    Finish,
    PromptEcho,
    ReasoningDelta,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    ToolCallPart,
    Usage,
)


class _ToolCall(Struct):
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)


class Run(Struct):
    """Neighbouring deltas of one kind. `call_index` is set for tool calls only; a call is one run, at the
    place of its first delta."""

    kind: type[TextDelta] | type[ReasoningDelta] | type[ToolCallDelta]
    call_index: int | None = None
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    signature: str | None = None  # of reasoning that somebody else wrote
    redacted: bool = False

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class ChoiceFold(Struct):
    """One choice so far. Text is kept in pieces and joined once: appending stays linear.

    `runs` tell the order in which text, reasoning and calls came, for formats that show it.
    """

    index: int
    pieces: list[str] = field(default_factory=list)
    reasoning_pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    calls: dict[int, _ToolCall] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    prompt: PromptEcho | None = None
    finish: Finish | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def reasoning(self) -> str:
        return "".join(self.reasoning_pieces)

    @property
    def tool_calls(self) -> list[ToolCallPart]:
        """Finished calls in the order of their call_index."""
        return [ToolCallPart(c.id, c.name, "".join(c.pieces)) for _, c in sorted(self.calls.items())]


class Fold:
    """`add` events in order; then read `choices()`, `usage`, `timings`, `failure`."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._choices: dict[int, ChoiceFold] = {}
        self.usage = Usage()
        self.timings = Timings()
        self.failure: Failure | None = None
        self.done = False
        for event in events:
            self.add(event)

    def choices(self) -> list[ChoiceFold]:
        """In the order of their index."""
        return [self._choices[index] for index in sorted(self._choices)]

    def add(self, event: Event) -> None:
        if isinstance(event, Done):
            self.usage, self.timings, self.done = event.usage, event.timings, True
            return
        if isinstance(event, Failure):
            self.failure = event
            return
        choice = self._choices.get(event.index)
        if choice is None:
            choice = self._choices[event.index] = ChoiceFold(event.index)
        if isinstance(event, TextDelta):
            _add_text(choice, event)
        elif isinstance(event, ReasoningDelta):
            choice.reasoning_pieces.append(event.text)
            if event.text or event.signature is not None:
                if event.redacted:
                    choice.runs.append(Run(ReasoningDelta, redacted=True))
                run = _run(choice, ReasoningDelta)
                run.pieces.append(event.text)
                run.signature = event.signature
            choice.token_ids.extend(event.token_ids)
        elif isinstance(event, Finish):
            choice.finish = event
        elif isinstance(event, PromptEcho):
            choice.prompt = event
        else:
            if event.call_index not in choice.calls:
                choice.runs.append(Run(ToolCallDelta, event.call_index))
            call = choice.calls.setdefault(event.call_index, _ToolCall())
            call.id = event.id or call.id
            call.name = event.name or call.name
            call.pieces.append(event.arguments)


def _run(choice: ChoiceFold, kind: type[TextDelta] | type[ReasoningDelta]) -> Run:
    """The last run, or a new one if that is of another kind or its signature ended it."""
    last = choice.runs[-1] if choice.runs else None
    if last is None or last.kind is not kind or last.signature is not None:
        choice.runs.append(Run(kind))
    return choice.runs[-1]


def _add_text(choice: ChoiceFold, event: TextDelta) -> None:
    if event.text:
        choice.pieces.append(event.text)
    if event.text or event.logprobs:
        run = _run(choice, TextDelta)
        run.pieces.append(event.text)
        run.logprobs.extend(event.logprobs or ())
    choice.token_ids.extend(event.token_ids)
    if event.logprobs is not None:
        if choice.logprobs is None:
            choice.logprobs = []
        choice.logprobs.extend(event.logprobs)
