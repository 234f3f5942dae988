"""Why a prompt does not begin with an earlier one: the first token that differs, and the field that it
comes from.

The field is found by trial: of all fields in which two requests differ, it is the one that, changed alone
in the earlier request, makes its prompt leave the old one at that very token. So it is right for every
template.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from penstock.call import Message, PrefixMiss, TextPart, ToolSpec
from penstock.errors import PenstockError
from penstock.text.transcript import Transcriber, Transcript

AROUND = 12  # tokens shown on either side
MOST_TRIALS = 32  # requests that differ in more fields are told of the first ones only

Request = tuple[tuple[Message, ...], tuple[ToolSpec, ...], dict[str, Any]]


def explain(transcriber: Transcriber, before: Transcript, after: Transcript) -> PrefixMiss | None:
    """None: the later prompt begins with all the turns of the earlier one."""
    old, new = before.encoded.ids, after.encoded.ids
    token = _common(old, new)
    if token == len(old) or (before.marks and token >= _turns_end(transcriber, before)):
        return None
    field = _field(transcriber, before, after, token)
    around = slice(max(0, token - AROUND), token + AROUND)
    texts = (transcriber.decode(old[around]), transcriber.decode(new[around]))
    return PrefixMiss(token, field, *texts, lost_tokens=len(old) - token)


def _turns_end(transcriber: Transcriber, before: Transcript) -> int:
    """Index of the first token of the generation prompt, where the template shows it: whatever follows the
    turns may differ from it."""
    mark = before.marks[-1]
    if mark.needs < len(before.dicts):
        return len(before.encoded.ids)
    return len(transcriber.encode(before.encoded.text[: mark.length]))


def _field(transcriber: Transcriber, before: Transcript, after: Transcript, token: int) -> str:
    old = before.encoded.ids
    names = []
    for trial, (name, request) in enumerate(_changes(before, after)):
        if trial == MOST_TRIALS:
            break
        names.append(name)
        try:
            made = transcriber.transcribe(*request)
        except PenstockError:
            continue  # the template refuses this mixture
        if _common(old, made.encoded.ids) == token:
            return name
    return names[0] if names else f"messages[{len(before.given)}]"


def _changes(before: Transcript, after: Transcript) -> Iterator[tuple[str, Request]]:
    """Each field of `after` that differs, with the request that differs from `before` in it alone."""
    messages, tools, args = before.given, before.tools, before.template_args
    for i, (old, new) in enumerate(zip(tools, after.tools, strict=False)):
        for name in old.__struct_fields__:
            value = getattr(new, name)
            if value != getattr(old, name):
                changed = replace(old, **{name: value})
                yield f"tools[{i}].{name}", (messages, _with(tools, i, changed), args)
    if len(tools) != len(after.tools):
        first = min(len(tools), len(after.tools))
        yield f"tools[{first}]", (messages, tools[:first] + after.tools[first:], args)
    for name in sorted(args.keys() | after.template_args.keys()):
        if args.get(name) != after.template_args.get(name):
            rest = {key: value for key, value in args.items() if key != name}
            given = {name: after.template_args[name]} if name in after.template_args else {}
            yield f"template_args.{name}", (messages, tools, rest | given)
    for i, (said, says) in enumerate(zip(messages, after.given, strict=False)):
        if said != says:
            yield _place(i, said, says), (_with(messages, i, says), tools, args)
    if len(messages) > len(after.given):
        yield f"messages[{len(after.given)}]", (after.given or messages[:1], tools, args)
    elif len(messages) < len(after.given):
        more = messages + after.given[len(messages) :]
        yield f"messages[{len(messages)}]", (more, tools, args)


def _place(index: int, old: Message, new: Message) -> str:
    """The message, with the field if it is one."""
    name = f"messages[{index}]"
    if old.role != new.role:
        return f"{name}.role"
    if old.name != new.name:
        return f"{name}.name"
    if len(old.parts) == len(new.parts):
        changed = [i for i, (a, b) in enumerate(zip(old.parts, new.parts, strict=True)) if a != b]
        part = old.parts[changed[0]]
        if type(part) is type(new.parts[changed[0]]) and not isinstance(part, TextPart):
            return f"{name}.{_KINDS[type(part).__name__]}[{_number(old, changed[0])}]"
    return f"{name}.content"


_KINDS = {
    "ToolCallPart": "tool_calls",
    "ToolResultPart": "tool_results",
    "ReasoningPart": "reasoning",
    "ImagePart": "images",
}


def _number(message: Message, index: int) -> int:
    """Of a part among those of its kind."""
    kind = type(message.parts[index])
    return sum(isinstance(part, kind) for part in message.parts[:index])


def _with(items: Sequence[Any], index: int, item: Any) -> tuple[Any, ...]:
    return (*items[:index], item, *items[index + 1 :])


def _common(a: np.ndarray, b: np.ndarray) -> int:
    size = min(len(a), len(b))
    differs = a[:size] != b[:size]
    return int(differs.argmax()) if differs.any() else size
