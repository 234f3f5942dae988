"""GrammarSpec: what the text of an answer must look like; and the limits of what is compiled at all."""

from __future__ import annotations

import json
from typing import Any, Literal

from msgspec import Struct

from penstock.errors import InvalidRequest

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar", "structural_tag"]

# Bounds of what one request may make us compile; beyond them real schemas do not go.
MAX_SOURCE_BYTES = {
    "json_schema": 512 << 10,
    "json_object": 0,
    "regex": 16 << 10,
    "choice": 512 << 10,
    "grammar": 256 << 10,
    "structural_tag": 512 << 10,
}
MAX_CHOICES = 4096
MAX_DEPTH = 128  # of a JSON schema
# White space between two parts of a JSON text: a space, or a line break and an indentation. More than one
# such piece is never allowed, or a model that begins with line breaks writes nothing else.
WHITESPACE = r"[\x20\x09]|\r?\n[\x20\x09]{0,64}"


class LoopRules(Struct, frozen=True):
    """How an answer that makes tool calls is brought to an end when it only repeats itself.

    `closers`: texts that end what is open, the innermost first. `call_begin`, `separator`: what a call begins
    with and what stands between two. `section_end`: what ends the calls, before the end of the answer.
    """

    closers: tuple[str, ...]
    call_begin: str = ""
    separator: str = ""
    section_end: str = ""


class GrammarSpec(Struct, frozen=True):
    """`source`: the schema, the choices (a list of strings) or the structural tag as JSON text; a regular
    expression; a grammar in Lark's or in GBNF's notation. `loops`: None where an answer may repeat itself."""

    kind: Kind
    source: str = ""
    loops: LoopRules | None = None


def spec_of_schema(schema: Any, param: str) -> GrammarSpec:
    """Of a JSON schema: a dict, a boolean, or its JSON text. Raises InvalidRequest naming `param`."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise InvalidRequest(f"{param}: not JSON: {error}", param=param) from None
    if not isinstance(schema, dict | bool):
        raise InvalidRequest(f"{param}: a JSON schema is an object, not {type(schema).__name__}", param=param)
    if schema is False:
        raise InvalidRequest(f"{param}: nothing is valid under `false`", param=param)
    schema = {} if schema is True else schema
    _check_depth(schema, param)
    return _checked(GrammarSpec("json_schema", json.dumps(schema, ensure_ascii=False)), param)


def spec_of_choices(choices: Any, param: str) -> GrammarSpec:
    """Of a list of strings, one of which is the answer."""
    choices = list(choices)
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise InvalidRequest(f"{param}: give one or more strings, none empty", param=param)
    if len(choices) > MAX_CHOICES:
        raise InvalidRequest(f"{param}: {len(choices)} choices, at most {MAX_CHOICES}", param=param)
    return _checked(GrammarSpec("choice", json.dumps(choices, ensure_ascii=False)), param)


def spec_of_text(
    kind: Literal["regex", "grammar"], source: Any, param: str, loops: LoopRules | None = None
) -> GrammarSpec:
    """Of a regular expression or a grammar."""
    if not isinstance(source, str) or not source:
        raise InvalidRequest(f"{param}: give it as text, not empty", param=param)
    return _checked(GrammarSpec(kind, source, loops), param)


def spec_of_structural_tag(tag: Any, param: str) -> GrammarSpec:
    if not isinstance(tag, dict):
        raise InvalidRequest(f"{param}: a structural tag is an object", param=param)
    _check_depth(tag, param)
    return _checked(GrammarSpec("structural_tag", json.dumps(tag, ensure_ascii=False)), param)


def _checked(spec: GrammarSpec, param: str) -> GrammarSpec:
    try:
        size = len(spec.source.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidRequest(f"{param}: has lone surrogates; send whole characters", param=param) from None
    most = MAX_SOURCE_BYTES[spec.kind]
    if size > most:
        raise InvalidRequest(f"{param}: {size} bytes, at most {most} are compiled", param=param)
    return spec


def _check_depth(value: Any, param: str) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"{param}: nested deeper than {MAX_DEPTH} levels", param=param)
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
