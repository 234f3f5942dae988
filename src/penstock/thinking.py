"""What requests say about thinking, in all spellings, and whether they agree.

Each spelling is a claim: a budget of thinking tokens, or that the model shall think or not, or both. Two
claims that can't both hold are refused, naming both: taking either would surprise somebody.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from itertools import combinations
from typing import Any

from msgspec import Struct

from penstock.errors import InvalidRequest

# Tokens of thinking per level of `reasoning_effort`. low to high are those of Gemini's OpenAI-compatible API.
EFFORT_BUDGETS = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 65536}
SWITCHES = ("enable_thinking", "thinking")  # names that chat templates have for it
KWARGS = "chat_template_kwargs"


class Claim(Struct, frozen=True):
    """`name` and `value` as the caller wrote them. None: nothing is said about it."""

    name: str
    value: Any
    budget: int | None = None
    thinks: bool | None = None


def check_agreement(claims: Iterable[Claim]) -> None:
    """Raises InvalidRequest for the first two claims that disagree."""
    for a, b in combinations(claims, 2):
        if _differ(a.budget, b.budget) or _differ(a.thinks, b.thinks):
            raise InvalidRequest(
                f"{_shown(a)} and {_shown(b)} disagree about thinking; send one of them", param=b.name
            )


def _differ(a: int | None, b: int | None) -> bool:
    return a is not None and b is not None and a != b


def _shown(claim: Claim) -> str:
    same = claim.budget is None or claim.value == claim.budget
    return f"{claim.name} ({claim.value!r}{'' if same else f', {claim.budget} tokens'})"


def claim_of_budget(name: str, budget: int | None) -> list[Claim]:
    """`budget`: None or -1 for any number, which claims nothing."""
    if budget is None or budget < 0:
        return []
    return [Claim(name, budget, budget, budget > 0)]


def claim_of_effort(effort: Any, variables: Set[str] | None, name: str = "reasoning_effort") -> list[Claim]:
    """variables: what the chat template reads, None if that is not known yet. A level that the template tells
    its model is no budget. Raises InvalidRequest for one that nobody knows."""
    if effort is None:
        return []
    if effort == "none":
        return [Claim(name, effort, 0, False)]
    if variables is None or "reasoning_effort" in variables:
        return [Claim(name, effort, None, True)]
    budget = EFFORT_BUDGETS.get(effort) if isinstance(effort, str) else None
    if budget is None:
        raise InvalidRequest(
            f"{name}: {effort!r} is no level of this model; use {', '.join(EFFORT_BUDGETS)}", param=name
        )
    return [Claim(name, effort, budget, True)]


def claims_of_template_args(args: dict[str, Any]) -> list[Claim]:
    """Of switches and budget among the template arguments; of the effort see `claim_of_effort`.

    Raises InvalidRequest for a value that is none. `thinking` may mean something else to a template, so only
    true and false count.
    """
    switch, budget = args.get("enable_thinking"), args.get("thinking_budget")
    if switch is not None and not isinstance(switch, bool):
        name = f"{KWARGS}.enable_thinking"
        raise InvalidRequest(f"{name}: {switch!r} is no switch; give true or false", param=name)
    name = f"{KWARGS}.thinking_budget"
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < -1):
        raise InvalidRequest(
            f"{name}: {budget!r} is no number of tokens; give 0 or more, or -1 for any number", param=name
        )
    switches = [
        Claim(f"{KWARGS}.{switch}", args[switch], None, args[switch])
        for switch in SWITCHES
        if isinstance(args.get(switch), bool)
    ]
    return [*switches, *claim_of_budget(name, budget)]
