"""Turns kept as messages against all their items read at once; outputs of calls by their ids."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidRequest
from penstock.gateway.history import History
from penstock.wire.openai_responses_items import read_items, stored

Json = dict[str, Any]
IDS = st.sampled_from(["a", "b", "c"])


def call(name: str, **fields: Any) -> Json:
    return {"type": "function_call", "call_id": name, "name": f"f{name}", "arguments": "{}"} | fields


def output(name: str) -> Json:
    return {"type": "function_call_output", "call_id": name, "output": f"of {name}"}


def said(role: str, text: str = "x") -> Json:
    return {"type": "message", "role": role, "content": text}


ITEMS = st.one_of(
    st.sampled_from(["user", "assistant", "system"]).map(said),
    IDS.map(call),
    IDS.map(output),
    st.just({"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}),
    st.just({"type": "additional_tools", "tools": []}),
    st.just({"type": "custom_tool_call", "call_id": "k", "name": "f", "input": "x"}),
)


@given(turns=st.lists(st.lists(ITEMS, max_size=4), max_size=6), own=st.lists(ITEMS, max_size=3))
def test_turns_read_one_by_one_are_the_items_read_at_once(turns: list[list[Json]], own: list[Json]) -> None:
    """Red if the border between two turns splits, or merges, what is one message or two."""
    history, every = History(), list[Json]()
    for number, turn in enumerate(turns):
        items = [stored(item, f"{number}_{i}") for i, item in enumerate(turn)]
        history, every = history.extended(items), every + items
    assert history.read(own) == read_items([*every, *own])
    assert history.waiting == History().extended(every).waiting
    assert len(history.tail) <= len(every)


def test_an_error_names_the_calls_own_item() -> None:
    """Red if an item of the request is numbered among all those of its conversation."""
    history = History().extended([said("user"), call("a"), output("a"), said("assistant")])
    with pytest.raises(InvalidRequest, match=r"^input\[1\]\.type: 'nonsense'"):
        history.read([said("user"), {"type": "nonsense"}])


@given(st.permutations(["a", "b", "c"]))
def test_outputs_come_in_any_order(order: list[str]) -> None:
    """Red if concurrent calls must be answered in the order in which they were made."""
    History().extended([said("user"), *map(call, "abc")]).check_outputs([*map(output, order), said("user")])


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([output("a")], r"input: no tool output for b \(fb\)"),
        ([said("user")], r"input: no tool output for a \(fa\), b \(fb\)"),
        ([output("b"), output("z"), output("a")], r"input\[1\]\.call_id: no tool call 'z'.*waiting: a$"),
        ([output("a"), output("b"), output("a")], r"input\[2\]\.call_id: no tool call 'a'.*waiting: none$"),
        ([output("a"), output("b"), call("k")], r"input: no tool output for k \(fk\)"),
    ],
    ids=["one missing", "all missing", "unknown", "twice", "own call"],
)
def test_outputs_that_do_not_fit_are_refused_by_name(own: list[Json], message: str) -> None:
    """Red if a missing, unknown or repeated call id reaches the model as a conversation without sense."""
    history = History().extended([said("user"), call("a"), call("b")])
    with pytest.raises(InvalidRequest, match=message):
        history.check_outputs(own)


def test_calls_that_nobody_can_answer_do_not_wait() -> None:
    """Red if a call that a limit cut off, or one that the user went past, blocks its conversation."""
    cut = History().extended([said("user"), call("a", status="incomplete")])
    cut.check_outputs([said("user")])
    past = History().extended([said("user"), call("a"), said("user"), said("assistant")])
    past.check_outputs([said("user")])
