"""`penstock serve` and `penstock engine` from outside: one line when ready, a clean end, nothing left."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

READY = re.compile(r"^(\S+) on \S+ · weights .+ \+ KV .+ tokens\) · (\S+) · ready in [\d.]+ s$", re.MULTILINE)


class Server:
    """A running verb; `errors` collects its stderr."""

    def __init__(self, environment: dict[str, str], *arguments: object) -> None:
        command = [sys.executable, "-m", "penstock", *map(str, arguments)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.errors = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.errors += line
            if READY.search(line):
                self._ready.set()
        self._ready.set()

    def ready(self) -> tuple[str, str]:
        """(model, address) of the ready line."""
        self._ready.wait(120)
        found = READY.search(self.errors)
        assert found, self.errors
        return found[1], found[2]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.join()
        return code

    def join(self) -> None:
        """The process has ended: take the rest of what it said."""
        assert self.process.stderr
        self._reader.join(10)
        self.process.stderr.close()


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def begin(*arguments: object) -> Server:
        servers.append(Server(environment, *arguments))
        return servers[-1]

    yield begin
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
            server.join()


def post(url: str, body: dict, key: str | None = None) -> dict:
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def get(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


CHAT = {"model": "tiny-llama", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


def test_serve_ends_its_start_in_one_line(
    start: Callable[..., Server], tiny: Path, environment: dict[str, str]
) -> None:
    """Red if the ready line, the id of a model given by path, or the clean end on SIGTERM goes away."""
    server = start("serve", tiny, "--port", "0", "--kv-bytes", "64M")
    name, address = server.ready()
    assert name == "tiny-llama"
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
    assert post(f"{address}/v1/chat/completions", CHAT)["usage"]["completion_tokens"] <= 3
    assert server.stop() == 0
    assert re.search(r"the start took [\d.]+ s: command [\d.]+, model", server.errors)
    assert "Traceback" not in server.errors
    assert list(Path(environment["XDG_RUNTIME_DIR"]).iterdir()) == []


def test_bench_serve_measures_a_running_server(
    start: Callable[..., Server], tiny: Path, penstock: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Red if the benchmark's client and the server stop understanding each other."""
    server = start("serve", tiny, "--port", "0", "--kv-bytes", "64M")
    _, address = server.ready()
    flags = ("--num-requests", "5", "--input-len", "12", "--output-len", "4", "--vocab-size", "300")
    result = penstock("bench", "serve", "--url", address, *flags, "--concurrency", "2")
    assert result.returncode == 0, result.stderr
    assert "5 of 5 requests" in result.stdout
    assert "input 60 tokens" in result.stdout
    assert "output 20 tokens" in result.stdout
    assert server.stop() == 0


def test_an_address_beyond_loopback_gets_a_key(start: Callable[..., Server], tiny: Path) -> None:
    """Red if a server that others can reach answers without a key, or does not say which key it made."""
    server = start("serve", tiny, "--host", "0.0.0.0", "--port", "0", "--kv-bytes", "64M")
    _, address = server.ready()
    keys = re.findall(r"API key for this run: (\S+)", server.errors)
    assert len(keys) == 1
    assert len(keys[0]) >= 32
    url = address.replace("0.0.0.0", "127.0.0.1") + "/v1/chat/completions"
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(url, CHAT)
    assert caught.value.code == 401
    assert post(url, CHAT, key=keys[0])["object"] == "chat.completion"
    assert server.stop() == 0


def test_a_model_that_does_not_fit_ends_the_server(start: Callable[..., Server], tiny: Path) -> None:
    """Red if a refused model leaves a server running that can never answer."""
    server = start("serve", tiny, "--port", "0", "--kv-bytes", "900T")
    assert server.process.wait(120) == 1
    server.join()
    assert "error: " in server.errors
    assert "kv_bytes" in server.errors
    assert "Traceback" not in server.errors


def test_serve_uses_an_engine_that_runs_alone(
    start: Callable[..., Server], tiny: Path, tmp_path: Path
) -> None:
    """Red if `serve --engine` can't reach a `penstock engine`, takes it along when it ends, or names
    another model than that engine's."""
    folder = tmp_path / "e"
    folder.mkdir(mode=0o700)
    socket = f"ipc://{folder}/s"
    engine = start("engine", tiny, "--address", socket, "--kv-bytes", "64M")
    assert engine.ready()[1] == socket
    for _ in range(2):
        server = start("serve", tiny, "--engine", socket, "--port", "0")
        _, address = server.ready()
        assert post(f"{address}/v1/chat/completions", CHAT)["object"] == "chat.completion"
        assert server.stop() == 0
        assert engine.process.poll() is None
    nameless = start("serve", "--engine", socket, "--port", "0")
    _, address = nameless.ready()
    assert get(f"{address}/v1/models")["data"][0]["id"] == tiny.name
    assert nameless.stop() == 0
    assert engine.stop() == 0
    assert not (folder / "s").exists()


@pytest.mark.slow
def test_the_openai_sdk_hears_that_paris_is_the_capital(
    start: Callable[..., Server], smollm2_path: Path
) -> None:
    """Red if the first thing that anyone tries, greedy, streaming or not, gives another answer."""
    openai = pytest.importorskip("openai")
    server = start(
        "serve", smollm2_path, "--served-model-name", "smollm2", "--port", "0", "--kv-bytes", "512M"
    )
    _, address = server.ready()
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    question = {
        "model": "smollm2",
        "temperature": 0,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    whole = client.chat.completions.create(**question)
    assert whole.choices[0].message.content == "The capital of France is Paris."
    stream = client.chat.completions.create(**question, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == (
        "The capital of France is Paris."
    )
    client.close()
    assert server.stop() == 0


@pytest.mark.slow
def test_the_openai_sdk_gets_the_form_that_it_asks_for(
    start: Callable[..., Server], smollm2_path: Path
) -> None:
    """Red if `response_format`, or the forms that vLLM made common, are lost between socket and sampler."""
    openai = pytest.importorskip("openai")
    pydantic = pytest.importorskip("pydantic")

    class Town(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=20)
        inhabitants: int = pydantic.Field(ge=1, le=99)

    server = start(
        "serve", smollm2_path, "--served-model-name", "smollm2", "--port", "0", "--kv-bytes", "512M"
    )
    _, address = server.ready()
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    question = {
        "model": "smollm2",
        "temperature": 0,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "Name a town."}],
    }
    parsed = client.chat.completions.parse(**question, response_format=Town).choices[0].message.parsed
    assert isinstance(parsed, Town)
    stream = client.chat.completions.create(
        **question, stream=True, extra_body={"structured_outputs": {"choice": ["Rome", "Oslo"]}}
    )
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) in ("Rome", "Oslo")
    with pytest.raises(openai.BadRequestError, match="not"):
        client.chat.completions.create(
            **question,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}},
        )
    client.close()
    assert server.stop() == 0


@pytest.mark.slow
def test_the_openai_sdk_gets_tool_calls(start: Callable[..., Server], smollm2_path: Path) -> None:
    """Red if a forced call is lost on its way, streaming or not, or its result can't be sent back."""
    openai = pytest.importorskip("openai")
    server = start(
        "serve", smollm2_path, "--served-model-name", "smollm2", "--port", "0", "--kv-bytes", "512M"
    )
    _, address = server.ready()
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
    messages: list = [{"role": "user", "content": "Weather in Rome?"}]
    question = {
        "model": "smollm2",
        "temperature": 0,
        "max_tokens": 100,
        "tools": tools,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    }
    choice = client.chat.completions.create(**question, messages=messages).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    with client.chat.completions.stream(**question, messages=messages) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.message.tool_calls[0].function.arguments == call.function.arguments
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    answer = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=5, tools=tools)
    assert answer.choices[0].finish_reason in ("stop", "length")
    client.close()
    assert server.stop() == 0
