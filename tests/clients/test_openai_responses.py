"""The official SDK's Responses and Conversations against a live server: what its users do all day."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from pydantic import BaseModel

from support.agent_service import AgentService
from support.scripted_service import MODEL

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
        "additionalProperties": False,
    },
}


def connect(server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)


@pytest.fixture
async def client(serve):
    server = await serve()
    async with connect(server) as sdk:
        sdk.server = server
        yield sdk


def seen(client) -> list[tuple[str, str]]:
    """(role, text) of the messages that the service got last."""
    return [(message.role, message.text) for message in client.server.service.calls[-1].messages]


# --------------------------------------------------------------------------- answers


async def test_text_and_usage(client):
    """Red if a plain answer's text, usage or parameters are not where the SDK looks for them."""
    answer = await client.responses.create(
        model=MODEL, input="hello there you", instructions="be brief", metadata={"a": "b"}, temperature=0.5
    )
    assert (answer.output_text, answer.status, answer.error) == ("hello there you", "completed", None)
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (3, 3, 6)
    assert usage.input_tokens_details.cached_tokens == 1
    assert (answer.instructions, answer.metadata, answer.temperature) == ("be brief", {"a": "b"}, 0.5)
    assert seen(client) == [("system", "be brief"), ("user", "hello there you")]


async def test_stream_helper(client):
    """Red if the SDK's accumulating helper can't add the stream up to its final response."""
    async with client.responses.stream(model=MODEL, input="hello there you") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "hello there you"
    assert [e.snapshot for e in events if e.type == "response.output_text.delta"][-1] == "hello there you"
    assert final.output_text == "hello there you"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    stored = await client.responses.retrieve(final.id)
    assert (stored.id, stored.output_text, stored.usage) == (final.id, final.output_text, final.usage)
    assert stored.output[0].id == next(e.item.id for e in events if e.type == "response.output_item.added")


async def test_cut_by_the_limit(client):
    """Red if an answer that max_output_tokens cut looks complete."""
    answer = await client.responses.create(model=MODEL, input="hello there you", max_output_tokens=1)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


async def test_logprobs(client):
    """Red if log-probabilities are not in the text part, or come unasked."""
    asked = await client.responses.create(
        model=MODEL, input="hello there", include=["message.output_text.logprobs"], top_logprobs=1
    )
    items = asked.output[0].content[0].logprobs
    assert [(item.token, item.logprob) for item in items] == [("hello", -0.25), (" there", -0.25)]
    assert items[0].top_logprobs[0].token == "hello"
    plain = await client.responses.create(model=MODEL, input="hello there")
    assert plain.output[0].content[0].logprobs == []


async def test_reasoning(client):
    """Red if reasoning is lost, or not a summary where one was asked for."""
    answer = await client.responses.create(model=MODEL, input="/think")
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output[0].content[0].text == "let me see"
    asked = await client.responses.create(model=MODEL, input="/think", reasoning={"summary": "auto"})
    assert asked.output[0].summary[0].text == "let me see"


async def test_structured_output(client):
    """Red if `parse()` does not reach the grammar, or can't read what comes back."""

    class Point(BaseModel):
        x: int

    answer = await client.responses.parse(model=MODEL, input='{"x": 3}', text_format=Point)
    assert answer.output_parsed == Point(x=3)
    form = client.server.service.calls[-1].response_format
    assert (form.kind, form.name, form.strict) == ("json_schema", "Point", True)
    assert form.schema["properties"]["x"]["type"] == "integer"


# --------------------------------------------------------------------------- tools


async def test_tools_round_trip(serve):
    """Red if a call, its result by call id, or the answer behind it is lost between two requests."""
    server = await serve(AgentService())
    async with connect(server) as sdk:
        async with sdk.responses.stream(model=MODEL, input="weather?", tools=[WEATHER]) as stream:
            types = [event.type async for event in stream]
            first = await stream.get_final_response()
        assert "response.function_call_arguments.delta" in types
        (call,) = first.output
        assert (call.name, json.loads(call.arguments)) == ("get_weather", {"location": "San Francisco, CA"})
        assert call.parsed_arguments == {"location": "San Francisco, CA"}
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        second = await sdk.responses.create(
            model=MODEL, previous_response_id=first.id, input=[result], tools=[WEATHER]
        )
        assert second.output_text == "It said: sunny"
        again = await sdk.responses.create(
            model=MODEL,
            input=[{"role": "user", "content": "weather?"}, *first.output, result],
            tools=[WEATHER],
        )
        assert again.output_text == "It said: sunny"
        assert server.service.calls[-1].messages == server.service.calls[-2].messages


async def test_custom_tool_and_namespace(serve):
    """Red if a freeform tool gets JSON instead of its text, or a namespace's tool another name."""
    server = await serve(AgentService('{"input":"*** Begin \\"Patch\\"\\n"}'))
    patch = {"type": "custom", "name": "apply_patch"}
    space = {"type": "namespace", "name": "crm", "description": "", "tools": [WEATHER]}
    async with connect(server) as sdk:
        stream = await sdk.responses.create(model=MODEL, input="fix", tools=[patch], stream=True)
        events = [event async for event in stream]
        written = "".join(e.delta for e in events if e.type == "response.custom_tool_call_input.delta")
        (item,) = events[-1].response.output
        assert item.type == "custom_tool_call"
        assert written == item.input == '*** Begin "Patch"\n'
        result = {"type": "custom_tool_call_output", "call_id": item.call_id, "output": "ok"}
        second = await sdk.responses.create(
            model=MODEL, input=[{"role": "user", "content": "fix"}, item, result], tools=[patch]
        )
        assert second.output_text == "It said: ok"
        (nested,) = (await sdk.responses.create(model=MODEL, input="x", tools=[space])).output
        assert (nested.name, nested.namespace) == ("get_weather", "crm")


# --------------------------------------------------------------------------- stored turns


async def test_previous_response_survives_a_restart(serve):
    """Red if a conversation is gone after the server restarts, or goes on with other turns."""
    first_server = await serve()
    async with connect(first_server) as sdk:
        first = await sdk.responses.create(model=MODEL, input="one", instructions="not carried over")
    await first_server.finish()
    second_server = await serve()
    async with connect(second_server) as sdk:
        second = await sdk.responses.create(model=MODEL, input="two", previous_response_id=first.id)
        assert second.previous_response_id == first.id
        sdk.server = second_server
        assert seen(sdk) == [("user", "one"), ("assistant", "one"), ("user", "two")]
        assert (await sdk.responses.retrieve(first.id)).output_text == "one"


async def test_two_answers_to_one_response_are_a_fork(client):
    """Red if one branch of a conversation sees the other's turns."""
    root = await client.responses.create(model=MODEL, input="root")
    left, right = await asyncio.gather(
        *(
            client.responses.create(model=MODEL, input=t, previous_response_id=root.id)
            for t in ("left", "right")
        )
    )
    for branch, name in ((left, "left"), (right, "right")):
        await client.responses.create(model=MODEL, input="next", previous_response_id=branch.id)
        texts = [text for _, text in seen(client)]
        assert texts == ["root", "root", name, name, "next"]


async def test_store_false_is_not_stored(client):
    """Red if an answer that must not be stored can be got or gone on from."""
    answer = await client.responses.create(model=MODEL, input="secret", store=False)
    assert answer.store is False
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model=MODEL, input="x", previous_response_id=answer.id)
    assert caught.value.code == "previous_response_not_found"


async def test_delete_and_input_items(client):
    """Red if input items are not listed, or a deleted response can still be got."""
    items = [{"role": "user", "content": word} for word in ("a", "b", "c")]
    answer = await client.responses.create(model=MODEL, input=items)
    listed = [item async for item in client.responses.input_items.list(answer.id, limit=2, order="asc")]
    assert [item.content[0].text for item in listed] == ["a", "b", "c"]
    newest = await client.responses.input_items.list(answer.id, limit=1)
    assert (newest.data[0].content[0].text, newest.has_more) == ("c", True)
    await client.responses.delete(answer.id)
    for gone in (client.responses.retrieve(answer.id), client.responses.delete(answer.id)):
        with pytest.raises(openai.NotFoundError):
            await gone


async def test_item_references(client):
    """Red if an item that is stored can't be named instead of sent again."""
    first = await client.responses.create(model=MODEL, input="one")
    reference = {"type": "item_reference", "id": first.output[0].id}
    await client.responses.create(model=MODEL, input=[reference, {"role": "user", "content": "two"}])
    assert seen(client) == [("assistant", "one"), ("user", "two")]
    with pytest.raises(openai.BadRequestError, match="no item 'nope'"):
        await client.responses.create(model=MODEL, input=[{"type": "item_reference", "id": "nope"}])


async def test_conversations(client):
    """Red if a conversation does not collect the turns of its responses, in order, with its own items."""
    made = await client.conversations.create(
        items=[{"role": "user", "content": "zero"}], metadata={"topic": "t"}
    )
    for word in ("one", "two"):
        answer = await client.responses.create(model=MODEL, input=word, conversation=made.id)
        assert answer.conversation.id == made.id
    assert [text for _, text in seen(client)] == ["zero", "one", "one", "two"]
    items = [item async for item in client.conversations.items.list(made.id, order="asc", limit=2)]
    assert [item.content[0].text for item in items] == ["zero", "one", "one", "two", "two"]
    added = await client.conversations.items.create(made.id, items=[{"role": "user", "content": "three"}])
    got = await client.conversations.items.retrieve(added.data[0].id, conversation_id=made.id)
    assert got.content[0].text == "three"
    await client.conversations.items.delete(items[0].id, conversation_id=made.id)
    await client.responses.create(model=MODEL, input="four", conversation=made.id)
    assert [text for _, text in seen(client)][:2] == ["one", "one"]
    changed = await client.conversations.update(made.id, metadata={"topic": "u"})
    assert (await client.conversations.retrieve(made.id)).metadata == changed.metadata == {"topic": "u"}
    assert (await client.conversations.delete(made.id)).deleted
    for gone in (
        client.conversations.retrieve(made.id),
        client.conversations.items.list(made.id),
        client.responses.create(model=MODEL, input="x", conversation=made.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await gone


async def test_a_response_goes_on_from_a_conversation_without_changing_it(client):
    """Red if previous_response_id appends to the conversation that the response was part of."""
    made = await client.conversations.create()
    inside = await client.responses.create(model=MODEL, input="in", conversation=made.id)
    await client.responses.create(model=MODEL, input="out", previous_response_id=inside.id)
    items = [item async for item in client.conversations.items.list(made.id, order="asc")]
    assert [item.content[0].text for item in items] == ["in", "in"]


async def test_counting_and_compaction(client):
    """Red if counting differs from asking, or a compaction can't be gone on from."""
    count = await client.responses.input_tokens.count(model=MODEL, input="one two three")
    assert count.input_tokens == 4  # three words and the generation prompt
    short = await client.responses.compact(model=MODEL, input="a long story")
    assert [item.type for item in short.output] == ["compaction"]
    await client.responses.create(
        model=MODEL,
        input=[short.output[0].model_dump(exclude_none=True), {"role": "user", "content": "go on"}],
    )
    assert "in short" in seen(client)[0][1]


# --------------------------------------------------------------------------- errors and ends

ERRORS = [
    ("rate_limit_error", openai.RateLimitError),
    ("service_unavailable_error", openai.InternalServerError),
    ("invalid_request_error", openai.BadRequestError),
]


@pytest.mark.parametrize("kind,error", ERRORS, ids=[kind for kind, _ in ERRORS])
@pytest.mark.parametrize("stream", [False, True])
async def test_early_errors_are_typed(client, kind, error, stream):
    """Red if an error before the first token is a 200."""
    with pytest.raises(error):
        await client.responses.create(model=MODEL, input=f"/fail {kind}", stream=stream)


async def test_errors_name_the_field(client):
    """Red if a refused field is not named, an unknown model is no 404, or an image a silent blank."""
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.responses.create(model="gpt-9", input="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model=MODEL, input="x", background=True)
    assert refused.value.param == "background"
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    with pytest.raises(openai.BadRequestError, match="text only"):
        await client.responses.create(model=MODEL, input=[{"role": "user", "content": [image]}])


async def test_a_late_error_is_raised_and_not_stored(client):
    """Red if an engine that dies mid-stream looks like an answer, or is kept as one."""
    stream = await client.responses.create(
        model=MODEL, input="/fail-after service_unavailable_error", stream=True
    )
    types = []
    with pytest.raises(openai.APIError, match="scripted"):
        async for event in stream:
            types.append(event.type)
            if event.type == "response.failed":
                name = event.response.id
                assert event.response.error.code == "server_error"
    assert types[-1] == "response.failed"
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(name)


async def test_a_client_that_leaves_cancels_and_stores_nothing(client):
    """Red if closing a stream leaves the engine at work, or half an answer in the store."""
    stream = await client.responses.create(model=MODEL, input="/hang-after 2", stream=True)
    events = aiter(stream)
    name = (await anext(events)).response.id
    async for event in events:
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    await client.server.service.seen(cancelled=1)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(name)


async def test_cancel_from_elsewhere(client):
    """Red if cancelling does not stop the engine, leaves the reader waiting, or is not to be seen later."""
    stream = await client.responses.create(model=MODEL, input="/hang-after 2", stream=True)
    events = aiter(stream)
    name = (await anext(events)).response.id
    async for event in events:
        if event.type == "response.output_text.delta":
            break
    cancelled = await client.responses.cancel(name)
    assert cancelled.status == "cancelled"
    with pytest.raises(openai.APIError, match="cancelled"):
        async for _ in events:
            pass
    await client.server.service.seen(cancelled=1)
    assert (await client.responses.retrieve(name)).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="only running"):
        await client.responses.cancel(name)
    with pytest.raises(openai.NotFoundError):
        await client.responses.cancel("resp_nope")


async def test_sync_sdk(serve):
    """Red if the synchronous SDK (another HTTP client inside) can't talk to the server."""
    server = await serve()

    def talk() -> tuple[str, str]:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as sdk:
            first = sdk.responses.create(model=MODEL, input="one two")
            with sdk.responses.stream(model=MODEL, input="three", previous_response_id=first.id) as stream:
                return first.output_text, stream.get_final_response().output_text

    assert await asyncio.to_thread(talk) == ("one two", "three")
