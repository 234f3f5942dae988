"""What a parser of model output gives: text, reasoning and tool calls, in the order in which the model wrote
them.

A call is CallStart, any number of CallArguments, then CallEnd. Its arguments add up to one valid JSON object
when CallEnd is given. A call that turns out not to be understandable gets Malformed instead of CallEnd: its
`call_index` takes back the CallStart that was given, if one was. Malformed is followed by its raw text as
Text, so nothing is lost.
"""

from __future__ import annotations

from msgspec import Struct


class Text(Struct, frozen=True, tag="text"):
    text: str


class Reasoning(Struct, frozen=True, tag="reasoning"):
    text: str


class CallStart(Struct, frozen=True, tag="call_start"):
    call_index: int
    name: str


class CallArguments(Struct, frozen=True, tag="call_arguments"):
    """`text` is a piece of JSON; the pieces of one call add up to one object."""

    call_index: int
    text: str


class CallEnd(Struct, frozen=True, tag="call_end"):
    """`repaired` says in words what was mended in the call, None if nothing was."""

    call_index: int
    repaired: str | None = None


class Malformed(Struct, frozen=True, tag="malformed"):
    """`call_index` is that of the CallStart which this takes back, None if none was given."""

    text: str
    reason: str
    call_index: int | None = None


ParsedEvent = Text | Reasoning | CallStart | CallArguments | CallEnd | Malformed
