"""What real agents sent, sent again: each request of a conversation gets the answer that it went on from.

`make test-agents` runs the agents themselves; with ARGS=--record it renews the recordings.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from penstock.call import Message
from penstock.wire.sse import SseParser
from support.agent_sessions import AGENTS, LAST_WORDS, TASK, Agent, AgentModel
from support.live_server import Running

Json = dict[str, Any]
RESPONSE_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

of_every_agent = pytest.mark.parametrize("agent", AGENTS, ids=[agent.name for agent in AGENTS])


def recorded(agent: Agent) -> Json:
    found: Json = json.loads(agent.recorded.read_text())
    return found


def requests_of(agent: Agent, session: Json) -> list[Json]:
    """The conversation's requests, each with the one before it as its beginning."""
    body = session["body"]
    return [body | {agent.items: body[agent.items][:end]} for end in session["ends"]]


async def ask(server: Running, session: Json, body: Json) -> bytes:
    headers = [f"{name}: {value}" for name, value in session["headers"].items()]
    status, _, answer = await server.post(session["path"], json.dumps(body).encode(), *headers)
    assert status == 200, answer
    return answer


def items_of_stream(agent: Agent, answer: bytes) -> list[Json]:
    """What the model said, as the agent's API sends it back; every event as the API's SDK declares it."""
    *frames, (_, last) = SseParser().feed(answer)
    assert last == b"[DONE]"
    found = [data for _, data in frames]
    if agent.items == "input":
        events = list(map(json.loads, found))
        for event in events:
            RESPONSE_EVENT.validate_python(event)
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        (end,) = (event["response"] for event in events if event["type"] == "response.completed")
        assert end["output"] == done
        assert end["usage"]["total_tokens"] == end["usage"]["input_tokens"] + end["usage"]["output_tokens"]
        return done
    for chunk in found:
        ChatCompletionChunk.model_validate_json(chunk, strict=True)
    return [_added_up(list(map(json.loads, found)))]


def _added_up(chunks: list[Json]) -> Json:
    """As clients add up a stream: by index, id and name once."""
    message: Json = {"role": "assistant", "content": "", "reasoning_content": ""}
    calls: list[Json] = []
    for delta in (choice["delta"] for chunk in chunks for choice in chunk["choices"]):
        message["content"] += delta.get("content") or ""
        message["reasoning_content"] += delta.get("reasoning_content") or ""
        for piece in delta.get("tool_calls", ()):
            if piece["index"] == len(calls):
                calls.append({"id": piece["id"], "type": piece["type"], "function": piece["function"]})
            else:
                assert piece.keys() == {"index", "function"} and piece["function"].keys() == {"arguments"}
                calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    return message | {"tool_calls": calls}


def said(items: list[Json]) -> list[tuple[str, ...]]:
    """What of items or messages has to come through, without ids that the server makes."""
    found: list[tuple[str, ...]] = []
    for item in items:
        kind = item.get("type", "message")
        if kind == "function_call":
            found.append((kind, item["call_id"], item["name"], item["arguments"]))
        elif kind == "custom_tool_call":
            found.append((kind, item["call_id"], item["name"], item["input"]))
        elif kind == "reasoning":
            found.append((kind, *(part["text"] for part in item["summary"])))
        elif isinstance(item["content"], list):
            found.append((kind, *(part["text"] for part in item["content"])))
        else:
            found.append((kind, item["content"] or "", item.get("reasoning_content") or ""))
            calls = [(call["id"], call["function"]) for call in item.get("tool_calls", ())]
            found += [("function_call", id, call["name"], call["arguments"]) for id, call in calls]
    return found


@of_every_agent
async def test_every_turn_gets_the_answer_that_the_agent_went_on_from(serve: Any, agent: Agent) -> None:
    """Red if a field that an agent sends is refused, an event loses its form, or an answer is another than
    the agent understood."""
    session = recorded(agent)
    server = await serve(AgentModel(agent))
    turns = requests_of(agent, session)
    for turn, following in zip(turns, [*turns[1:], None], strict=True):
        items = items_of_stream(agent, await ask(server, session, turn))
        if following is None:
            assert LAST_WORDS in json.dumps(items)
        else:
            behind = following[agent.items][len(turn[agent.items]) :]
            understood = said([item for item in behind if _of_model(item)])
            if not agent.returns_reasoning:
                items = [item | {"reasoning_content": ""} for item in items]
            assert said(items) == understood
    for other in session["others"]:
        assert items_of_stream(agent, await ask(server, session, other))


def _of_model(item: Json) -> bool:
    kind = item.get("type", "message")
    return not kind.endswith("_output") and item.get("role", "assistant") == "assistant"


@of_every_agent
async def test_a_whole_answer_says_what_the_stream_says(serve: Any, agent: Agent) -> None:
    """Red if an agent that does not stream gets another answer."""
    session = recorded(agent)
    server = await serve(AgentModel(agent))
    for turn in requests_of(agent, session):
        streamed = said(items_of_stream(agent, await ask(server, session, turn)))
        whole = {name: value for name, value in turn.items() if name != "stream_options"} | {"stream": False}
        answer = json.loads(await ask(server, session, whole))
        if agent.items == "input":
            Response.model_validate(answer)
            items = answer["output"]
        else:
            ChatCompletion.model_validate(answer, strict=True)
            items = [answer["choices"][0]["message"]]
        assert said(items) == streamed


@of_every_agent
async def test_a_conversation_shares_its_prefix_and_its_session(serve: Any, agent: Agent) -> None:
    """Red if a turn is read otherwise when it comes back as history, which costs its cached prefix; or if the
    requests of one session are not known to be."""
    session = recorded(agent)
    server = await serve(AgentModel(agent))
    for turn in requests_of(agent, session):
        await ask(server, session, turn)
    calls = server.service.calls
    assert [call.tools for call in calls] == [calls[0].tools] * len(calls)
    before: tuple[Message, ...] = ()
    for call in calls:
        assert call.messages[: len(before)] == before
        before = call.messages
    keys = {call.cache.key for call in calls}
    assert len(keys) == 1 and (None in keys) is not agent.names_session
    assert any(TASK in message.text for message in before if message.role == "user")
