"""Thinking in the Anthropic format: `thinking` and `output_config.effort` ⇄ budget and template arguments.

A budget says more than an effort, so where both are sent the effort has no part in it: there they never
contradict each other.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Effort = Literal["low", "medium", "high", "xhigh", "max"]
_EFFORTS = {"max": "xhigh"}  # what it is called in `penstock.thinking.EFFORT_BUDGETS`


class ThinkingEnabled(Struct, tag_field="type", tag="enabled", omit_defaults=True):
    """The model thinks, `budget_tokens` at most."""

    budget_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    display: str | None = None


class ThinkingAdaptive(Struct, tag_field="type", tag="adaptive", omit_defaults=True):
    """The model thinks as much as it likes."""

    display: str | None = None


class ThinkingDisabled(Struct, tag_field="type", tag="disabled"):
    """The model does not think."""


class ThinkingBetweenTools(Struct, tag_field="type", tag="between_tools"):
    """The model thinks about results of tools only."""


AnyThinking = ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled | ThinkingBetweenTools


class ThinkingRead(Struct, frozen=True):
    """`shown`: the field as it was sent, where a Call has no other place for all of it."""

    budget: int | None
    template_args: dict[str, Any]
    shown: dict[str, Any] | None = None


def read_thinking(thinking: AnyThinking | None, effort: Effort | None, after_tools: bool) -> ThinkingRead:
    """after_tools: the last message holds results of tools."""
    shown: dict[str, Any] | None = None
    if isinstance(thinking, ThinkingBetweenTools) or getattr(thinking, "display", None) is not None:
        shown = msgspec.to_builtins(thinking)
    if isinstance(thinking, ThinkingEnabled):
        return ThinkingRead(thinking.budget_tokens, {"enable_thinking": True}, shown)
    if isinstance(thinking, ThinkingDisabled) or (
        isinstance(thinking, ThinkingBetweenTools) and not after_tools
    ):
        return ThinkingRead(0, {"enable_thinking": False}, shown)
    args: dict[str, Any] = {} if thinking is None else {"enable_thinking": True}
    if effort is not None:
        args["reasoning_effort"] = _EFFORTS.get(effort, effort)
    return ThinkingRead(None, args, shown)


def write_thinking(
    budget: int | None, template_args: dict[str, Any]
) -> tuple[AnyThinking | None, Effort | None]:
    """(thinking, effort). Template arguments of other names are for a template that the upstream has not."""
    effort: Any = template_args.get("reasoning_effort")
    if effort not in ("low", "medium", "high", "xhigh"):
        effort = None
    if budget is not None and budget > 0:
        return ThinkingEnabled(budget), effort
    if budget == 0 or template_args.get("enable_thinking") is False:
        return ThinkingDisabled(), effort
    return (ThinkingAdaptive() if template_args.get("enable_thinking") else None), effort
