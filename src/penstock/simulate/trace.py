"""Trace readers: when requests arrive, how long they are, what they share.

Azure CSV (`TIMESTAMP,ContextTokens,GeneratedTokens`, Patel et al., ISCA 2024) and Mooncake JSONL
(`timestamp` ms, `input_length`, `output_length`, `hash_ids`: one id per 512 prompt tokens, equal
ids are equal blocks; Qin et al., FAST 2025).
"""

from __future__ import annotations

import csv
import datetime
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from penstock.errors import ConfigError

MOONCAKE_BLOCK = 512


class TraceRequest(Struct, frozen=True):
    """arrival_s from the trace's start; block_ids name the prompt's content, 512 tokens each."""

    arrival_s: float
    input_len: int
    output_len: int
    block_ids: tuple[int, ...] = ()


class _MooncakeLine(Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def read_trace(path: Path) -> list[TraceRequest]:
    """Requests in order of arrival. ConfigError for a file of neither format, naming the line."""
    requests = list(_read_mooncake(path) if path.suffix == ".jsonl" else _read_azure(path))
    return sorted(requests, key=lambda request: request.arrival_s)


def _read_azure(path: Path) -> Iterator[TraceRequest]:
    first: float | None = None
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                stamp = row["TIMESTAMP"].strip()
                # Seven fractional digits: more than datetime can hold.
                at = datetime.datetime.fromisoformat(stamp[:26]).replace(tzinfo=datetime.UTC).timestamp()
                lengths = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (KeyError, ValueError, AttributeError) as error:
                raise ConfigError(f"{path.name}, line {number}: not an Azure trace row ({error})") from None
            first = at if first is None else first
            yield TraceRequest(at - first, *lengths)


def _read_mooncake(path: Path) -> Iterator[TraceRequest]:
    decode = msgspec.json.Decoder(_MooncakeLine).decode
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = decode(line)
            except msgspec.DecodeError as error:
                raise ConfigError(f"{path.name}, line {number}: not a Mooncake trace row ({error})") from None
            yield TraceRequest(row.timestamp / 1000, row.input_length, row.output_length, row.hash_ids)


def prompt_tokens(request: TraceRequest, serial: int, vocab_size: int) -> np.ndarray:
    """int32[input_len]: token ids that agree exactly where block ids agree.

    A prompt without block ids shares nothing: it is made from `serial`.
    """
    if not request.block_ids:
        return np.random.default_rng((1, serial)).integers(0, vocab_size, request.input_len, np.int32)
    parts = [
        np.random.default_rng((2, block)).integers(0, vocab_size, MOONCAKE_BLOCK, np.int32)
        for block in request.block_ids
    ]
    return np.concatenate(parts)[: request.input_len]
