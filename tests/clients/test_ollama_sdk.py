"""The official `ollama` package against the server, over sockets: what its users do all day."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import queue
import urllib.request
from pathlib import Path

import pytest

ollama = pytest.importorskip("ollama", reason="the ollama package is part of the test extra")

from penstock.api.errors import ClientGone
from penstock.gateway.local_library import LocalLibrary
from penstock.models.store import store_folder
from support.scripted_service import CONTEXT, MODEL
from support.threaded_server import live_servers
from support.tiny_models import make_tiny

HELLO = [{"role": "user", "content": "hello there you"}]
NOW = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": None}}


@pytest.fixture
def live_server():
    with live_servers() as start:
        yield start


@pytest.fixture
def server(live_server):
    return live_server()


@pytest.fixture
def client(server):
    with ollama.Client(host=server.url) as sdk:
        yield sdk


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# ---------------------------------------------------------------- answers


def test_chat(client):
    """Red if a plain answer is not of the SDK's type, or lacks counts, durations or times that it reads."""
    answer = client.chat(MODEL, HELLO)
    assert isinstance(answer, ollama.ChatResponse)
    assert (answer.message.role, answer.message.content) == ("assistant", "hello there you")
    assert (answer.done, answer.done_reason, answer.model) == (True, "stop", MODEL)
    assert (answer.prompt_eval_count, answer.eval_count) == (3, 3)
    # ScriptedService: 1 ms in the queue, the first token after 2, the end after 3.
    assert (answer.load_duration, answer.prompt_eval_duration, answer.eval_duration) == (10**6, 10**6, 10**6)
    assert answer.total_duration == 3 * 10**6
    assert answer.created_at.endswith("Z")


def test_chat_stream(client):
    """Red if lines do not add up to the answer, or another line than the last is done."""
    parts = list(client.chat(MODEL, HELLO, stream=True))
    assert "".join(part.message.content for part in parts) == "hello there you"
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (parts[-1].done_reason, parts[-1].eval_count) == ("stop", 3)
    assert {part.message.role for part in parts} == {"assistant"}


def test_generate(client, server):
    """Red if a prompt is not a turn with its system text before it, or the answer stands in another field."""
    answer = client.generate(MODEL, "hello there", system="be brief")
    assert (answer.response, answer.done_reason, answer.eval_count) == ("hello there", "stop", 2)
    assert [(m.role, m.text) for m in server.service.calls[-1].messages] == [
        ("system", "be brief"),
        ("user", "hello there"),
    ]
    parts = list(client.generate(MODEL, "hello there", stream=True))
    assert "".join(part.response for part in parts) == "hello there"
    assert parts[-1].done


def test_raw_generate(client, server):
    """Red if a raw prompt goes through the chat template."""
    assert client.generate(MODEL, "a b c", raw=True).response == "a b c"
    call = server.service.calls[-1]
    assert (call.kind, call.prompts, call.messages) == ("completion", ("a b c",), ())


def test_options_reach_the_service(client, server):
    """Red if an option is dropped or read as another."""
    answer = client.chat(
        MODEL,
        HELLO,
        options={
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "typical_p": 0.8,
            "seed": 7,
            "num_predict": 2,
            "stop": ["you"],
            "repeat_penalty": 1.2,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.25,
            "num_ctx": CONTEXT,
            "num_gpu": 1,
        },
        keep_alive="5m",
    )
    assert (answer.message.content, answer.done_reason) == ("hello there", "length")
    sampling = server.service.calls[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
    assert (sampling.typical_p, sampling.seed, sampling.max_tokens) == (0.8, 7, 2)
    assert (sampling.stop, sampling.repetition_penalty) == (("you",), 1.2)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, 0.25)
    assert client.chat(MODEL, HELLO, options={"num_predict": -1}).done_reason == "stop"


def test_tools(client):
    """Red if arguments come as text instead of an object, or a call is lost in one of the modes."""
    answer = client.chat(MODEL, ask("/tool"), tools=[NOW])
    assert [(c.function.name, c.function.arguments) for c in answer.message.tool_calls] == [("now", {})]
    parts = list(client.chat(MODEL, ask("/tool"), tools=[NOW], stream=True))
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    assert [(c.function.name, c.function.arguments) for c in calls] == [("now", {})]
    assert parts[-1].done_reason == "stop"


def test_python_functions_as_tools_and_their_answers(client, server):
    """Red if the SDK's own way to offer functions is refused, or a tool's answer loses its call."""

    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: the one
            b: the other
        """
        return a + b

    called = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}],
    }
    answer = {"role": "tool", "tool_name": "add", "content": "3"}
    client.chat(MODEL, [*HELLO, called, answer, *HELLO], tools=[add])
    call = server.service.calls[-1]
    assert (call.tools[0].name, call.tools[0].parameters["required"]) == ("add", ["a", "b"])
    part, result = call.messages[1].parts[0], call.messages[2].parts[0]
    assert json.loads(part.arguments) == {"a": 1, "b": 2}
    assert (part.id, result.content[0].text) == (result.id, "3")


def test_thinking(client, server):
    """Red if reasoning stands in the answer's text, or `think` does not reach the template."""
    answer = client.chat(MODEL, ask("/think"), think=True)
    assert (answer.message.thinking, answer.message.content) == ("let me see", "yes")
    assert server.service.calls[-1].template_args == {"enable_thinking": True}
    parts = list(client.chat(MODEL, ask("/think"), think="high", stream=True))
    assert "".join(part.message.thinking or "" for part in parts) == "let me see"
    assert server.service.calls[-1].template_args == {"reasoning_effort": "high"}
    client.chat(MODEL, HELLO, think=False)
    assert server.service.calls[-1].template_args == {"enable_thinking": False}
    assert client.generate(MODEL, "/think", think=True).thinking == "let me see"


def test_format(client, server):
    """Red if a schema or "json" is not what the answer is held to."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    client.chat(MODEL, HELLO, format=schema)
    assert server.service.calls[-1].response_format.schema == schema
    client.generate(MODEL, "x", format="json")
    assert server.service.calls[-1].response_format.kind == "json_object"


def test_logprobs(client):
    """Red if log-probabilities are lost in one of the modes."""
    answer = client.chat(MODEL, HELLO, logprobs=True, top_logprobs=2)
    assert [item.token for item in answer.logprobs] == ["hello", " there", " you"]
    assert [top.token for top in answer.logprobs[0].top_logprobs] == ["hello", "hello~1"]
    parts = list(client.chat(MODEL, HELLO, logprobs=True, stream=True))
    assert [item.token for part in parts for item in part.logprobs or ()] == ["hello", " there", " you"]


def test_text_with_line_separators_streams(client):
    """Red if a character that Python takes for the end of a line cuts a line of the stream in two."""
    text = "a\u2028b\u2029c\u0085d\x0be\nf é😀"
    parts = list(client.chat(MODEL, ask(text), stream=True))
    assert "".join(part.message.content for part in parts) == text


def test_a_name_with_the_latest_tag(client):
    """Red if `name:latest` is another model than `name`, or the answer shows another than was asked for."""
    assert client.chat(MODEL + ":latest", HELLO).model == MODEL + ":latest"


# ---------------------------------------------------------------- loading


def test_an_empty_request_loads(client, server):
    """Red if a request without anything to answer generates, or does not say that the model is loaded."""
    for answer in (client.chat(MODEL), client.generate(MODEL), client.generate(MODEL, keep_alive=-1)):
        assert (answer.done, answer.done_reason) == (True, "load")
    assert [part.done_reason for part in client.generate(MODEL, stream=True)] == ["load"]
    assert server.service.calls == []


def test_unloading_the_served_model_is_refused(client):
    """Red if the server says that it unloaded a model which is still there."""
    with pytest.raises(ollama.ResponseError, match="stop the server") as caught:
        client.generate(MODEL, keep_alive=0)
    assert caught.value.status_code == 400
    assert client.chat(MODEL, HELLO, keep_alive=0).done_reason == "stop"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "status", "names"),
    [
        ({"model": "nobody"}, 404, "nobody"),
        ({"options": {"num_ctx": CONTEXT + 1}}, 400, "num_ctx: 513"),
        ({"options": {"top_p": 3}}, 400, "options.top_p"),
        ({"options": {"repeat_penalty": 200.0}}, 400, "options.repeat_penalty"),
        ({"options": {"temperature": "hot"}}, 400, "options.temperature"),
        ({"options": {"mirostat": 2}}, 400, "mirostat"),
        ({"keep_alive": "soon"}, 400, "keep_alive"),
        ({"think": "deeply"}, 400, "think"),
        ({"messages": [{"role": "user", "content": "x", "images": [b"\x89PNG"]}]}, 400, "images"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "tool_name"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, 400, "role"),
        ({"messages": ask("/fail rate_limit_error")}, 429, "scripted"),
        ({"messages": ask("/fail service_unavailable_error")}, 503, "scripted"),
        ({"messages": ask(" ".join(["x"] * 600))}, 400, "600 tokens"),
    ],
)
def test_errors_are_the_sdks_with_their_status(client, arguments, status, names):
    """Red if an error is not a ResponseError with its status, or hides what is wrong."""
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError) as caught:
            list(client.chat(**{"model": MODEL, "messages": HELLO, "stream": stream} | arguments))
        assert (caught.value.status_code, names in caught.value.error) == (status, True), caught.value.error


@pytest.mark.parametrize("field", ["suffix", "template", "context"])
def test_what_generate_cannot_honour_is_refused_by_name(client, field):
    """Red if a field that would change the answer is dropped in silence."""
    value = [1] if field == "context" else "x"
    with pytest.raises(ollama.ResponseError, match=field) as caught:
        client.generate(MODEL, "hello", **{field: value})
    assert caught.value.status_code == 400


def test_an_error_inside_a_stream(client):
    """Red if a stream that breaks ends without the SDK's error."""
    stream = client.chat(MODEL, ask("/fail-after service_unavailable_error"), stream=True)
    assert next(stream).message.content == "start"
    with pytest.raises(ollama.ResponseError, match="scripted"):
        next(stream)


def test_embeddings_say_that_they_are_not_served(client):
    """Red if a route that does nothing is a 404, which clients take for a missing model."""
    for method, fields in ((client.embed, {"input": "x"}), (client.embeddings, {"prompt": "x"})):
        with pytest.raises(ollama.ResponseError, match="embeddings") as caught:
            method(MODEL, **fields)
        assert caught.value.status_code == 501


def test_the_key_of_the_server(live_server):
    """Red if the error of a missing key is not in this API's form, or the right key is refused."""
    server = live_server(api_key="k")
    with (
        ollama.Client(host=server.url) as client,
        pytest.raises(ollama.ResponseError, match="API key") as caught,
    ):
        client.list()
    assert caught.value.status_code == 401
    with ollama.Client(host=server.url, headers={"Authorization": "Bearer k"}) as client:
        assert client.list().models


# ---------------------------------------------------------------- async


async def test_async_client(server):
    """Red if the async client reads another answer, or a stream of it can't be read."""
    async with ollama.AsyncClient(host=server.url) as client:
        answers = await asyncio.gather(*(client.chat(MODEL, ask(f"hello {i}")) for i in range(8)))
        assert [answer.message.content for answer in answers] == [f"hello {i}" for i in range(8)]
        parts = [part async for part in await client.chat(MODEL, HELLO, stream=True)]
        assert "".join(part.message.content for part in parts) == "hello there you"


async def test_leaving_cancels(server):
    """Red if an answer goes on for a client that left, in either mode."""
    async with ollama.AsyncClient(host=server.url) as client:
        stream = await client.chat(MODEL, ask("/hang-after 3"), stream=True)
        async for part in stream:
            if part.message.content.endswith(" 2"):
                break
        await stream.aclose()
        waiting = asyncio.create_task(client.chat(MODEL, ask("/hang")))
        await asyncio.to_thread(server.wait, server.service.seen(started=2))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.to_thread(server.wait, server.service.idle())
    assert server.service.cancelled == 2


# ---------------------------------------------------------------- models


@pytest.fixture
def model_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model store of the test's own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return store_folder()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny("llama", tmp_path / "tiny-llama")


@pytest.fixture
def library(live_server, model_store, tiny):
    """A client of a server with a library: the scripted model stands for a tiny one's files."""
    server = live_server(library=LocalLibrary(lambda: {MODEL: str(tiny)}))
    with ollama.Client(host=server.url) as sdk:
        yield sdk


def names(client) -> set[str]:
    return {model.model for model in client.list().models}


def test_list_ps_and_show(library, tiny):
    """Red if a model lacks what the SDK and agents read: sizes, digest, details, context, capabilities."""
    assert names(library) == {"org/name:latest", f"{MODEL}:latest"}
    listed = {model.model: model for model in library.list().models}[f"{MODEL}:latest"]
    assert listed.size == sum(file.stat().st_size for file in tiny.iterdir())
    assert (len(listed.digest), listed.details.family, listed.details.format) == (64, "llama", "safetensors")
    running = {model.model: model for model in library.ps().models}[f"{MODEL}:latest"]
    assert (running.context_length, running.digest, running.size_vram) == (CONTEXT, listed.digest, 0)
    assert running.expires_at.year == 9999
    shown = library.show(MODEL)
    config = json.loads((tiny / "config.json").read_text())
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == config["max_position_embeddings"]
    assert shown.modelinfo["llama.embedding_length"] == config["hidden_size"]
    assert shown.capabilities[0] == "completion"
    with pytest.raises(ollama.ResponseError) as caught:
        library.show("nobody")
    assert caught.value.status_code == 404


def test_thinking_is_refused_for_a_model_that_does_not(library):
    """Red if a client that asks for thinking is answered without, as if the model had thought."""
    with pytest.raises(ollama.ResponseError, match="does not support thinking") as caught:
        library.chat(MODEL, HELLO, think=True)
    assert caught.value.status_code == 400
    assert library.chat(MODEL, HELLO, think=False).message.content == "hello there you"


def test_pull_copy_and_delete(library, tiny, model_store):
    """Red if a model does not come, is not listed, or what remains of a deleted one is damaged."""
    progress = list(library.pull(str(tiny), stream=True))
    assert progress[-1].status == "success"
    total = sum(file.stat().st_size for file in tiny.iterdir())
    assert [(p.completed, p.total) for p in progress[:-1]][-1] == (total, total)
    assert "tiny-llama:latest" in names(library)
    assert library.copy("tiny-llama", "again").status == "success"
    digests = {model.model: model.digest for model in library.list().models}
    assert digests["again:latest"] == digests["tiny-llama:latest"]
    weights = "model.safetensors"
    assert (model_store / "again" / weights).samefile(model_store / "tiny-llama" / weights)
    assert library.delete("tiny-llama:latest").status == "success"
    assert names(library) == {"org/name:latest", f"{MODEL}:latest", "again:latest"}
    kept = (model_store / "again" / weights).read_bytes()
    assert hashlib.sha256(kept).digest() == hashlib.sha256((tiny / weights).read_bytes()).digest()
    for refused in (lambda: library.delete("tiny-llama"), lambda: library.copy("tiny-llama", "other")):
        with pytest.raises(ollama.ResponseError) as caught:
            refused()
        assert caught.value.status_code == 404


def test_leaving_ends_a_pull(live_server):
    """Red if a pull goes on for a client that left, or its numbers pile up for one that reads slowly."""
    ended: queue.Queue[BaseException] = queue.Queue()

    class Endless(LocalLibrary):
        def pull(self, name, progress):
            try:
                for done in itertools.count():
                    progress("download", done, 10**9)
            except BaseException as error:
                ended.put(error)
                raise

    server = live_server(library=Endless(dict))
    with ollama.Client(host=server.url) as client:
        stream = client.pull("endless", stream=True)
        first, second = next(stream), next(stream)
        assert (first.status, first.total) == ("pulling", 10**9)
        assert second.completed > first.completed
        stream.close()
        assert isinstance(ended.get(timeout=20), ClientGone)


def test_create(library, tiny):
    """Red if a model can't be made from a file or another one, or a request for more is half done."""
    assert library.create("mine", from_=str(tiny)).status == "success"
    assert [part.status for part in library.create("yours", from_="mine", stream=True)][-1] == "success"
    assert {"mine:latest", "yours:latest"} <= names(library)
    with pytest.raises(ollama.ResponseError, match="system"):
        library.create("theirs", from_="mine", system="be brief")
    assert "theirs:latest" not in names(library)


def test_what_must_not_happen_to_the_library(library, tiny, tmp_path):
    """Red if a served model is deleted or replaced, a bad file is taken in, or a name leaves the store."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    for refused, status in (
        (lambda: library.delete(MODEL), 400),
        (lambda: library.copy(MODEL, MODEL), 400),
        (lambda: library.copy(MODEL, "smollm2"), 400),
        (lambda: library.copy(MODEL, "../escape"), 400),
        (lambda: library.pull(str(broken)), 400),
        (lambda: library.create("x", from_=str(tmp_path / "absent")), 404),
        (lambda: library.pull("nobody-has-this"), 404),
        (lambda: list(library.pull("nobody-has-this", stream=True)), 404),
        (lambda: library.push(MODEL), 501),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            refused()
        assert caught.value.status_code == status, caught.value.error
    assert names(library) == {"org/name:latest", f"{MODEL}:latest"}


def test_without_a_library_models_are_listed_and_not_managed(client):
    """Red if a server without a model store breaks where clients only look."""
    assert {model.model for model in client.list().models} == {f"{MODEL}:latest", "org/name:latest"}
    assert len(client.ps().models) == 2
    with pytest.raises(ollama.ResponseError) as caught:
        client.show(MODEL)
    assert caught.value.status_code == 501


def test_version_and_greeting(server):
    """Red if the probes that clients send first are not answered as Ollama does."""
    for method in ("GET", "HEAD"):
        request = urllib.request.Request(server.url + "/", method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert (answer.status, answer.read()) == (200, b"Ollama is running" if method == "GET" else b"")
    with urllib.request.urlopen(server.url + "/api/version", timeout=20) as answer:
        numbers = json.load(answer)["version"].split(".")
    assert len(numbers) == 3 and all(number.isdigit() for number in numbers)
