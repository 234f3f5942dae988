"""Files and batches with the official `openai` package, over sockets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from penstock.call import BATCH_PRIORITY
from support.scripted_service import MODEL, ScriptedService

openai = pytest.importorskip("openai", reason="needs the official SDK: pip install penstock[test]")
from openai.types import Batch, FileObject
from openai.types.chat import ChatCompletion

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ENDED = ("failed", "completed", "expired", "cancelled")


@pytest.fixture
async def client(serve):
    server = await serve()
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as sdk:
        sdk.server = server
        yield sdk


def line(custom_id: str, text: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": text}]} if url == CHAT else {}
    asked = {"prompt": text} if url == COMPLETIONS else asked
    asked = {"input": text} if url == RESPONSES else asked
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": MODEL, **asked, **body}}


async def upload(client: Any, lines: list[Any], purpose: str = "batch") -> FileObject:
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    return await client.files.create(file=("in.jsonl", text.encode()), purpose=purpose)


async def start(client: Any, lines: list[Any], endpoint: str = CHAT, **fields: Any) -> Batch:
    file = await upload(client, lines)
    return await client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **fields
    )


async def ended(client: Any, batch: Batch) -> Batch:
    async with asyncio.timeout(20):
        while batch.status not in ENDED:
            batch = await client.batches.retrieve(batch.id)
    return batch


async def lines_of(client: Any, file_id: str | None) -> dict[str, Any]:
    text = (await client.files.content(file_id)).text
    assert text.endswith("\n")
    lines = [json.loads(one) for one in text.splitlines()]
    assert len({one["custom_id"] for one in lines}) == len(lines)
    return {one["custom_id"]: one for one in lines}


# --------------------------------------------------------------------------- files


async def test_a_file_is_kept_shown_and_deleted(client):
    """Red if a file's bytes change, in whatever pieces it came, or an object is not of the SDK's type."""
    data = bytes(range(256)) * 9000 + b"\r\n--"
    raw = await client.files.with_raw_response.create(file=('né "1".bin', data), purpose="user_data")
    made = FileObject.model_validate_json(raw.text, strict=True)
    assert (made.bytes, made.filename, made.purpose) == (len(data), 'né "1".bin', "user_data")
    assert made.expires_at is None
    assert await client.files.retrieve(made.id) == made
    assert (await client.files.content(made.id)).content == data
    assert (await client.files.delete(made.id)).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match=made.id):
            await call(made.id)


async def test_files_are_listed_in_pages(client):
    """Red if a page loses or repeats a file, or the purpose is not looked at."""
    names = [(await upload(client, ["x"], "batch" if i % 2 else "evals")).id for i in range(5)]
    found = [file.id async for file in client.files.list(limit=2)]
    assert found == names[::-1]
    assert [file.id async for file in client.files.list(limit=2, order="asc")] == names
    assert [file.id async for file in client.files.list(limit=1, purpose="batch")] == [names[3], names[1]]
    with pytest.raises(openai.BadRequestError, match="after"):
        await client.files.list(after="file-none")


async def test_expiry_of_files(client):
    """Red if files for batches stay for ever, or a wished lifetime is forgotten."""
    file = await upload(client, ["x"])
    assert file.expires_at == pytest.approx(file.created_at + 30 * 86400, abs=2)
    short = await client.files.create(
        file=b"x", purpose="evals", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert short.expires_at == pytest.approx(short.created_at + 3600, abs=2)
    with pytest.raises(openai.BadRequestError, match="3600 to"):
        await client.files.create(
            file=b"x", purpose="evals", expires_after={"anchor": "created_at", "seconds": 3599}
        )


async def test_uploads_that_are_none(serve):
    """Red if an upload that can't be kept leaves something behind, or does not say why."""
    server = await serve(max_file_bytes=1024)
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="purpose"):
            await upload(client, ["x"], "poetry")
        with pytest.raises(openai.APIStatusError, match="max_file_bytes") as caught:
            await upload(client, ["x" * 2000])
        assert caught.value.status_code == 413
        with pytest.raises(openai.APIStatusError, match="max_file_bytes") as caught:
            await upload(client, ["x" * 200_000])
        assert caught.value.status_code == 413
        assert (await client.files.list()).data == []
    status, _, body = await server.post("/v1/files", b"{}")
    assert status == 415 and b"multipart/form-data" in body
    form = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'
    kind = "Content-Type: multipart/form-data; boundary=b"
    status, _, body = await server.post("/v1/files", form, kind)
    assert status == 400 and b"holds no file" in body
    status, _, body = await server.post("/v1/files", form, kind, "Origin: https://example.org")
    assert status == 403 and b"cors_origins" in body
    status, _, body = await server.post("/v1/files", form, kind, "Origin: http://localhost")
    assert status == 400


# --------------------------------------------------------------------------- batches


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS, RESPONSES])
async def test_a_batch_of_every_format(client, endpoint):
    """Red if a line's answer is not the body that the route gives, a refused line is no error line, or the
    counts don't add up."""
    lines = [line(f"r{i}", f"hello {i}", endpoint) for i in range(40)]
    lines += [line("bad", "x", endpoint, temperature=-1), line("stream", "x", endpoint, stream=True)]
    made = await start(client, lines, endpoint, metadata={"night": "1"})
    raw = await client.batches.with_raw_response.retrieve(made.id)
    Batch.model_validate_json(raw.text, strict=True)
    batch = await ended(client, made)
    assert (batch.status, batch.metadata, batch.model) == ("completed", {"night": "1"}, MODEL)
    assert batch.request_counts.to_dict() == {"total": 42, "completed": 40, "failed": 2}
    assert batch.expires_at == batch.created_at + 86400
    assert None not in (batch.in_progress_at, batch.finalizing_at, batch.completed_at)
    answers = await lines_of(client, batch.output_file_id)
    assert answers.keys() == {f"r{i}" for i in range(40)}
    for name, answer in answers.items():
        assert (answer["response"]["status_code"], answer["error"]) == (200, None)
        assert f'hello {name[1:]}"' in json.dumps(answer["response"]["body"])
    if endpoint == CHAT:
        ChatCompletion.model_validate(answers["r1"]["response"]["body"])
    errors = await lines_of(client, batch.error_file_id)
    assert {name: one["response"]["body"]["error"]["param"] for name, one in errors.items()} == {
        "bad": "temperature",
        "stream": "stream",
    }
    assert {one["response"]["status_code"] for one in errors.values()} == {400}
    assert batch.usage is not None and batch.usage.total_tokens > 0
    calls = client.server.service.calls
    assert {call.priority for call in calls} == {BATCH_PRIORITY}
    for file in (batch.output_file_id, batch.error_file_id):
        found = await client.files.retrieve(file)
        assert found.purpose == "batch_output"
        assert found.bytes == len((await client.files.content(file)).content)


async def test_answers_of_a_batch_of_responses_can_be_gone_on_from(client):
    """Red if the responses of a batch are not stored as those of the route are."""
    batch = await ended(client, await start(client, [line("a", "my name is Ada", RESPONSES)], RESPONSES))
    answer = (await lines_of(client, batch.output_file_id))["a"]["response"]["body"]
    more = await client.responses.create(model=MODEL, input="again", previous_response_id=answer["id"])
    assert more.previous_response_id == answer["id"]


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        ("{not json", "invalid_json_line", None),
        ("[1]", "invalid_json_line", None),
        (line("r0", "x"), "duplicate_custom_id", "custom_id"),
        (line("x", "x", COMPLETIONS), "url_mismatch", "url"),
        (line("x", "x") | {"method": "GET"}, "invalid_method", "method"),
        (line("x", "x", model="gpt-9"), "model_not_found", "body.model"),
        (line("x", "x", model="org/name"), "model_mismatch", "body.model"),
        ({"custom_id": "x", "method": "POST", "url": CHAT}, "missing_required_parameter", "body"),
        (
            {"method": "POST", "url": CHAT, "body": {"model": MODEL}},
            "missing_required_parameter",
            "custom_id",
        ),
        ({"custom_id": 7, "method": "POST", "url": CHAT, "body": {}}, "invalid_request", None),
        (line("x\x00", "x"), "invalid_request", "custom_id"),
        (line("x", "x") | {"body": 5}, "invalid_request", "body"),
    ],
)
async def test_a_file_with_a_bad_line_fails_as_a_whole(client, bad, code, param):
    """Red if a file that can't be run is run in part, or the error does not name line and field."""
    batch = await ended(client, await start(client, [line("r0", "x"), "", bad, line("r2", "x")]))
    assert (batch.status, batch.output_file_id, batch.request_counts.total) == ("failed", None, 0)
    assert [(error.code, error.line, error.param) for error in batch.errors.data] == [(code, 3, param)]
    assert batch.failed_at is not None
    assert client.server.service.calls == []


async def test_an_empty_file_fails(client):
    """Red if a batch without requests completes."""
    batch = await ended(client, await start(client, ["", " "]))
    assert [error.code for error in batch.errors.data] == ["empty_file"]


async def test_what_create_refuses(client):
    """Red if a batch that can't be is made, or the SDK's exception does not name the field."""
    file = await upload(client, [line("a", "x")])
    other = await upload(client, [line("a", "x")], "evals")
    good = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    for field, value in [
        ("input_file_id", "file-none"),
        ("input_file_id", other.id),
        ("endpoint", "/v1/moderations"),
        ("completion_window", "1h"),
        ("metadata", {"a": "x" * 600}),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.batches.create(**(good | {field: value}))
        assert caught.value.param is not None and caught.value.param.startswith(field)
    with pytest.raises(openai.NotFoundError):
        await client.batches.retrieve("batch_none")
    assert (await client.batches.list()).data == []


async def test_a_cancelled_batch_keeps_what_was_answered(client):
    """Red if cancelling loses answers, leaves a request without a line, or waits for those in flight."""
    service: ScriptedService = client.server.service
    made = await start(client, [line("done", "hello"), *(line(f"h{i}", "/hang") for i in range(30))])
    await service.seen(finished=1, started=2)
    while (await client.batches.retrieve(made.id)).request_counts.completed == 0:
        pass
    cancelled = await client.batches.cancel(made.id)
    assert cancelled.status == "cancelling" and cancelled.cancelling_at is not None
    batch = await ended(client, cancelled)
    assert (batch.status, batch.cancelled_at is not None) == ("cancelled", True)
    assert (await lines_of(client, batch.output_file_id)).keys() == {"done"}
    errors = await lines_of(client, batch.error_file_id)
    assert errors.keys() == {f"h{i}" for i in range(30)}
    assert {one["error"]["code"] for one in errors.values()} == {"batch_cancelled"}
    await service.idle()
    with pytest.raises(openai.ConflictError, match="cancelled"):
        await client.batches.cancel(made.id)


async def test_batches_are_listed_in_pages(client):
    """Red if a page loses or repeats a batch, or Anthropic's are among them."""
    names = [(await start(client, [line("a", "x")])).id for _ in range(3)]
    assert [batch.id async for batch in client.batches.list(limit=2)] == names[::-1]
    with pytest.raises(openai.BadRequestError, match="limit"):
        await client.batches.list(limit=101)


async def test_batches_show_in_the_metrics(client):
    """Red if nobody can see how many lines ended how."""
    await ended(client, await start(client, [line("a", "x"), line("b", "/fail internal_error")]))
    text = (await client.server.get("/metrics"))[2].decode()
    assert 'penstock_batch_lines_total{state="succeeded"} 1.0' in text
    assert 'penstock_batch_lines_total{state="errored"} 1.0' in text
