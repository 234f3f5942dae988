"""Batches of servers that are killed: every line answered, each once, by whoever comes next."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.scripted_service import MODEL

openai = pytest.importorskip("openai", reason="needs the official SDK: pip install penstock[test]")

SERVER = Path(__file__).parents[1] / "support" / "scripted_server.py"
CHAT = "/v1/chat/completions"
LEASE_S = 0.3


class Server:
    """A server in a process of its own, over a database that it shares with those before and beside it."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="any", max_retries=0)

    @classmethod
    async def start(cls, database: str) -> Server:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(SERVER),
            f"database_url={json.dumps(database)}",
            f"batch_lease_s={LEASE_S}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        return cls(process, (await process.stdout.readline()).decode().strip())

    async def end(self, number: int = signal.SIGKILL) -> None:
        await self.client.close()
        if self.process.returncode is None:
            self.process.send_signal(number)
        await self.process.wait()


async def start_batch(client: Any, count: int) -> str:
    """Its id. Lines are told apart by what they say."""
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": CHAT}
        | {"body": {"model": MODEL, "messages": [{"role": "user", "content": f"hello {i}"}]}}
        for i in range(count)
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = await client.files.create(file=("in.jsonl", data), purpose="batch")
    made = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    return str(made.id)


async def until(client: Any, name: str, done: int) -> Any:
    """The batch once so many lines are answered."""
    async with asyncio.timeout(500):
        while True:
            batch = await client.batches.retrieve(name)
            if batch.request_counts.completed >= done and (
                done < batch.request_counts.total or batch.status == "completed"
            ):
                return batch


async def check_output(client: Any, batch: Any, count: int) -> None:
    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert batch.request_counts.to_dict() == {"total": count, "completed": count, "failed": 0}
    lines = [json.loads(one) for one in (await client.files.content(batch.output_file_id)).text.splitlines()]
    said = {one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"] for one in lines}
    assert len(lines) == count
    assert said == {f"r{i}": f"hello {i}" for i in range(count)}
    outputs = [file async for file in client.files.list(purpose="batch_output")]
    assert [file.id for file in outputs] == [batch.output_file_id]
    assert batch.usage.output_tokens == 2 * count


async def killed_twice(database: str, count: int) -> None:
    server = await Server.start(database)
    try:
        name = await start_batch(server.client, count)
        before = 0
        for share in (3, 1.5):  # of the lines are answered when the process dies
            before = (await until(server.client, name, int(count / share))).request_counts.completed
            await server.end()
            server = await Server.start(database)
            assert (await server.client.batches.retrieve(name)).request_counts.completed >= before
        assert before < count, "the second kill came too late to prove anything"
        await check_output(server.client, await until(server.client, name, count), count)
    finally:
        await server.end()


async def test_a_batch_survives_two_kills(tmp_path):
    """Red if a line is lost, or answered twice, where the server was killed in the middle."""
    await killed_twice(f"sqlite:///{tmp_path}/store.db", 400)


@pytest.mark.nightly
async def test_five_thousand_lines_survive_two_kills(tmp_path, capsys):
    """Red as above, at the size of a night's work."""
    started = time.perf_counter()
    await killed_twice(f"sqlite:///{tmp_path}/store.db", 5000)
    with capsys.disabled():
        print(f"\n5,000 lines, two kills: {time.perf_counter() - started:.1f} s")


async def test_a_graceful_stop_leaves_a_batch_to_the_next_server(tmp_path):
    """Red if SIGTERM waits for the whole batch, ends it, or keeps its lease."""
    database = f"sqlite:///{tmp_path}/store.db"
    server = await Server.start(database)
    try:
        name = await start_batch(server.client, 300)
        await until(server.client, name, 50)
        async with asyncio.timeout(15):
            await server.end(signal.SIGTERM)
        server = await Server.start(database)
        await check_output(server.client, await until(server.client, name, 300), 300)
    finally:
        await server.end()
