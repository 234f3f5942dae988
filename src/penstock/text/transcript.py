"""Transcripts: the prompts of conversations, each made from the one before it.

A turn adds a few messages to a conversation. Its prompt is that of the turn before, as far as the chat
template writes the same (`template_trace`), with the rest rendered and tokenized (`boundaries`). So a turn
costs what it adds, and copies of what was there: some microseconds per thousand tokens.

Invariant: text and tokens are those of rendering and tokenizing everything. What can't be known to be the
same is made anew: the conversation must begin with the very messages of the earlier one, with the same
tools and template arguments, at the same time of day if the template writes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from msgspec import Struct

from penstock.call import Message, ToolSpec
from penstock.text.boundaries import BoundaryEncoder, Encoded, common_length
from penstock.text.nonces import without_nonces
from penstock.text.template import ChatTemplate
from penstock.text.template_messages import last_unbound, message_dicts
from penstock.text.template_trace import Mark, Trace, Untraced
from penstock.text.tokenizer import Tokenizer
from penstock.text.tool_prompt import knows_tools, with_tool_prompt

log = logging.getLogger("penstock.text")

WHOLE_FROM = 16  # messages from which on a template that leaves no marks is worth a line in the log


class Transcript(Struct, frozen=True):
    """A conversation's prompt, and what making the next one from it takes.

    `given`: the messages as they came; `shown`: as the template knows them; `dicts`: as it sees them.
    Whatever follows, the first `stable_dicts` of those stay, made of the first `stable` of `shown`, in
    which tools had the `names` by their calls' ids.
    """

    given: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    template_args: dict[str, Any]
    shown: list[Message]
    dicts: list[dict[str, Any]]
    stable: int
    stable_dicts: int
    names: dict[str, str]
    marks: tuple[Mark, ...]
    encoded: Encoded
    rendered: int = 0  # characters that had to be rendered

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory beside what it shares with the one before."""
        return self.encoded.num_bytes + 8 * (len(self.given) + len(self.shown) + len(self.dicts))


class Transcriber:
    """Makes transcripts for one model. Usable from several threads."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._encoder = BoundaryEncoder(tokenizer)
        self._template = template
        self._said: set[str] = set()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode([int(token) for token in ids], skip_special=False, continuation=True)

    def transcribe(
        self,
        messages: tuple[Message, ...],
        tools: tuple[ToolSpec, ...],
        template_args: dict[str, Any],
        before: Transcript | None = None,
        check: Callable[[str], None] = lambda text: None,
    ) -> Transcript:
        """The prompt of a conversation, going on from `before` as far as it can.

        check: sees the text before it is tokenized, which takes much longer. Raises InvalidRequest where the
        template can't render the conversation.
        """
        if before is not None and not _goes_on(before, messages, tools, template_args):
            before = None
        shown = self._shown(messages, tools, before)
        shown_tools = tools if knows_tools(self._template.tool_source) else ()
        stable, stable_dicts, names, dicts = self._dicts(shown, shown_tools, before)
        text, shared, marks, rendered = self._text(shown, dicts, shown_tools, template_args, before)
        check(text)
        encoded = self._encoder.encode(text, None if before is None else before.encoded, shared)
        return Transcript(
            messages,
            tools,
            template_args,
            shown,
            dicts,
            stable,
            stable_dicts,
            names,
            marks,
            encoded,
            rendered,
        )

    def _shown(
        self, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...], before: Transcript | None
    ) -> list[Message]:
        """The messages without nonces, for a template that knows no tools with those told in words."""
        told = tools and not knows_tools(self._template.tool_source)
        if before is None or not before.given:
            plain = without_nonces(messages)
            return with_tool_prompt(plain, tools) if told else list(plain)
        fresh: Sequence[Message] = messages[len(before.given) :]
        if told and fresh:
            fresh = with_tool_prompt([messages[0], *fresh], tools)[-len(fresh) :]
        return [*before.shown, *fresh]

    def _dicts(
        self, shown: list[Message], tools: Sequence[ToolSpec], before: Transcript | None
    ) -> tuple[int, int, dict[str, str], list[dict[str, Any]]]:
        source = self._template.tool_source if tools else self._template.source
        start, dicts, names = 0, list[dict[str, Any]](), dict[str, str]()
        if before is not None:
            start, names = before.stable, dict(before.names)
            dicts = before.dicts[: before.stable_dicts]
        stable = max(last_unbound(shown), start)
        if stable > start:
            dicts += message_dicts(shown[start:stable], source, names)
        kept, count = dict(names), len(dicts)
        dicts += message_dicts(shown[stable:], source, names)
        return stable, count, kept, dicts

    def _text(
        self,
        shown: list[Message],
        dicts: list[dict[str, Any]],
        tools: Sequence[ToolSpec],
        template_args: dict[str, Any],
        before: Transcript | None,
    ) -> tuple[str, int, tuple[Mark, ...], int]:
        """(text, characters that it is known to share with the one before, marks, characters rendered)."""
        old = "" if before is None else before.encoded.text
        mark = None if before is None else _last_valid(before, dicts)
        for begin in (mark, None) if mark is not None else (None,):
            trace = Trace(dicts, begin)
            try:
                tail = self._template.render_traced(trace, tools, **template_args)
            except Untraced as error:
                self._say(f"it uses {error}")
                continue
            except Exception:  # noqa: BLE001  (the plain render below says what is wrong, or mends it)
                break
            if begin is not None and trace.skipped:
                return old[: begin.length] + tail, begin.length, tuple(trace.marks), len(tail)
            if not trace.marks and len(dicts) >= WHOLE_FROM:
                self._say("it looks at the whole conversation before it writes")
            return tail, common_length(old, tail), tuple(trace.marks), len(tail)
        text = self._template.render(shown, tools, True, **template_args)
        return text, common_length(old, text), (), len(text)

    def _say(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            log.info("the chat template renders every turn whole: %s", reason)


def _goes_on(
    before: Transcript,
    messages: tuple[Message, ...],
    tools: tuple[ToolSpec, ...],
    template_args: dict[str, Any],
) -> bool:
    # Equal objects are compared by identity first, and mostly they are the same ones.
    count = len(before.given)
    return (
        0 < count <= len(messages)
        and before.tools == tools
        and before.template_args == template_args
        and messages[:count] == before.given
    )


def _last_valid(before: Transcript, dicts: list[dict[str, Any]]) -> Mark | None:
    for mark in reversed(before.marks):
        same = len(dicts) > mark.needs and dicts[: mark.needs] == before.dicts[: mark.needs]
        if same and all(datetime.now().strftime(form) == text for form, text in mark.clock.items()):
            return mark
    return None
