"""The cases of the Open Responses compliance suite (openresponses.org, version 2026-04-24) over HTTP.

The suite itself needs a JavaScript runtime and its repository; what it sends and demands is restated here.
Its WebSocket cases are left out: that transport is not served.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from asyncio import to_thread
from typing import Any

import pytest
from openai.types.responses import CompactedResponse, Response, ResponseStreamEvent
from pydantic import TypeAdapter

from penstock.wire.sse import SseParser
from support.agent_service import AgentService
from support.scripted_service import MODEL

# What `ResponseResource` requires, null or not.
REQUIRED = {
    "id",
    "object",
    "created_at",
    "completed_at",
    "status",
    "incomplete_details",
    "model",
    "previous_response_id",
    "instructions",
    "output",
    "error",
    "tools",
    "tool_choice",
    "truncation",
    "parallel_tool_calls",
    "text",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
    "temperature",
    "reasoning",
    "usage",
    "max_output_tokens",
    "max_tool_calls",
    "store",
    "background",
    "service_tier",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
}
ITEM_REQUIRED = {
    "message": {"type", "id", "status", "role", "content"},
    "function_call": {"type", "id", "call_id", "name", "arguments", "status"},
}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
PNG = "data:image/png;base64,iVBORw0KGgo="
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a location",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string", "description": "city and state"}},
        "required": ["location"],
    },
}


def message(content: Any, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content} | more


CASES: dict[str, dict[str, Any]] = {
    "basic-response": {"input": [message("Say hello in exactly 3 words.")]},
    "assistant-phase": {
        "input": [
            message("I should answer with the saved number.", "assistant", phase="commentary"),
            message("The number is four.", "assistant", phase="final_answer"),
            message("Repeat only the number."),
        ]
    },
    "system-prompt": {"input": [message("You are a pirate.", "system"), message("Say hello.")]},
    "tool-calling": {"input": [message("What's the weather like in San Francisco?")], "tools": [WEATHER]},
    "image-input": {
        "input": [
            message(
                [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": PNG}]
            )
        ]
    },
    "multi-turn": {
        "input": [
            message("My name is Alice."),
            message("Hello Alice! Nice to meet you.", "assistant"),
            message("What is my name?"),
        ]
    },
    "function-call-roundtrip": {
        "input": [
            message("What's the weather like in San Francisco?"),
            {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
        ],
        "tools": [WEATHER],
    },
    "offline-web-search": {"input": [message("Say hello.")], "tools": [{"type": "web_search"}]},
}


async def post(url: str, path: str, body: dict[str, Any]) -> tuple[int, str, bytes]:
    """(status, content type, body)"""

    def send() -> tuple[int, str, bytes]:
        data, headers = json.dumps(body).encode(), {"content-type": "application/json"}
        request = urllib.request.Request(f"{url}/v1{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.headers["content-type"], answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["content-type"], error.read()

    return await to_thread(send)


def check(body: dict[str, Any]) -> None:
    assert REQUIRED - body.keys() == set()
    for item in body["output"]:
        assert ITEM_REQUIRED[item["type"]] - item.keys() == set()
    Response.model_validate_json(json.dumps(body), strict=True)


@pytest.fixture
async def server(serve):
    return await serve(AgentService())


@pytest.mark.parametrize("case", CASES)
async def test_answer(server, case):
    """Red if a case of the suite fails: a status, an empty output or a field that the schema requires."""
    status, _, answer = await post(server.url, "/responses", {"model": MODEL} | CASES[case])
    assert status == 200, answer
    body = json.loads(answer)
    check(body)
    assert body["output"]
    assert body["status"] == "completed"
    if case == "tool-calling":
        assert [item["type"] for item in body["output"]] == ["function_call"]


@pytest.mark.parametrize("case", CASES)
async def test_stream(server, case):
    """Red if a streamed case fails: an event off its schema, or one that the suite waits for is not there."""
    status, media, answer = await post(
        server.url, "/responses", {"model": MODEL, "stream": True} | CASES[case]
    )
    assert (status, media.partition(";")[0]) == (200, "text/event-stream")
    *frames, done = SseParser().feed(answer)
    assert done == ("", b"[DONE]")
    events = [json.loads(payload) for _, payload in frames]
    for (name, payload), event in zip(frames, events, strict=True):
        EVENT.validate_json(payload, strict=True)
        assert name == event["type"]
    assert events[-1]["type"] == "response.completed"
    check(events[-1]["response"])
    if case == "tool-calling":
        types = {event["type"] for event in events}
        assert {"response.function_call_arguments.delta", "response.function_call_arguments.done"} <= types


async def test_previous_response_id(server):
    """Red if a response can't be gone on from, or one that does not exist can."""
    _, _, first = await post(server.url, "/responses", {"model": MODEL, "input": "My name is Alice."})
    more = {"model": MODEL, "input": "What is my name?", "previous_response_id": json.loads(first)["id"]}
    status, _, second = await post(server.url, "/responses", more)
    assert status == 200
    check(json.loads(second))
    status, _, error = await post(server.url, "/responses", more | {"previous_response_id": "resp_missing"})
    assert (status, json.loads(error)["error"]["code"]) == (400, "previous_response_not_found")


async def test_compaction(server):
    """Red if the compaction endpoint's answer is off its schema, or a missing model is not refused."""
    items = [message("We agreed to launch on Tuesday."), message("Understood.", "assistant")]
    body = {"model": MODEL, "prompt_cache_key": "k", "input": items}
    status, _, answer = await post(server.url, "/responses/compact", body)
    assert status == 200
    compacted = CompactedResponse.model_validate_json(answer, strict=True)
    assert [item.type for item in compacted.output] == ["compaction"]
    status, _, _ = await post(server.url, "/responses/compact", {"input": items})
    assert status == 400
