"""A long session of the Responses API against `penstock serve`: what a turn costs when there are thousands.

    python benchmarks/sessions.py [--turns 2000] [--restart-at 1000] [--window 50]

The model is a random Llama with a context of 131,072 tokens, made here; a turn adds about 60 tokens. Every
fifth turn brings two concurrent tool calls with their outputs in reverse order; every tenth one makes the
model call tools, and the next one answers all of its calls. In the middle the server is killed and started
again on the same database. Printed for windows of turns: wall time, the engine's own device time, their
difference (host), the CPU time of the gateway and of the engine's loop, which other load disturbs less, and
tokens computed per turn. At the end two turns go on from one response: a fork shares all full blocks with it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

CONTEXT = 131_072
BLOCK = 16
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
TEMPLATE = """{%- if tools %}{{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- tool.function.name + ' ' }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
    {%- endfor %}{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
TOOLS = [
    {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}, "strict": True}
    for name in ("alpha", "beta")
]
_DEVICE = re.compile(r"^penstock_step_device_seconds_total\{[^}]*\} (\S+)$", re.MULTILINE)
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


# --------------------------------------------------------------------------- the model


def make_model(folder: Path) -> Path:
    """A random Llama of two layers in float32, with a byte-level tokenizer of 320 entries."""
    from penstock.formats.safetensors import SafetensorsWriter

    folder.mkdir(parents=True, exist_ok=True)
    size = _write_tokenizer(folder)
    hidden, inner, heads, kv_heads, layers = 32, 48, 2, 1, 2
    head = hidden // heads
    shapes = {"model.embed_tokens.weight": (size, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.q_proj.weight": (heads * head, hidden),
            prefix + "self_attn.k_proj.weight": (kv_heads * head, hidden),
            prefix + "self_attn.v_proj.weight": (kv_heads * head, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, heads * head),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
        }
    noise = np.random.default_rng(0)
    declared = {name: ("F32", shape) for name, shape in shapes.items()}
    with SafetensorsWriter(folder / "model.safetensors", declared) as writer:
        for name, shape in shapes.items():
            data = noise.standard_normal(shape) / np.sqrt(shape[-1]) if len(shape) > 1 else np.ones(shape)
            writer.write(name, data.astype(np.float32))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _write_tokenizer(folder: Path) -> int:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(SPECIAL)}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    merges = []
    for first in "teaoinshrlduc":
        for second in "eatonihr":
            if len(vocabulary) < 320:
                vocabulary[first + second] = len(vocabulary)
                merges.append((first, second))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[2], "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocabulary)


# --------------------------------------------------------------------------- the server


class Server:
    """`penstock serve` in a process of its own."""

    def __init__(self, model: Path, folder: Path, *flags: str) -> None:
        environment = os.environ | {"XDG_RUNTIME_DIR": str(folder)}
        command = [sys.executable, "-m", "penstock", "serve", str(model), "--port", "0"]
        command += ["--served-model-name", "tiny", "--database-url", f"sqlite:///{folder}/turns.db", *flags]
        log = folder / "server.log"
        with log.open("wb") as errors:
            self.process = subprocess.Popen(command, stderr=errors, env=environment)
        while "ready in" not in log.read_text():
            if self.process.poll() is not None:
                raise RuntimeError(f"the server did not start: {log.read_text()}")
            time.sleep(0.05)
        found = _ADDRESS.search(log.read_text())
        assert found
        self._port = int(found[1])
        self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        data = None if body is None else msgspec.json.encode(body)
        headers = {} if data is None else {"Content-Type": "application/json"}
        self._connection.request(method, path, data, headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def turn(self, items: list[dict], previous: str | None, **fields: Any) -> dict[str, Any]:
        body = {"model": "tiny", "input": items, "tools": TOOLS, "max_output_tokens": 6, "temperature": 1.0}
        body |= {"previous_response_id": previous} | fields
        status, data = self.ask("POST", "/v1/responses", body)
        answer: dict[str, Any] = msgspec.json.decode(data)
        if status != 200:
            raise RuntimeError(f"{status}: {answer}")
        return answer

    def counters(self) -> np.ndarray:
        """Seconds so far: steps on the device, CPU time of the gateway, CPU time of the engine's loop."""
        time.sleep(1.2)  # the engine reports once a second
        found = _DEVICE.search(self.ask("GET", "/metrics")[1].decode())
        gateway = self.process.pid
        engine = int(Path(f"/proc/{gateway}/task/{gateway}/children").read_text().split()[0])
        tasks = [Path(task) for task in Path(f"/proc/{gateway}/task").iterdir()]
        loop = Path(f"/proc/{engine}/task/{engine}")  # the device has threads of its own
        return np.array([float(found[1]) if found else 0.0, sum(map(_cpu_s, tasks)), _cpu_s(loop)])

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self._connection.close()
        self.process.send_signal(how)
        self.process.wait(60)


def _cpu_s(task: Path) -> float:
    """CPU time of one thread: the first field of proc(5)'s schedstat, in nanoseconds."""
    return int((task / "schedstat").read_text().split()[0]) * 1e-9


# --------------------------------------------------------------------------- the session


class Turn(Struct):
    """One answered turn. `cached` and `computed` are tokens of the prompt."""

    wall_s: float
    prompt: int
    cached: int
    details: dict[str, Any] = {}

    @property
    def computed(self) -> int:
        return self.prompt - self.cached


class SessionDriver:
    """Takes turns; `last` is the response that the next one goes on from."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.last: str | None = None
        self.number = 0
        self._calls: list[str] = []  # of the model, without an output

    def take(self, previous: str | None = None, padding: int = 4) -> Turn:
        number = self.number
        outputs = [_output(call) for call in reversed(self._calls)]
        items = [*outputs, *_calls_of_the_client(number), _said(f"turn {number} " + "q" * padding)]
        fields = {"tool_choice": "required", "max_output_tokens": 64} if number % 10 == 7 else {}
        began = time.perf_counter()
        answer = self.server.turn(items, previous or self.last, seed=number, **fields)
        wall = time.perf_counter() - began
        self.last, self.number = answer["id"], number + 1
        self._calls = [
            item["call_id"]
            for item in answer["output"]
            if item["type"] == "function_call" and item["status"] == "completed"
        ]
        usage = answer["usage"]
        details = usage["input_tokens_details"]
        return Turn(wall, usage["input_tokens"], details["cached_tokens"], details)


def _calls_of_the_client(number: int) -> list[dict]:
    if number % 5:
        return []
    calls = [f"call_{number}_{name}" for name in "ab"]
    made = [{"type": "function_call", "call_id": call, "name": "alpha", "arguments": "{}"} for call in calls]
    return [*made, *(_output(call) for call in reversed(calls))]


def _output(call: str) -> dict:
    return {"type": "function_call_output", "call_id": call, "output": f"of {call[-3:]}"}


def _said(text: str) -> dict:
    return {"type": "message", "role": "user", "content": text}


def _report(driver: SessionDriver, turns: int) -> None:
    """Take turns and print what they cost on average."""
    first = driver.number
    before = driver.server.counters()
    taken = [driver.take() for _ in range(turns)]
    device, gateway, engine = (driver.server.counters() - before) / turns * 1e3
    wall = statistics.mean(turn.wall_s for turn in taken) * 1e3
    computed = [turn.computed for turn in taken]
    name = f"turns {first}–{driver.number}"
    print(
        f"{name:>16}  prompt {taken[-1].prompt:>7,}  wall {wall:6.1f}  device {device:6.1f}  "
        f"host {wall - device:6.1f} ms, CPU of it {gateway + engine:5.1f} (gateway {gateway:4.1f}, "
        f"engine {engine:4.1f})  "
        f"computed {statistics.median(computed):.0f} (max {max(computed)})",
        flush=True,
    )


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--turns", type=int, default=2000)
    parser.add_argument("--restart-at", type=int, default=1000)
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--every", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model")
        driver = SessionDriver(Server(model, folder))
        try:
            run(driver, model, folder, options)
        finally:
            driver.server.end()


def run(driver: SessionDriver, model: Path, folder: Path, options: argparse.Namespace) -> None:
    while driver.number < options.turns:
        if driver.number == options.restart_at:
            driver.server.end(signal.SIGKILL)
            driver.server = Server(model, folder)
            first = driver.take()
            print(
                f"{'restart':>16}  first turn {first.wall_s:.2f} s, computed {first.computed:,}", flush=True
            )
        due = -(-(driver.number + 1) // options.every) * options.every
        if due - driver.number <= options.window:
            count = due - driver.number
            _report(driver, count)
        else:
            driver.take()
    origin = driver.last
    driver._calls.clear()
    for branch in ("fork a", "fork b"):
        turn = driver.take(origin)
        print(f"{branch:>16}  prompt {turn.prompt:,}  cached {turn.cached:,}  computed {turn.computed}")


if __name__ == "__main__":
    main()
