"""Long sessions against the real server: what a turn computes, restarts, forks, evictions, explanations."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from sessions import BLOCK, Server, SessionDriver, Turn, make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


GENERATION_PROMPT = 11  # tokens at most: what follows the turns, and another role may follow them next time


def in_blocks(tokens: int) -> int:
    return tokens // BLOCK * BLOCK


def stays(turn: Turn) -> int:
    """Tokens of a turn's prompt that the next one's begins with, in full blocks."""
    return in_blocks(turn.prompt - GENERATION_PROMPT)


def take_turns(driver: SessionDriver, last: Turn, upto: int) -> Turn:
    """Turns until there are `upto`, each of which computes nothing but what it adds."""
    while driver.number < upto:
        turn = driver.take()
        assert turn.cached >= stays(last), f"turn {driver.number}"
        assert "evicted_tokens" not in turn.details
        last = turn
    return last


def live_through(model: Path, folder: Path, turns: int) -> None:
    """A session that is killed in the middle, and forked at its end."""
    driver = SessionDriver(Server(model, folder, "--kv-bytes", "64MiB"))
    try:
        last = take_turns(driver, driver.take(), turns // 2)
        driver.server.end(signal.SIGKILL)
        driver.server = Server(model, folder, "--kv-bytes", "64MiB")
        again = driver.take()
        assert again.cached == 0
        assert again.details["evicted_tokens"] == in_blocks(last.prompt)
        last = take_turns(driver, again, turns)
        origin = driver.last
        driver._calls.clear()
        for _ in range(2):
            fork = driver.take(origin)
            assert fork.cached >= stays(last)
    finally:
        driver.server.end()


def test_a_session_of_200_turns(model: Path, tmp_path: Path) -> None:
    """Red if a turn, or a fork, computes more than what it adds, with concurrent calls of tools, or if a
    kill of the server loses a turn, or the turn after it does not say that it computes everything again."""
    live_through(model, tmp_path, 200)


@pytest.mark.nightly
def test_a_session_of_2000_turns(model: Path, tmp_path: Path) -> None:
    """As above, to the end of a context of 131,072 tokens."""
    live_through(model, tmp_path, 2000)


@pytest.fixture(scope="module")
def small(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose KV holds 4,096 tokens."""
    server = Server(model, tmp_path_factory.mktemp("small"), "--kv-bytes", "512KiB", "--max-context", "4096")
    yield server
    server.end()


def complete(server: Server, first: int, tokens: int) -> int:
    """A prompt of so many tokens, which begins like no other; how many of them were cached."""
    ids = [10 + (first * 37 + i * i) % 300 for i in range(tokens)]
    body = {"model": "tiny", "prompt": ids, "max_tokens": 1, "ignore_eos": True}
    status, data = server.ask("POST", "/v1/completions", body)
    assert status == 200, data
    details = msgspec.json.decode(data)["usage"]["prompt_tokens_details"]
    return int(details["cached_tokens"])


def test_a_session_stays_in_the_cache_while_others_pass(small: Server) -> None:
    """Red if a stored turn's prompt is not pinned, or a pin keeps a large request from its room, or the
    turn after an eviction does not say what it computes again."""
    driver = SessionDriver(small)
    last = take_turns(driver, driver.take(), 8)
    for other in range(12):
        complete(small, other, 700)
    last = take_turns(driver, last, 9)
    assert complete(small, 50, 4000) == 0
    evicted = driver.take()
    assert evicted.details["evicted_tokens"] >= stays(last) - evicted.cached > 0
    take_turns(driver, evicted, 12)


def test_a_deleted_turn_is_pinned_no_longer(small: Server) -> None:
    """Red if what was deleted keeps its place in the cache."""
    driver = SessionDriver(small)
    for _ in range(7):
        driver.take()
    pinned = _pinned(small)
    assert pinned > 0
    assert driver.last is not None
    answer = small.turn([{"role": "user", "content": "x" * 200}], driver.last)
    assert _pinned(small) > pinned
    assert small.ask("DELETE", f"/v1/responses/{answer['id']}")[0] == 200
    assert _pinned(small) == pinned


def _pinned(server: Server) -> int:
    server.counters()  # waits until the engine has reported
    text = server.ask("GET", "/metrics")[1].decode()
    line = next(
        line for line in text.splitlines() if line.startswith("penstock_kv_blocks{") and '"pinned"' in line
    )
    return int(float(line.split()[-1]))


def test_usage_and_the_debug_route_say_why_a_turn_missed(small: Server) -> None:
    """Red if a changed instruction or tool is not named, with the token at which the prompts part."""
    told: dict[str, Any] = {"instructions": "Today is Monday.", "include": ["usage.prefix_miss"]}
    first = small.turn([{"role": "user", "content": "hi"}], None, **told)
    same = small.turn([{"role": "user", "content": "and"}], first["id"], **told)
    assert "prefix_miss" not in same["usage"]["input_tokens_details"]
    other = small.turn(
        [{"role": "user", "content": "so"}], same["id"], **told | {"instructions": "Today is Tuesday."}
    )
    miss = other["usage"]["input_tokens_details"]["prefix_miss"]
    assert miss["field"] == "instructions"
    assert "Today is Mon" in miss["before"] and "Today is Tue" in miss["after"]
    status, data = small.ask("GET", f"/debug/prefix-miss/{other['id']}")
    assert (status, msgspec.json.decode(data)) == (200, {"miss": miss, "object": "prefix_miss"})
    status, data = small.ask("GET", f"/debug/prefix-miss/{same['id']}")
    assert (status, msgspec.json.decode(data)["miss"]) == (200, None)
    status, data = small.ask("GET", f"/debug/prefix-miss/{first['id']}")
    assert status == 400 and b"goes on from no response" in data
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}]}
    tool = {"type": "function", "function": {"name": "alpha"}}
    bodies = {
        "before": chat | {"tools": [tool]},
        "after": chat | {"tools": [tool | {"function": {"name": "beta"}}]},
    }
    status, data = small.ask("POST", "/debug/prefix-miss", bodies)
    assert (status, msgspec.json.decode(data)["miss"]["field"]) == (200, "tools[0].name")


def test_calls_are_answered_by_their_ids(small: Server) -> None:
    """Red if outputs of concurrent calls must stand in order, or one without its call reaches the model."""
    calls = [
        {"type": "function_call", "call_id": name, "name": "alpha", "arguments": "{}"} for name in ("a", "b")
    ]
    made = [{"role": "user", "content": "x"}, *calls]
    outputs = [{"type": "function_call_output", "call_id": name, "output": name} for name in ("b", "a")]
    first = small.turn([*made, *outputs], None)
    for items, said in (
        ([{"type": "function_call_output", "call_id": "a", "output": "again"}], "no tool call 'a' waits"),
        ([{"role": "user", "content": "y"}, calls[0]], "no tool output for a (alpha)"),
    ):
        with pytest.raises(RuntimeError, match="400") as error:
            small.turn(items, first["id"])
        assert said in str(error.value)
    conversation = msgspec.json.decode(small.ask("POST", "/v1/conversations", {})[1])["id"]
    small.turn([*made, *outputs], None, conversation=conversation)
    with pytest.raises(RuntimeError, match="no tool call 'z' waits"):
        small.turn([outputs[0] | {"call_id": "z"}], None, conversation=conversation)


def test_a_conversation_that_changed_is_read_again(small: Server) -> None:
    """Red if items that were added, or deleted, beside the answers are not what the next one sees."""
    conversation = msgspec.json.decode(small.ask("POST", "/v1/conversations", {})[1])["id"]
    path = f"/v1/conversations/{conversation}/items"

    def prompt_tokens() -> int:
        body = {"model": "tiny", "input": "x", "conversation": conversation}
        return int(
            msgspec.json.decode(small.ask("POST", "/v1/responses/input_tokens", body)[1])["input_tokens"]
        )

    small.turn([{"role": "user", "content": "one"}], None, conversation=conversation)
    before = prompt_tokens()
    added = small.ask("POST", path, {"items": [{"type": "message", "role": "user", "content": "q" * 30}]})
    name = msgspec.json.decode(added[1])["data"][0]["id"]
    assert prompt_tokens() > before + 20
    assert small.ask("DELETE", f"{path}/{name}")[0] == 200
    assert prompt_tokens() == before
    small.turn([{"role": "user", "content": "two"}], None, conversation=conversation)
    assert prompt_tokens() > before
