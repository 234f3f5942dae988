"""The grammars of tool calls, in the model's own form: calls that must come, and calls that may.

`forced_calls`: the answer is one call or several and nothing else. `strict_calls`: the answer is free until a
call begins; from there to its end it is that call. In both the arguments follow each tool's schema, and what
is written is what the family's parser reads.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from penstock.call import ToolSpec
from penstock.decoding.grammar.spec import GrammarSpec, LoopRules, spec_of_text
from penstock.engine.tools.arguments import arguments, check_name
from penstock.engine.tools.lark import ANYTHING, Lark, Specials, quoted, without
from penstock.engine.tools.schema import UnwritableError
from penstock.errors import InvalidRequest
from penstock.text.output.format import CallSyntax, OutputFormat

log = logging.getLogger("penstock.engine")

MOST_CALLS = 4  # of one answer that must call: small models do not find the end by themselves
MOST_FREE_CALLS = 32  # of one answer that may call
_ANY_OBJECT = {"type": "object", "additionalProperties": True}


def forced_calls(
    form: OutputFormat, tools: Sequence[ToolSpec], choice: str, parallel: bool, specials: Specials
) -> GrammarSpec:
    """Of an answer that must call one of `tools` ("required"), or the one of "tool:NAME" once.

    Raises InvalidRequest for a tool that does not exist, and for what the model's form can't hold.
    """
    if not tools:
        raise InvalidRequest(f"tool_choice: {choice!r} needs tools", param="tool_choice")
    name = choice.removeprefix("tool:") if choice.startswith("tool:") else None
    chosen = [tool for tool in tools if name is None or tool.name == name]
    if not chosen:
        known = ", ".join(tool.name for tool in tools)
        raise InvalidRequest(
            f"tool_choice: there is no tool {name!r}; there are {known}", param="tool_choice"
        )
    syntax = form.syntax
    if syntax is None:
        raise InvalidRequest(
            f"tool_choice: calls of this model's form ({form.name}) can't be forced; use 'auto'",
            param="tool_choice",
            code="unsupported_parameter",
        )
    calls = _Calls(form, syntax, chosen, specials)
    most = MOST_CALLS if parallel and name is None else 1
    calls.lark.rule("start", f"{calls.lark.text(calls.begin)} {calls.behind_begin(most)}")
    return calls.spec()


def strict_calls(
    form: OutputFormat,
    tools: Sequence[ToolSpec],
    parallel: bool,
    specials: Specials,
    prompt: str,
    gated: bool = False,
) -> GrammarSpec | None:
    """Of an answer that may call, when one of `tools` is strict; None where it stays free.

    Tools that are not strict are held to their name and to being called with an object where the family
    writes JSON, to their schema elsewhere. `prompt`: the end of the rendered prompt; gated: the grammar
    begins behind the reasoning. Raises InvalidRequest for schemas that the model's form can't hold.
    """
    if not any(tool.strict for tool in tools):
        return None
    if form.syntax is None or form.calls is None:
        log.warning("strict tools: calls of the form %s have no grammar; answers stay free", form.name)
        return None
    if form.syntax.arguments == "json":
        tools = [t if t.strict else msgspec.structs.replace(t, parameters=_ANY_OBJECT) for t in tools]
    calls = _Calls(form, form.syntax, tools, specials)
    if form.loop is not None:
        if not prompt.rstrip().endswith(form.syntax.separator):
            log.warning("strict tools: the prompt ends inside a message; the answer stays free")
            return None
        calls.messages(MOST_FREE_CALLS if parallel else 1)
    else:
        _Free(calls, prompt, gated).write(MOST_FREE_CALLS if parallel else 1)
    return calls.spec()


class _Calls:
    """Calls of a family as rules of one grammar. `begin`: the text before the first call's name."""

    def __init__(
        self, form: OutputFormat, syntax: CallSyntax, tools: Sequence[ToolSpec], specials: Specials
    ) -> None:
        self.lark = Lark(specials)
        self.form, self.syntax = form, syntax
        self.begin = syntax.begin + syntax.call_begin[0]
        end = specials.split(syntax.call_end)
        # A token that ends the answer is what follows a grammar, not a part of it.
        self.ends_answer = bool(end) and end[-1] in specials.ends
        self._call_end = "" if self.ends_answer else syntax.call_end
        # By tool: the text of its name up to the arguments, and an expression of the rest of the call.
        self.calls = [(self._head(tool.name), self._rest(tool)) for tool in tools]
        calls = [f"{self.lark.text(head)} {rest}" for head, rest in self.calls]
        self._any = self.lark.made(" | ".join(calls), prefix="call_")

    def _head(self, name: str) -> str:
        return (quoted(name)[1:-1] if self.syntax.arguments == "json" else name) + self.syntax.call_begin[1]

    def _rest(self, tool: ToolSpec) -> str:
        try:
            check_name(self.syntax, tool.name)
            body = arguments(self.lark, self.syntax, tool)
        except UnwritableError as reason:
            raise InvalidRequest(
                f"tools: {tool.name!r}: calls in this model's form ({self.form.name}) can't be held to "
                f"{reason}; change the tool, or let the model call it without strict and tool_choice",
                param="tools",
                code="unsupported_parameter",
            ) from None
        return self.lark.made(f"{body} {self.lark.text(self._call_end)}".strip(), prefix="arguments_")

    def behind_begin(self, most: int) -> str:
        """From behind `begin` to the end of the section of calls."""
        return f"{self._any} {self.further(most)}".strip()

    def further(self, most: int) -> str:
        """From behind a call to the end of the section of `most` calls."""
        syntax, more = self.syntax, ""
        if most > 1 and not self.ends_answer:
            between = self.lark.text(syntax.separator + syntax.call_begin[0])
            more = f"{self.lark.made(f'{between} {self._any}'.strip())}{{0,{most - 1}}}"
        return f"{more} {self.lark.text(syntax.end)}".strip()

    def messages(self, most: int) -> None:
        """An answer in harmony's form: messages of three channels, or calls, each with its header."""
        lark, text = self.lark, self.lark.text
        anything = lark.terminal(ANYTHING)
        headers = [
            text(f"<|channel|>{channel}<|message|>") for channel in ("analysis", "commentary", "final")
        ]
        said = lark.made(" | ".join(f"{header} {anything}" for header in headers), prefix="message_")
        between = text(self.syntax.separator)
        call = f"{text(self.begin)} {self._any}"
        closed = [f"{said} {text('<|end|>')} {between}"]
        if not self.ends_answer and most > 1:
            closed.append(f"{call} {between}")
        lark.rule("start", f"({' | '.join(closed)})* ({said} | {call})")

    def spec(self) -> GrammarSpec:
        syntax = self.syntax
        before, _, behind = syntax.parameter or ("", "", "")
        closers = {
            "json": ('"', "]", "}"),
            "xml_parameters": (behind, '"', "]", "}", self._call_end),
            "pythonic": ('"', "]", "}", ")"),
            "marked": (syntax.string_quote, "]", "}"),
            "elements": ('"', "]", "}", f"{before}</"),
        }[syntax.arguments]
        loops = LoopRules(tuple(filter(None, closers)), syntax.call_begin[0], syntax.separator, syntax.end)
        return spec_of_text("grammar", self.lark.source, "tools", loops)


class _Free:
    """An answer of text in which calls may begin.

    Text holds no marker of a call: the marker in the family's own form begins one, and only a call can
    follow. A family whose calls begin without a marker (a bare `{` or `[`) calls at the start of a line, with
    the whole beginning of a call of one of its tools; no other line may look like a call.
    """

    def __init__(self, calls: _Calls, prompt: str, gated: bool) -> None:
        self.calls, self.lark, self.form, self.prompt = calls, calls.lark, calls.form, prompt
        self.gated = gated
        found = self.form.calls
        assert found is not None
        markers = tuple(marker for marker in found.triggers(False) if marker not in found.bare)
        self.marker = max((m for m in markers if calls.begin.startswith(m)), key=len, default=None)
        self.body = without(markers)
        if self.marker is None or found.bare or not found.ends:
            self.body += rf" & ~/((?s:.*)\n|\s*[,;])?{_bare_call(calls.syntax)}(?s:.*)/"
        self.text = self.lark.terminal(self.body)

    def write(self, most: int) -> None:
        said, calls = self._passages(), self._with_calls(most)
        if most == 1:
            aside = f"({' | '.join(said)})*" if said else ""
            body = f"{aside} (({' | '.join(calls)}) {aside})? {self.text}?"
        else:
            body = f"({' | '.join([*said, *calls])}){{0,{most}}} {self.text}?"
        self.lark.rule("start", " | ".join(self._with_reasoning(self.lark.made(body, prefix="answer_"))))

    def _with_calls(self, most: int) -> list[str]:
        """Text and a section of calls behind it."""
        calls = self.calls
        if self.marker is not None:
            behind = [self._behind_marker(most)]
            # What is no call and begins like one (`>>>all`).
            frames = [frame for frame in self.form.frames if frame.startswith(self.marker)]
            behind += [self.lark.text(frame[len(self.marker) :]) for frame in frames]
            return [f"{self._upto(self.body, self.marker)} ({' | '.join(behind)})"]
        lines = self.lark.terminal(rf"/((?s:.*)\n)?[ \t]*/ & {self.body}")
        further = calls.further(most)
        found = []
        for head, rest in calls.calls:
            until = self.lark.made(f"{lines} {quoted(calls.begin + head)}", lazy=True, prefix="until_")
            found.append(f"{until} {rest} {further}")
        return found

    def _behind_marker(self, most: int) -> str:
        assert self.marker is not None
        # Without a section every call begins with the marker: the next one stands behind text again.
        most = most if self.calls.syntax.begin else 1
        return (
            f"{self.lark.text(self.calls.begin[len(self.marker) :])} {self.calls.behind_begin(most)}".strip()
        )

    def _passages(self) -> list[str]:
        """Text and a marker behind it that is a special token, which text can't hold, and no call."""
        pairs = self.form.reasoning.pairs if self.form.reasoning and not self.gated else ()
        texts = dict.fromkeys([*self.form.frames, *(mark for pair in pairs for mark in pair)])
        split = self.lark.specials.split
        return [self._upto(self.body, t) for t in texts if any(isinstance(part, int) for part in split(t))]

    def _with_reasoning(self, answer: str) -> list[str]:
        """The answer, or behind a section of reasoning, which the prompt may have opened."""
        marks = self.form.reasoning
        if marks is None or self.gated:
            return [answer]
        opened = marks.open_at_end(self.prompt)
        if opened is not None:
            found = [f"{self._upto(ANYTHING, marks.end_of(opened))} {answer}"]
        else:
            found = [answer]
            for begin, end in marks.pairs:
                found.append(f"{self._upto(_SPACE, begin)} {self._upto(ANYTHING, end)} {answer}")
        if self.marker in marks.ended_by:
            head = self._upto(_SPACE, marks.begin) if opened is None else ""
            called = f"{self._behind_marker(MOST_FREE_CALLS)} {self.text}?"
            found.append(f"{head} {self._upto(ANYTHING, self.marker or '')} {called}")
        return found

    def _upto(self, body: str, marker: str) -> str:
        """Text and the marker behind it, which ends the text where it first can."""
        first, *rest = self.lark.specials.split(marker)
        if isinstance(first, int):
            return f"{self.lark.terminal(body)}? {self.lark.text(marker)}"
        until = f"{self.lark.terminal(body)} {quoted(first)}"
        until = self.lark.made(until, lazy=not rest, prefix="until_")
        return f"{until} {self.lark.text(marker[len(first) :])}".strip()


_SPACE = r"/\s*/"


def _bare_call(syntax: CallSyntax) -> str:
    """What a parser would read as the beginning of a call, as a regular expression."""
    if syntax.arguments == "pythonic":
        return r"\s*\[\s*[A-Za-z_][A-Za-z0-9_.-]*\("
    return r'\s*(```json\s*)?\[?\s*\{\s*"(name|arguments|parameters|function|type)"'
