"""gpt-oss' harmony: messages with a header (role, recipient, channel) and a body.

`<|channel|>analysis<|message|>…<|end|>` is reasoning, `<|start|>assistant<|channel|>final<|message|>…` text,
and `…commentary to=functions.f <|constrain|>json<|message|>{…}<|call|>` a call.
"""

from __future__ import annotations

import re

from penstock.text.output.calls import Calls
from penstock.text.output.format import CallSyntax, OutputFormat
from penstock.text.output.named_calls import object_arguments
from penstock.text.output.reasoning import ReasoningMarkers
from penstock.text.output.scan import NotCallError, Wait, markers
from penstock.text.output.session import Session

_MESSAGE, _START, _CHANNEL = "<|message|>", "<|start|>", "<|channel|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_BODY_ENDS = markers(*_ENDS, _START, _CHANNEL)
_BEGINS = markers(_START, _CHANNEL)
_HEADER = re.compile(
    r"\s*(?:<\|start\|>)?\s*(?:assistant)?\s*(?:to=(?P<before>[^\s<]+))?\s*"
    r"(?:<\|channel\|>\s*(?P<channel>analysis|commentary|final)\s*(?:to=(?P<behind>[^\s<]+))?\s*)?"
    r"(?:<\|constrain\|>)?\s*(?:json|code)?\s*"
)
_MAX_HEADER = 256


class HarmonyCalls(Calls):
    begins = (_CHANNEL, _START)
    ends = (_MESSAGE, "<|constrain|>", *_ENDS)


def harmony_loop(form: OutputFormat, session: Session) -> Wait[None]:
    """Messages, one after the other; text outside of messages is text."""
    cursor = session.cursor
    at = session.prompt.rfind(_START)
    given = session.prompt[at + len(_START) :] if at >= 0 else ""
    begin: str | None = ""
    cursor.record()
    if _MESSAGE in given:
        open_body = not any(end in given for end in _ENDS)
        begin = (yield from _body(session, given.partition(_MESSAGE)[0])) if open_body else None
        given = ""
    elif _CHANNEL not in given and not (yield from _header_follows(session)):
        begin, given = None, ""
    while True:
        if begin is None or begin in _ENDS:
            cursor.forget()
            begin = yield from cursor.until(_BEGINS, session.text)
            if begin is None:
                session.flush()
                return
            cursor.record(begin)
        try:
            header, end = yield from cursor.head(markers(_MESSAGE, *_ENDS, _START), limit=_MAX_HEADER)
        except NotCallError as error:
            session.reject(str(error), quiet=True)
            begin = None
            continue
        if end != _MESSAGE:
            session.reject("a header without a body", quiet=True)
            begin = None
            continue
        begin = yield from _body(session, f"{given} {begin}{header}")
        given = ""


def _header_follows(session: Session) -> Wait[bool]:
    """Whether the output goes on with the header that the prompt began."""
    yield from session.cursor.space()
    found = yield from session.cursor.looking_at(markers(_CHANNEL, _START, "to=", "<|constrain|>", _MESSAGE))
    if found is None:
        session.text(session.cursor.recorded())
    return found is not None


def _body(session: Session, header: str) -> Wait[str | None]:
    """Reads the body of a message and what ends it: an end, the beginning of the next header, or None."""
    cursor, found = session.cursor, _HEADER.fullmatch(header)
    if found is None:
        session.reject("a header that says something else", quiet=True)
        return None
    recipient = found["before"] or found["behind"]
    if recipient is not None and session.has_tools:
        yield from session.attempt(_call(session, recipient.removeprefix("functions.")))
        return None
    cursor.forget()
    session.syntax()
    if found["channel"] == "analysis" and recipient is None:
        end = yield from session.reason_until(_BODY_ENDS)
    else:
        end = yield from cursor.until(_BODY_ENDS, session.text)
    if end is not None:
        cursor.record(end if end not in _ENDS else "")
    return end


def _call(session: Session, name: str) -> Wait[None]:
    session.start(name)
    yield from object_arguments(session, _ENDS)


GPT_OSS = OutputFormat(
    "gpt_oss",
    ReasoningMarkers(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        before_answer="<|start|>assistant<|channel|>final<|message|>",
        before_calls="<|start|>assistant",
    ),
    HarmonyCalls(),
    CallSyntax(
        ("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>"),
        "<|call|>",
        "json",
        separator="<|start|>assistant",
    ),
    signs=(("<|channel|>", "<|message|>"),),
    loop=harmony_loop,
)
