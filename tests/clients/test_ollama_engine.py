"""The official `ollama` package against the real engine: it lives, and the page about it is true."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ollama = pytest.importorskip("ollama", reason="the ollama package is part of the test extra")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients" / "ollama.md"
MODEL = "smollm2"
READY = re.compile(r"· (http://\S+) · ready in")


@pytest.fixture(scope="module")
def url(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server process of SmolLM2 with an empty model store."""
    folder = tmp_path_factory.mktemp("serve")
    environment = {**os.environ, "XDG_DATA_HOME": str(folder), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "penstock", "serve", str(smollm2_path), "--served-model-name", MODEL]
    command += ["--port", "0", "--kv-bytes", "256M"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    said = ""
    try:
        for line in process.stderr:
            said += line
            if found := READY.search(line):
                break
        else:
            pytest.fail(said)
        yield found[1]
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def client(url):
    with ollama.Client(host=url) as sdk:
        yield sdk


def test_the_real_engine_answers(client):
    """Red if the stack does not live: text, a seed that repeats, a schema that holds, thinking refused."""
    ask = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat(MODEL, ask, options={"temperature": 0, "num_predict": 16})
    assert "Paris" in answer.message.content
    assert answer.prompt_eval_count > 10 and 0 < answer.eval_count <= 16
    assert answer.total_duration >= answer.eval_duration > 0
    parts = list(client.chat(MODEL, ask, options={"temperature": 0, "num_predict": 16}, stream=True))
    assert "".join(part.message.content for part in parts) == answer.message.content
    seeded = [client.generate(MODEL, "Hi", options={"seed": 7, "num_predict": 8}).response for _ in range(2)]
    assert seeded[0] == seeded[1]
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}},
        "required": ["yes"],
        "additionalProperties": False,
    }
    held = client.chat(MODEL, ask, format=schema, options={"seed": 1, "num_predict": 200})
    assert isinstance(json.loads(held.message.content)["yes"], bool)
    assert client.generate(MODEL).done_reason == "load"
    with pytest.raises(ollama.ResponseError, match="does not support thinking"):
        client.chat(MODEL, ask, think=True)
    shown = client.show(MODEL)
    assert shown.modelinfo["llama.context_length"] == 8192
    assert (shown.details.quantization_level, shown.details.parameter_size) == ("Q4_1", "134.52M")
    assert client.ps().models[0].context_length > 0


def test_the_example_of_the_page_runs(url):
    """Red if the code in docs/clients/ollama.md stops working, or prints another error than it says."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert "http://127.0.0.1:8000" in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace("http://127.0.0.1:8000", url)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert "['completion'] ['smollm2:latest']" in lines
    told = re.findall(r"# (404 .*)", code)
    assert lines[-1:] == told
