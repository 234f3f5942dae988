"""The official `anthropic` package against the server, over sockets: what its users do all day."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from penstock.call import ReasoningPart, ToolCallPart, ToolResultPart
from penstock.errors import Overloaded
from support.scripted_service import MODEL

anthropic = pytest.importorskip("anthropic", reason="needs the official SDK: pip install penstock[test]")
from anthropic.types import Message as SdkMessage
from anthropic.types import ModelInfo

HELLO = [{"role": "user", "content": "hello there you"}]
NOW = {"name": "now", "description": "the time", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture
async def client(serve):
    server = await serve()
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="any", max_retries=0) as sdk:
        sdk.server = server
        yield sdk


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": text}], **fields}


async def stream(client: Any, text: str, **fields: Any) -> Any:
    async with client.messages.stream(**ask(text, **fields)) as events:
        return await events.get_final_message()


# --------------------------------------------------------------------------- answers


async def test_message(client):
    """Red if a plain answer is not of the SDK's type, or its usage or ids are wrong."""
    raw = await client.messages.with_raw_response.create(**ask("hello there you"))
    answer = SdkMessage.model_validate_json(await raw.text(), strict=True)
    assert [block.to_dict() for block in answer.content] == [{"type": "text", "text": "hello there you"}]
    assert (answer.stop_reason, answer.stop_sequence, answer.model) == ("end_turn", None, MODEL)
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens) == (2, 1)
    assert answer.usage.output_tokens == 3
    assert answer.id.startswith("msg_")
    assert raw.request_id == raw.headers["x-request-id"]


@pytest.mark.parametrize("text", ["hello there you", "/tool", "/think"])
async def test_the_stream_helper_ends_with_the_same_message(client, text):
    """Red if the SDK's accumulating helper can't add a stream up, or gets another answer than a whole one."""
    whole = await client.messages.create(**ask(text))
    summed = await stream(client, text)
    assert [block.to_dict() for block in whole.content] == [
        {name: value for name, value in block.to_dict().items() if name != "parsed_output"}
        for block in summed.content
    ]
    for field in ("stop_reason", "stop_sequence", "usage", "model", "role"):
        assert getattr(summed, field) == getattr(whole, field)


async def test_stream_events(client):
    """Red if text does not arrive piece by piece, or events are of no type that the SDK knows."""
    async with client.messages.stream(**ask("hello there you")) as events:
        assert [text async for text in events.text_stream] == ["hello", " there", " you"]
    raw = await client.messages.create(**ask("hello there"), stream=True)
    assert [event.type async for event in raw] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


async def test_sync_client(client):
    """Red if the blocking client fails where the asynchronous one does not."""

    def talk() -> tuple[str, str]:
        with anthropic.Anthropic(base_url=client.base_url, api_key="any", max_retries=0) as sdk:
            whole = sdk.messages.create(**ask("a b")).content[0].text
            with sdk.messages.stream(**ask("a b")) as events:
                return whole, "".join(events.text_stream)

    assert await asyncio.to_thread(talk) == ("a b", "a b")


async def test_stop_sequences_and_limits(client):
    """Red if an answer that was stopped or cut does not say by what."""
    stopped = await client.messages.create(**ask("hello there you", stop_sequences=["x", "you"]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "you")
    assert stopped.content[0].text == "hello there"
    cut = await client.messages.create(**ask("hello there you") | {"max_tokens": 1})
    assert (cut.stop_reason, cut.content[0].text) == ("max_tokens", "hello")


# --------------------------------------------------------------------------- tools and thinking


async def test_a_tool_is_called_and_answered(client):
    """Red if a call does not reach the client as an object, or its result not the model as one."""
    asked = ask("/tool", tools=[NOW], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    answer = await client.messages.create(**asked)
    (used,) = answer.content
    assert (used.type, used.name, used.input, answer.stop_reason) == ("tool_use", "now", {}, "tool_use")
    result = {"type": "tool_result", "tool_use_id": used.id, "content": [{"type": "text", "text": "noon"}]}
    history = [
        *asked["messages"],
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result, {"type": "text", "text": "so what"}]},
    ]
    await client.messages.create(**asked | {"messages": history})
    first, second = client.server.service.calls
    assert (first.tool_choice, first.parallel_tool_calls) == ("required", False)
    assert [tool.name for tool in first.tools] == ["now"]
    _, called, answered, _ = second.messages
    assert called.parts == (ToolCallPart(used.id, "now", "{}"),)
    assert isinstance(answered.parts[0], ToolResultPart) and answered.parts[0].id == used.id


async def test_thinking_is_signed_and_comes_back(client):
    """Red if a thinking block has no signature, or is not taken back in the next turn."""
    answer = await stream(client, "/think", thinking={"type": "enabled", "budget_tokens": 1024})
    thought, said = answer.content
    assert (thought.thinking, said.text) == ("let me see", "yes")
    assert thought.signature
    history = [*HELLO, {"role": "assistant", "content": [thought.to_dict(), said.to_dict()]}, *HELLO]
    await client.messages.create(**ask("") | {"messages": history})
    first, second = client.server.service.calls
    assert first.sampling.thinking_budget == 1024
    assert second.messages[1].parts[0] == ReasoningPart("let me see")


async def test_structured_output(client):
    """Red if the schema that the SDK's `parse` makes of a type does not reach the service."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    await client.messages.create(
        **ask("x", output_config={"format": {"type": "json_schema", "schema": schema}})
    )
    form = client.server.service.calls[-1].response_format
    assert form is not None and (form.kind, form.schema, form.strict) == ("json_schema", schema, True)


async def test_an_image_is_refused_clearly(client):
    """Red if a picture is dropped in silence by a model that reads text only."""
    data = base64.b64encode(b"\x89PNG").decode()
    for source in (
        {"type": "base64", "media_type": "image/png", "data": data},
        {"type": "url", "url": "https://e.example/a.png"},
    ):
        content = [{"type": "image", "source": source}]
        with pytest.raises(anthropic.BadRequestError, match="reads text only; leave images out"):
            await client.messages.create(**ask("") | {"messages": [{"role": "user", "content": content}]})


async def test_a_prefill_is_refused_in_anthropics_words(client):
    """Red if the beginning of an answer is taken for a finished turn."""
    history = [*HELLO, {"role": "assistant", "content": "The"}]
    with pytest.raises(anthropic.BadRequestError, match="does not support assistant message prefill"):
        await client.messages.create(**ask("") | {"messages": history})


# --------------------------------------------------------------------------- errors

TYPED = [
    ("invalid_request_error", "BadRequestError", 400, "invalid_request_error"),
    ("permission_error", "PermissionDeniedError", 403, "permission_error"),
    ("not_found_error", "NotFoundError", 404, "not_found_error"),
    ("rate_limit_error", "OverloadedError", 529, "overloaded_error"),
    ("service_unavailable_error", "OverloadedError", 529, "overloaded_error"),
    ("internal_error", "InternalServerError", 500, "api_error"),
    ("timeout_error", "DeadlineExceededError", 504, "timeout_error"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind,name,status,shown", TYPED, ids=[case[0] for case in TYPED])
async def test_errors_are_the_sdks_own_exceptions(client, kind, name, status, shown, streamed):
    """Red if a failure is another exception than users of the SDK catch, in either mode."""
    with pytest.raises(anthropic.APIStatusError) as caught:
        await client.messages.create(**ask(f"/fail {kind}"), stream=streamed)
    error = caught.value
    assert type(error) is getattr(anthropic, name, None) or type(error).__name__ == name
    assert (error.status_code, error.type, error.api_message) == (status, shown, f"scripted {kind}")
    assert error.request_id == error.body["request_id"]
    assert ("retry-after" in error.response.headers) == (status == 529)


async def test_an_error_after_the_stream_began(client):
    """Red if a stream that breaks ends as if it were whole, or tells a client what broke inside."""
    for text, kind in (
        ("/fail-after service_unavailable_error", "overloaded_error"),
        ("/raise-after", "api_error"),
    ):
        with pytest.raises(anthropic.APIStatusError) as caught:
            await stream(client, text)
        assert caught.value.type == kind
        assert "secret" not in str(caught.value)


async def test_a_wrong_key_and_an_unknown_model(serve):
    """Red if the two most common mistakes are not the exceptions that say so."""
    server = await serve(api_key="right")
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="wrong", max_retries=0) as sdk:
        with pytest.raises(anthropic.AuthenticationError):
            await sdk.messages.create(**ask("x"))
        with pytest.raises(anthropic.AuthenticationError):
            await sdk.models.list()
    async with anthropic.AsyncAnthropic(base_url=server.url, auth_token="right", max_retries=0) as sdk:
        with pytest.raises(anthropic.NotFoundError, match="claude-nine"):
            await sdk.messages.create(**ask("x") | {"model": "claude-nine"})


async def test_a_body_over_the_limit(serve):
    """Red if a request that is too large is not Anthropic's error for it."""
    server = await serve(max_body_bytes=2048)
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="k", max_retries=0) as sdk:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await sdk.messages.create(**ask("x" * 4096))
    assert (caught.value.status_code, caught.value.type) == (413, "request_too_large")


async def test_a_retry_succeeds(serve):
    """Red if the SDK does not retry what was refused for lack of capacity: it goes by status and header."""
    server = await serve()
    service = server.service
    answer, tries = service.stream, 0

    def first_fails(call: Any, request_id: str) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Overloaded("full", retry_after_s=0.01)
        return answer(call, request_id)

    service.stream = first_fails
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="k", max_retries=2) as sdk:
        assert (await sdk.messages.create(**ask("a"))).content[0].text == "a"
    assert tries == 2


# --------------------------------------------------------------------------- cancellation


async def test_closing_a_stream_cancels_the_call(client):
    """Red if a client that leaves, before or after the first token, leaves its call running."""
    service = client.server.service
    async with client.messages.stream(**ask("/hang-after 3")) as events:
        async for text in events.text_stream:
            assert text
            break
    await service.seen(cancelled=1)
    task = asyncio.create_task(client.messages.create(**ask("/hang")))
    await service.seen(started=2)
    task.cancel()
    await service.seen(cancelled=2)
    await service.idle()


# --------------------------------------------------------------------------- tokens and models


async def test_count_tokens(client):
    """Red if the count is not that of the prompt, generation prompt included, or tools are left out of it."""
    counted = await client.messages.count_tokens(model=MODEL, messages=HELLO, system="be brief", tools=[NOW])
    assert counted.input_tokens == 3 + 2 + 1
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.count_tokens(model="other", messages=HELLO)


async def test_models(client):
    """Red if a model can't be listed, or called by a name in the list; or pages repeat or lose one."""
    raw = await client.models.with_raw_response.list(limit=1000)
    for model in (await client.models.list()).data:
        ModelInfo.model_validate(model.to_dict(mode="python"), strict=True)
        assert (await client.models.retrieve(model.id)).id == model.id
        assert (await client.messages.create(**ask("a") | {"model": model.id})).content[0].text == "a"
    names = [model.id async for model in client.models.list(limit=1)]
    assert names == [MODEL, f"claude-penstock/{MODEL}", "org/name", "claude-penstock/org/name"]
    assert raw.http_response.json()["has_more"] is False
    before = await client.models.list(before_id="org/name", limit=1)
    assert [model.id for model in before.data] == [f"claude-penstock/{MODEL}"]
    with pytest.raises(anthropic.NotFoundError):
        await client.models.retrieve("claude-penstock/none")
    with pytest.raises(anthropic.BadRequestError, match="limit"):
        await client.models.list(limit=0)
