"""Which rule answers a request, and its reply with the placeholders filled in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from penstock.call import Call, Message, ToolCallPart, ToolResultPart
from penstock.errors import InvalidRequest
from penstock.simulate.scripted.script import Rule, ScriptedToolCall

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
_SHOWN_CHARS = 80


class Situation(Struct, frozen=True):
    """What the conditions of a rule are about. results: (tool's name, text) behind the model's last turn."""

    user: str
    system: str = ""
    results: tuple[tuple[str, str], ...] = ()
    turns: int = 0


class Reply(Struct, frozen=True):
    """`number`: of the rule in the script, from 0."""

    number: int
    rule: Rule
    reasoning: str
    text: str
    calls: tuple[ToolCallPart, ...]

    @property
    def is_empty(self) -> bool:
        return not (self.reasoning or self.text or self.calls)


def situation_of(messages: Sequence[Message]) -> Situation:
    system = "\n".join(message.text for message in messages if message.role in ("system", "developer"))
    user = next((m.text for m in reversed(messages) if m.role == "user" and m.text), "")
    names: dict[str, str] = {}
    results: list[tuple[str, str]] = []
    turns = 0
    for message in messages:
        if message.role == "assistant":
            turns += 1
            results = []
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                names[part.id] = part.name
            elif isinstance(part, ToolResultPart):
                text = "".join(getattr(item, "text", "") for item in part.content)
                results.append((names.get(part.id, ""), text))
    return Situation(user, system, tuple(results), turns)


class Matcher:
    """The rules of a script and how often each was used."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._used: Counter[int] = Counter()

    def reply(self, call: Call, situation: Situation, request_id: str) -> Reply:
        """Of the first rule that fits. Raises InvalidRequest, saying why they don't, where none does."""
        passed: list[str] = []
        for number, rule in enumerate(self._rules):
            if rule.times is not None and self._used[number] >= rule.times:
                continue
            groups = _groups(rule, situation)
            if groups is None or not _offers(call, rule.offers):
                continue
            reply = _reply(number, rule, groups, request_id)
            reason = _not_allowed(call, reply)
            if reason is None:
                self._used[number] += 1
                return reply
            passed.append(f"rules[{number}] {reason}")
        raise InvalidRequest(_no_rule(situation, passed), param="messages", code="no_scripted_reply")


def _groups(rule: Rule, situation: Situation) -> dict[str, str] | None:
    """What the placeholders stand for; None if a condition does not hold."""
    results = situation.results
    asks_results = rule.result is not None or rule.result_of is not None
    if rule.user is not None and results and not asks_results:
        return None  # the user's text has been answered, with a call
    if asks_results and not results:
        return None
    if rule.result_of is not None and rule.result_of not in (name for name, _ in results):
        return None
    if rule.turn is not None and rule.turn != situation.turns:
        return None
    texts = {
        "user": situation.user,
        "system": situation.system,
        "result": "\n".join(text for _, text in results),
    }
    groups = dict(texts)
    for name, text in texts.items():
        pattern = getattr(rule, name)
        if pattern is None:
            continue
        found = re.search(pattern, text)
        if found is None:
            return None
        groups |= {key: value or "" for key, value in found.groupdict().items()}
    return groups


def _offers(call: Call, name: str | None) -> bool:
    return name is None or name in _offered(call)


def _offered(call: Call) -> list[str]:
    return [] if call.tool_choice == "none" else [tool.name for tool in call.tools]


def _reply(number: int, rule: Rule, groups: dict[str, str], request_id: str) -> Reply:
    calls = tuple(
        ToolCallPart(call.id or f"call_{request_id[-20:]}_{i}", call.name, _arguments(call, groups))
        for i, call in enumerate(rule.tool_calls)
    )
    return Reply(number, rule, _filled(rule.reasoning, groups), _filled(rule.text, groups), calls)


def _arguments(call: ScriptedToolCall, groups: dict[str, str]) -> str:
    filled = _filled(call.arguments, groups)
    return filled if isinstance(filled, str) else msgspec.json.encode(filled).decode()


def _filled(value: Any, groups: dict[str, str]) -> Any:
    """`value` with the placeholders of all its strings replaced; unknown ones stay."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda match: groups.get(match[1], match[0]), value)
    if isinstance(value, list):
        return [_filled(item, groups) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, groups) for key, item in value.items()}
    return value


def _not_allowed(call: Call, reply: Reply) -> str | None:
    """Why the request does not allow the reply: a model could not give it either."""
    choice = call.tool_choice or "auto"
    offered = _offered(call)
    for part in reply.calls:
        if part.name not in offered:
            return f"calls {part.name!r}, which is not offered (offered: {', '.join(offered) or 'none'})"
        if choice.startswith("tool:") and part.name != choice.removeprefix("tool:"):
            return f"calls {part.name!r}, the tool choice demands {choice.removeprefix('tool:')!r}"
    if reply.calls:
        alone = call.parallel_tool_calls is False and len(reply.calls) > 1
        return f"has {len(reply.calls)} calls, the request wants one at a time" if alone else None
    if reply.is_empty:
        return None  # it fails or hangs
    if choice not in ("auto", "none"):
        return f"calls no tool, the tool choice is {choice!r}"
    wants_json = call.response_format is not None and call.response_format.kind != "text"
    if wants_json or call.sampling.json_schema is not None:
        try:
            msgspec.json.decode(reply.text)
        except msgspec.DecodeError:
            return "is no JSON, which the request asks for"
    return None


def _no_rule(situation: Situation, passed: list[str]) -> str:
    shown = situation.user if len(situation.user) <= _SHOWN_CHARS else situation.user[:_SHOWN_CHARS] + "…"
    tools = ", ".join(name or "?" for name, _ in situation.results)
    behind = f", results of {tools}" if tools else ""
    why = (
        f"; passed over: {'; '.join(passed)}" if passed else "; a rule without conditions answers everything"
    )
    return f"the script has no reply to {shown!r} (turn {situation.turns}{behind}){why}"
