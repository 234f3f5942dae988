"""Workloads: traces are read as published, prompts are the same everywhere and share what they must."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.bench.drive import drive
from penstock.bench.metrics import Record
from penstock.bench.workloads import HASH_BLOCK_TOKENS, Item, fixed, load_trace, prompt_tokens, with_rate
from penstock.errors import ConfigError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,0
"""


def test_azure_trace(tmp_path: Path) -> None:
    """Red if times lose their fraction, columns are swapped, or a row of no output is sent as zero tokens."""
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    first, second = load_trace(path, time_scale=0.5)
    assert (first.arrival_s, first.input_len, first.output_len) == (0.0, 374, 44)
    assert second.arrival_s == pytest.approx(4.314579 / 2, abs=1e-6)
    assert (second.input_len, second.output_len) == (396, 1)


def test_mooncake_trace(tmp_path: Path) -> None:
    """Red if milliseconds are read as seconds, or cutting a prompt changes what it shares."""
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp":1000,"input_length":1500,"output_length":5,"hash_ids":[0,1,2]}\n'
        '{"timestamp":4000,"input_length":1100,"output_length":900,"hash_ids":[0,1,9]}\n'
    )
    first, second = load_trace(path, max_output=10, max_input=1200)
    assert (first.arrival_s, second.arrival_s) == (0.0, 3.0)
    assert (first.input_len, second.output_len) == (1200, 10)
    a, b = prompt_tokens(first, 5000), prompt_tokens(second, 5000)
    assert (len(a), len(b)) == (1200, 1100)
    assert (a[:1024] == b[:1024]).all()
    assert (a[1024:1100] != b[1024:]).any()


def test_public_traces_have_their_published_sizes(shared_data: Path) -> None:
    """Red if a reader drops or invents rows of the traces that results are reported on."""
    counts = {
        "azure_llm_2023_code.csv": 5353,
        "azure_llm_2023_conv.csv": 9739,
        "mooncake_fast25_conversation.jsonl": 5606,
    }
    for name, count in counts.items():
        items = load_trace(shared_data / "traces" / name)
        assert len(items) == count
        times = [item.arrival_s for item in items]
        assert times == sorted(times)
        assert [item.index for item in items] == list(range(count))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "TIME,ContextTokens\n1,2\n", "t.csv:2"),
        ("t.csv", AZURE + "2023-11-16 18:15:50,many,3\n", "t.csv:4"),
        ("t.jsonl", '{"timestamp":0}\n', "t.jsonl:1"),
        ("t.jsonl", "", "holds no request"),
        ("t.txt", "", "neither .csv"),
    ],
)
def test_unreadable_traces_are_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    """Red if a trace that is not what it claims is replayed in part, without a word."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_trace(tmp_path / name)
    assert words in caught.value.message


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True), min_size=2, max_size=4),
    st.integers(1, HASH_BLOCK_TOKENS),
)
def test_prompts_share_exactly_their_common_leading_blocks(hashes: list[list[int]], tail: int) -> None:
    """Red if prefix reuse in a replay differs from the trace's: hit rates would mean nothing."""
    items = [
        Item(
            index=i,
            arrival_s=0.0,
            input_len=(len(ids) - 1) * HASH_BLOCK_TOKENS + tail,
            output_len=1,
            hash_ids=tuple(ids),
        )
        for i, ids in enumerate(hashes)
    ]
    prompts = [prompt_tokens(item, 50_000) for item in items]
    for ids_a, a in zip(hashes, prompts, strict=True):
        for ids_b, b in zip(hashes, prompts, strict=True):
            common = next((i for i, (x, y) in enumerate(zip(ids_a, ids_b, strict=False)) if x != y), None)
            blocks = min(len(ids_a), len(ids_b)) if common is None else common
            shared = min(blocks * HASH_BLOCK_TOKENS, len(a), len(b))
            assert (a[:shared] == b[:shared]).all()
            if common is not None and min(len(a), len(b)) >= shared + 8:
                assert (a[shared : shared + 8] != b[shared : shared + 8]).any()


def test_prompts_do_not_depend_on_the_machine() -> None:
    """Red if the generator changes: results of two dates would be of different work."""
    item = Item(index=3, arrival_s=0.0, input_len=5, output_len=1)
    assert prompt_tokens(item, 49152).tolist() == [43449, 38843, 43345, 1265, 1725]
    assert prompt_tokens(item, 300).max() < 300


def test_fixed_prompts_differ() -> None:
    """Red if requests of a fixed shape share a prefix: the cache would do the work."""
    prompts = {tuple(prompt_tokens(item, 49152)) for item in fixed(20, 16, 4)}
    assert len(prompts) == 20


def test_poisson_arrivals_have_their_rate() -> None:
    """Red if --rate means something other than requests per second."""
    times = [item.arrival_s for item in with_rate(fixed(4000, 1, 1), 50.0)]
    assert times[0] == 0.0
    assert np.mean(np.diff(times)) == pytest.approx(1 / 50, rel=0.05)
    assert np.std(np.diff(times)) == pytest.approx(1 / 50, rel=0.1)


async def test_drive_bounds_concurrency_and_keeps_order() -> None:
    """Red if more requests run at once than asked for, or records come in order of completion."""
    running = most = 0

    async def send(item: Item) -> Record:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(10 - item.index % 7):
            await asyncio.sleep(0)
        running -= 1
        return Record(index=item.index, sent_s=0.0, input_tokens=1)

    found = await drive(fixed(30, 1, 1), send, concurrency=4)
    assert most == 4
    assert [record.index for record in found] == list(range(30))


async def test_drive_waits_for_arrivals() -> None:
    """Red if a trace's requests are sent before their time."""
    items = [Item(index=i, arrival_s=0.05 * i, input_len=1, output_len=1) for i in range(4)]
    start = time.monotonic()

    async def send(item: Item) -> Record:
        return Record(index=item.index, sent_s=time.monotonic() - start, input_tokens=1)

    for item, record in zip(items, await drive(items, send), strict=True):
        assert record.sent_s >= item.arrival_s
