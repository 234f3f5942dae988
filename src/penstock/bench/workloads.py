"""Workloads: what is asked of an engine and when. Fixed shapes, and replays of public traces.

A workload is a list of `Item`s in arrival order. It holds lengths, not prompts: `prompt_tokens`
makes an item's token ids from numbers alone, the same on every machine, so equal traces are equal
work. Items that name prefix blocks (Mooncake) share the tokens of the blocks that they share.

Trace formats:
- Azure LLM inference CSV: `TIMESTAMP,ContextTokens,GeneratedTokens`, time with 100 ns digits.
- Mooncake JSONL: `timestamp` (ms), `input_length`, `output_length`, `hash_ids` (512 tokens each,
  the last one may be partial).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from penstock.errors import ConfigError

HASH_BLOCK_TOKENS = 512
FIRST_TOKEN = 256  # below it live special tokens and single bytes in most vocabularies
_OF_ITEM, _OF_BLOCK = 1, 2  # so that no item's prompt repeats a block's tokens


class Item(Struct, frozen=True, kw_only=True):
    """One request: `arrival_s` after the start, `input_len` and `output_len` in tokens."""

    index: int
    arrival_s: float
    input_len: int
    output_len: int
    hash_ids: tuple[int, ...] = ()


def fixed(num_requests: int, input_len: int, output_len: int) -> list[Item]:
    """`num_requests` equal requests with distinct prompts, all there from the start."""
    _check_positive(num_requests=num_requests, input_len=input_len, output_len=output_len)
    return [
        Item(index=i, arrival_s=0.0, input_len=input_len, output_len=output_len) for i in range(num_requests)
    ]


def with_rate(items: list[Item], rate: float, seed: int = 0) -> list[Item]:
    """The same items at `rate` requests per second, Poisson: exponential gaps from a fixed seed."""
    if not rate > 0:
        raise ConfigError(f"rate: {rate} must be above 0 requests per second")
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, size=len(items))
    times = np.cumsum(gaps) - gaps[0]
    return [msgspec.structs.replace(item, arrival_s=float(t)) for item, t in zip(items, times, strict=True)]


def load_trace(
    path: Path,
    *,
    time_scale: float = 1.0,
    max_requests: int | None = None,
    max_input: int | None = None,
    max_output: int | None = None,
) -> list[Item]:
    """Read a trace; the suffix tells the format (.csv Azure, .jsonl Mooncake).

    time_scale: arrival times are multiplied by it (0.1 plays ten times faster, 0 sends at once).
    max_input, max_output: longer requests are cut to so many tokens.
    Raises ConfigError naming file, line and column of what can't be read.
    """
    readers = {".csv": _azure, ".jsonl": _mooncake}
    reader = readers.get(path.suffix)
    if reader is None:
        raise ConfigError(f"trace: {path.name} is neither .csv (Azure) nor .jsonl (Mooncake)")
    if time_scale < 0:
        raise ConfigError(f"time_scale: {time_scale} must be 0 or more")
    try:
        rows = list(islice(reader(path), max_requests))
    except FileNotFoundError:
        raise ConfigError(f"trace: no file {path}") from None
    if not rows:
        raise ConfigError(f"trace: {path} holds no request")
    start = rows[0].arrival_s
    return [
        msgspec.structs.replace(
            item,
            index=index,
            arrival_s=(item.arrival_s - start) * time_scale,
            input_len=min(item.input_len, max_input or item.input_len),
            output_len=min(item.output_len, max_output or item.output_len),
        )
        for index, item in enumerate(sorted(rows, key=lambda row: row.arrival_s))
    ]


def prompt_tokens(item: Item, vocab_size: int) -> np.ndarray:
    """int32[input_len]: token ids in [FIRST_TOKEN, vocab_size), or [0, vocab_size) for tiny vocabularies.

    Without hash ids the ids depend on the item's index; with them, on the block's id alone, so that two
    items share exactly the leading blocks whose ids they share.
    """
    if not item.hash_ids:
        return _random_tokens(_OF_ITEM, item.index, item.input_len, vocab_size)
    blocks = [
        _random_tokens(_OF_BLOCK, block, HASH_BLOCK_TOKENS, vocab_size)
        for block in item.hash_ids[: -(-item.input_len // HASH_BLOCK_TOKENS)]
    ]
    tokens = np.concatenate(blocks)[: item.input_len]
    missing = item.input_len - len(tokens)
    tail = _random_tokens(_OF_ITEM, item.index, missing, vocab_size)
    return np.concatenate([tokens, tail])


def _random_tokens(kind: int, number: int, count: int, vocab_size: int) -> np.ndarray:
    """int32[count]. Raw Philox output: numpy keeps it for ever, unlike what `Generator` makes of it."""
    low = FIRST_TOKEN if vocab_size > 2 * FIRST_TOKEN else 0
    raw = np.random.Philox(key=np.array([kind, number], dtype=np.uint64)).random_raw(count)
    return (low + raw % np.uint64(vocab_size - low)).astype(np.int32)


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{name}: {value} must be 1 or more")


def _azure(path: Path) -> Iterator[Item]:
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                # 100 ns digits: fromisoformat reads six of the seven.
                arrival = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
                lengths = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"trace: {path.name}:{number}: {error}; "
                    "columns TIMESTAMP,ContextTokens,GeneratedTokens expected"
                ) from None
            # A row of the trace may have generated nothing; a request asks for one token at least.
            yield Item(
                index=0, arrival_s=arrival, input_len=max(lengths[0], 1), output_len=max(lengths[1], 1)
            )


class _MooncakeRow(Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def _mooncake(path: Path) -> Iterator[Item]:
    decoder = msgspec.json.Decoder(_MooncakeRow)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = decoder.decode(line)
            except (msgspec.ValidationError, msgspec.DecodeError) as error:
                raise ConfigError(f"trace: {path.name}:{number}: {error}") from None
            yield Item(
                index=0,
                arrival_s=row.timestamp / 1000,
                input_len=max(row.input_length, 1),
                output_len=max(row.output_length, 1),
                hash_ids=row.hash_ids,
            )
