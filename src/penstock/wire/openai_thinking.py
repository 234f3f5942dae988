"""Thinking in the OpenAI formats: five fields that other servers made common, one budget.

`thinking_budget` and `thinking_token_budget` (vLLM), `thinking` (Anthropic; DeepSeek and GLM without the
number), `reasoning_effort` (OpenAI) and, among `chat_template_kwargs`, `enable_thinking`, `thinking` and
`thinking_budget`. Fields that contradict each other are refused here, where they still have their names; what
a level of effort is worth depends on the model's template and is settled beside it.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from penstock.thinking import (
    KWARGS,
    Claim,
    check_agreement,
    claim_of_budget,
    claim_of_effort,
    claims_of_template_args,
)


class ThinkingEnabled(Struct, tag_field="type", tag="enabled"):
    """The model thinks, `budget_tokens` at most."""

    budget_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None


class ThinkingAdaptive(Struct, tag_field="type", tag="adaptive"):
    """The model thinks as much as it likes."""


class ThinkingDisabled(Struct, tag_field="type", tag="disabled"):
    """The model does not think."""


ThinkingField = ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled


def read_budget(thinking_budget: int | None, thinking_token_budget: int | None) -> int | None:
    """Of the two plain fields. Raises InvalidRequest if they disagree."""
    claims = _plain_claims(thinking_budget, thinking_token_budget)
    check_agreement(claims)
    if claims:
        return claims[0].budget
    return thinking_token_budget if thinking_budget is None else thinking_budget


def read_thinking(
    plain: int | None, thinking: ThinkingField | None, effort: str | None, kwargs: dict[str, Any] | None
) -> tuple[int | None, dict[str, Any]]:
    """(budget, template arguments) of a chat request; plain: of `read_budget`.

    Raises InvalidRequest naming two fields that disagree.
    """
    args = dict(kwargs or {})
    own_effort = args.get("reasoning_effort")
    claims = [
        *claim_of_budget("thinking_budget", plain),
        *_thinking_claims(thinking),
        *claim_of_effort(effort, None),
        *claims_of_template_args(args),
    ]
    if own_effort is not None:
        name = f"{KWARGS}.reasoning_effort"
        if effort is not None and own_effort != effort:
            check_agreement([Claim("reasoning_effort", effort, 0), Claim(name, own_effort, 1)])
        claims += claim_of_effort(own_effort, None, name)
    check_agreement(claims)
    if effort is not None:
        args["reasoning_effort"] = effort
    budget = plain
    for claim in _thinking_claims(thinking):
        args.setdefault("enable_thinking", claim.thinks)
        budget = claim.budget if claim.budget is not None else budget
    return budget, args


def _plain_claims(thinking_budget: int | None, thinking_token_budget: int | None) -> list[Claim]:
    return [
        *claim_of_budget("thinking_budget", thinking_budget),
        *claim_of_budget("thinking_token_budget", thinking_token_budget),
    ]


def _thinking_claims(thinking: ThinkingField | None) -> list[Claim]:
    match thinking:
        case ThinkingEnabled(budget):
            return [Claim("thinking", "enabled" if budget is None else budget, budget, True)]
        case ThinkingAdaptive():
            return [Claim("thinking", "adaptive", None, True)]
        case ThinkingDisabled():
            return [Claim("thinking", "disabled", 0, False)]
    return []
