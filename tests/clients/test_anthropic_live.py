"""The official `anthropic` package against a server with the real model; and the examples of its page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

anthropic = pytest.importorskip("anthropic", reason="needs the official SDK: pip install penstock[test]")

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "clients" / "anthropic.md"
URL = re.compile(r"http://127\.0\.0\.1:\d+")


@pytest.fixture(scope="module")
def url(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "XDG_RUNTIME_DIR": str(tmp_path_factory.mktemp("run")),
    }
    command = [sys.executable, "-m", "penstock", "serve", str(smollm2_path), "--port", "0"]
    command += ["--served-model-name", "smollm2", "--max-context", "2048", "--kv-bytes", "64MiB"]
    command += ["--database-url", f"sqlite:///{tmp_path_factory.mktemp('store')}/store.db"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        lines = ""
        for line in process.stderr:
            lines += line
            if "ready in" in line:
                break
        found = URL.search(lines)
        assert found, lines
        yield found[0]
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0, timeout=120) as sdk:
        yield sdk


ASK = {
    "model": "smollm2",
    "max_tokens": 16,
    "extra_body": {"temperature": 0},  # of the API, no longer of the SDK
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.9; cch=00000;"},
        {"type": "text", "text": "You are a helpful assistant who knows the capitals of all countries."},
    ],
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}


def test_stream_body_count_and_cache_agree(client):
    """Red if stream and body differ, the count is not the prompt's, or a nonce defeats the cache."""
    whole = client.messages.create(**ASK)
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.9; cch=fffff;"},
        ASK["system"][1],
    ]
    with client.messages.stream(**ASK | {"system": system}) as events:
        summed = events.get_final_message()
    assert summed.content[0].text == whole.content[0].text != ""
    assert summed.stop_reason == whole.stop_reason
    counted = client.messages.count_tokens(**{name: ASK[name] for name in ("model", "system", "messages")})
    for usage in (whole.usage, summed.usage):
        assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens
    assert summed.usage.cache_read_input_tokens > counted.input_tokens // 2


def test_limits_of_the_context(client):
    """Red if an agent's usual max_tokens is refused, or a prompt that is too long is not told as such."""
    answer = client.messages.create(**ASK | {"max_tokens": 32_000, "stop_sequences": ["."]})
    assert answer.stop_reason in ("stop_sequence", "end_turn")
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 2048 maximum"):
        client.messages.create(**ASK | {"messages": [{"role": "user", "content": "word " * 4000}]})


def test_the_pages_examples_run(url, capsys):
    """Red if an example of the page does not do what the page says."""
    scope: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(URL.sub(url, example), scope)
    shown = capsys.readouterr().out
    assert re.search(r"\n (end_turn|max_tokens) \d+ \d+\n", shown)
    assert shown.splitlines()[-1].startswith("get_weather {'city': ")
