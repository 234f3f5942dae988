"""The file of a scripted model: rules, each with what it answers to and its reply.

A JSON array of rules, a rule per line (JSONL), or an object that has the rules under `rules` beside the
fields of `Script`. The first rule wins whose conditions all hold and whose reply the request allows. Unknown
keys are refused with the nearest right one.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from penstock.call import FinishReason
from penstock.errors import ConfigError, NotFound

S = TypeVar("S", bound=Struct)

SCHEME = "scripted:"
ErrorKind = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "service_unavailable_error",
    "timeout_error",
    "internal_error",
]


class ScriptedToolCall(Struct, frozen=True, kw_only=True):
    """`arguments`: an object, or the JSON text exactly as the model shall write it. `id`: made if absent."""

    name: str
    arguments: dict[str, Any] | str = {}
    id: str | None = None


class ScriptedUsage(Struct, frozen=True, kw_only=True):
    """Counts of tokens that replace what would be counted."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class ScriptedFailure(Struct, frozen=True, kw_only=True):
    """Comes in place of the answer's end; as a status if the rule has nothing to say before it."""

    kind: ErrorKind
    message: str = "the script says so"
    retry_after_s: float | None = None


class Rule(Struct, frozen=True, kw_only=True):
    """Conditions, each a regular expression that is searched for unless said otherwise, and a reply.

    user: in the last text of the user. Without `result` or `result_of` the rule answers that text itself, not
    what tools gave back behind it.
    system: in the system text. result: in what tools gave back behind the model's last turn.
    result_of: a tool, by its whole name, whose result is among these. offers: the whole name of a tool that
    the request offers.
    turn: how many turns of the model the conversation has. times: how often the rule may be used.

    reasoning, text, tool_calls: said in this order. `{{user}}`, `{{result}}`, `{{system}}` and `{{NAME}}`
    for a named group of a condition are replaced in them.
    finish: "stop", or "tool_calls" with any, if absent. error: the answer ends in it. hang: the answer does
    not end until its caller leaves. token_s: seconds between tokens.
    """

    user: str | None = None
    system: str | None = None
    result: str | None = None
    result_of: str | None = None
    offers: str | None = None
    turn: int | None = None
    times: int | None = None

    reasoning: str = ""
    text: str = ""
    tool_calls: tuple[ScriptedToolCall, ...] = ()
    finish: FinishReason | None = None
    usage: ScriptedUsage = ScriptedUsage()
    error: ScriptedFailure | None = None
    hang: bool = False
    token_s: float = 0.0


class Script(Struct, frozen=True, kw_only=True):
    """name: the model's id; the file's name if absent. max_context: tokens. images: whether requests may have
    images."""

    rules: tuple[Rule, ...]
    name: str | None = None
    max_context: int = 131_072
    images: bool = False


_NESTED: dict[str, type[Struct]] = {
    "rules": Rule,
    "tool_calls": ScriptedToolCall,
    "usage": ScriptedUsage,
    "error": ScriptedFailure,
}
_PATTERNS = ("user", "system", "result")


def is_scripted(model: str) -> bool:
    return model.startswith(SCHEME)


def read_script(model: str) -> Script:
    """The script that `scripted:FILE` names. Raises NotFound, and ConfigError naming line or key."""
    path = Path(model.removeprefix(SCHEME)).expanduser()
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise NotFound(f"{model}: no such file; after {SCHEME} comes the path of a script") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{model}: can't be read: {error}") from None
    script = parse_script(text, path.name)
    return script if script.name else msgspec.structs.replace(script, name=path.stem)


def parse_script(text: str, source: str = "script") -> Script:
    """`source` is named in errors. Raises ConfigError."""
    script = _record(_values(text, source), source, Script)
    if not script.rules:
        raise ConfigError(f"{source}: it has no rules; one without conditions answers everything")
    for number, rule in enumerate(script.rules):
        _check(rule, f"{source}, rules[{number}]")
    return script


def _values(text: str, source: str) -> Any:
    """The object of a script, whichever of the three forms it has."""
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError as whole:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        if len(lines) < 2 or not lines[0][1].rstrip().endswith("}"):  # it is no JSONL
            raise ConfigError(f"{source}: not JSON: {whole}") from None
        found = []
        for number, line in lines:
            try:
                found.append(msgspec.json.decode(line))
            except msgspec.DecodeError as error:
                raise ConfigError(f"{source}, line {number}: not JSON: {error}") from None
    if isinstance(found, list):
        return {"rules": found}
    return found if "rules" in (found if isinstance(found, dict) else ()) else {"rules": [found]}


def _record(values: Any, source: str, kind: type[S]) -> S:
    _check_keys(values, kind, source, "")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from None


def _check_keys(values: Any, kind: type[Struct], source: str, path: str) -> None:
    """Of `values`, which become a `kind`, and of what is in them."""
    if not isinstance(values, dict):
        return  # msgspec says what is wrong
    known = kind.__struct_fields__
    for key, value in values.items():
        here = f"{path}.{key}" if path else key
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{source}: {here}: no such key; {hint}")
        if key not in _NESTED:
            continue
        if isinstance(value, list):
            for number, item in enumerate(value):
                _check_keys(item, _NESTED[key], source, f"{here}[{number}]")
        else:
            _check_keys(value, _NESTED[key], source, here)


def _check(rule: Rule, place: str) -> None:
    for name in _PATTERNS:
        pattern = getattr(rule, name)
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ConfigError(f"{place}.{name}: {pattern!r} is no regular expression: {error}") from None
    for name, least in (("turn", 0), ("times", 1), ("token_s", 0)):
        value = getattr(rule, name)
        if value is not None and value < least:
            raise ConfigError(f"{place}.{name}: {value}; it can't be below {least}")
    if rule.error is not None and rule.hang:
        raise ConfigError(f"{place}: error and hang exclude each other; an answer ends once or never")
