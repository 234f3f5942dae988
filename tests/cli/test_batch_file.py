"""Batch files: one result per request, whatever moment the process died at."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cli.batch_file import (
    BatchLine,
    ResultFile,
    ResultLine,
    check_input,
    read_lines,
    response,
    run_batch,
)
from penstock.errors import ConfigError, EngineUnavailable, InvalidRequest


def write_input(path: Path, ids: list[str]) -> Path:
    lines = [{"custom_id": i, "method": "POST", "url": "/v1/completions", "body": {"prompt": i}} for i in ids]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


async def echo(line: BatchLine) -> ResultLine:
    return response(line, 200, "r", json.dumps({"echo": json.loads(bytes(line.body))["prompt"]}).encode())


def ids_of(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_bytes().split(b"\n")[:-1]]


def complete(source: Path, target: Path) -> None:
    with ResultFile(target) as results:
        asyncio.run(run_batch(source, results, echo, concurrency=3))


@given(st.data())
def test_a_cut_output_is_completed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Red if a process killed inside a write loses, repeats or garbles a result."""
    folder = tmp_path_factory.mktemp("batch")
    ids = data.draw(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, unique=True))
    source, target = write_input(folder / "in.jsonl", ids), folder / "out.jsonl"
    complete(source, target)
    whole = target.read_bytes()
    kept = whole[: data.draw(st.integers(0, len(whole)))]
    target.write_bytes(kept)
    complete(source, target)
    assert sorted(ids_of(target)) == sorted(ids)
    assert target.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    for line in target.read_bytes().split(b"\n")[:-1]:
        result = json.loads(line)
        assert result["response"]["body"]["echo"] == result["custom_id"]
        assert result["error"] is None


def test_finished_lines_are_not_answered_again(tmp_path: Path) -> None:
    """Red if a resumed batch pays for results that it already has."""
    source, target = write_input(tmp_path / "in", ["a", "b", "c"]), tmp_path / "out"
    complete(write_input(tmp_path / "first", ["b"]), target)
    asked: list[str] = []

    async def count(line: BatchLine) -> ResultLine:
        asked.append(line.custom_id)
        return await echo(line)

    with ResultFile(target) as results:
        asyncio.run(run_batch(source, results, count, concurrency=3))
    assert sorted(asked) == ["a", "c"]


@pytest.mark.parametrize("window", [1, 3, 100])
def test_the_window_bounds_requests_in_flight(tmp_path: Path, window: int) -> None:
    """Red if a large file is sent to the engine all at once."""
    source = write_input(tmp_path / "in", [str(i) for i in range(40)])
    running = most = 0

    async def slow(line: BatchLine) -> ResultLine:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1
        return await echo(line)

    with ResultFile(tmp_path / "out") as results:
        asyncio.run(run_batch(source, results, slow, concurrency=window))
    assert most == min(window, 40)
    assert len(ids_of(tmp_path / "out")) == 40


def test_an_engine_failure_ends_the_batch_and_keeps_what_is_done(tmp_path: Path) -> None:
    """Red if a dead engine turns every remaining line into an error result that a resume would skip."""
    source, target = write_input(tmp_path / "in", list("abcdef")), tmp_path / "out"

    async def dies(line: BatchLine) -> ResultLine:
        if line.custom_id == "d":
            raise EngineUnavailable("the engine died")
        return await echo(line)

    with ResultFile(target) as results, pytest.raises(EngineUnavailable, match="the engine died"):
        asyncio.run(run_batch(source, results, dies, concurrency=1))
    assert ids_of(target) == ["a", "b", "c"]
    complete(source, target)
    assert sorted(ids_of(target)) == list("abcdef")


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """Red if two runs may append to one output and answer every line twice."""
    with ResultFile(tmp_path / "out"), pytest.raises(ConfigError, match="another process"):
        ResultFile(tmp_path / "out")
    ResultFile(tmp_path / "out").__exit__()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no request"),
        ('{"custom_id": "a"\n', ":1: not a batch line"),
        ('{"custom_id": "a"}\n\n{"method": "POST"}\n', ":3: not a batch line"),
        ('{"custom_id": 7}\n', ":1: not a batch line"),
        ('{"custom_id": "a"}\n{"custom_id": "a"}\n', "'a' of request 2 is already that of request 1"),
    ],
)
def test_a_broken_input_is_refused_as_a_whole(tmp_path: Path, text: str, words: str) -> None:
    """Red if hours of work begin on a file whose line 1,000 can't be answered or told apart."""
    path = tmp_path / "in.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidRequest) as caught:
        check_input(path)
    assert words in caught.value.message


def test_an_output_that_is_no_result_file_is_left_alone(tmp_path: Path) -> None:
    """Red if a wrong second argument (`batch in.jsonl notes.txt`) destroys a file."""
    path = tmp_path / "notes.txt"
    path.write_text("remember the milk\nand the bread\n")
    with pytest.raises(ConfigError, match="not a result line"):
        ResultFile(path)
    assert path.read_text() == "remember the milk\nand the bread\n"


def test_bodies_keep_their_bytes(tmp_path: Path) -> None:
    """Red if a body is re-encoded on the way: large integers and escapes would change."""
    body = b'{"seed": 18446744073709551615, "prompt": "\\u00e9\\ud83d\\ude00"}'
    path = tmp_path / "in"
    path.write_bytes(b'{"custom_id": "a", "body": ' + body + b"}\n")
    assert bytes(next(read_lines(path)).body) == body
