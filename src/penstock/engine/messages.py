"""What crosses between a caller and an engine: token ids only, never text.

The same structs are used in one process (`LLM`) and over ZeroMQ (`serve`), encoded as MessagePack.
Token ids travel as little-endian u32 bytes: `pack_tokens` / `unpack_tokens`.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct

from penstock.decoding.params import TokenSampling


def pack_tokens(tokens: np.ndarray | list[int] | tuple[int, ...]) -> bytes:
    """Token ids as little-endian u32 bytes."""
    return np.asarray(tokens, dtype="<u4").tobytes()


def unpack_tokens(data: bytes) -> np.ndarray:
    """int32[n], a fresh writable array."""
    return np.frombuffer(data, dtype="<u4").astype(np.int32)


class Submit(Struct, frozen=True, kw_only=True, tag="submit", omit_defaults=True):
    """Run a request. `id` is unique for the caller's connection, a retry gets a new one.

    `stream`: the caller wants each token as it comes; else one delta may bring those of several steps.
    `leader`: id of the sibling (n > 1) whose prefill this one waits for and shares. `cache_salt` separates
    tenants; `cache_read`/`cache_store` are the cache policy. `pin_s`: seconds from its end for which its
    prefix is kept in the cache, as `pin` (the id if that is empty); 0: not at all.
    """

    id: str
    tokens: bytes
    sampling: TokenSampling
    tenant: str = ""
    priority: int = 0
    deadline_s: float | None = None
    stream: bool = True
    cache_salt: str = ""
    cache_read: bool = True
    cache_store: bool = True
    leader: str | None = None
    pin: str = ""
    pin_s: float = 0.0


class Unpin(Struct, frozen=True, tag="unpin"):
    """Nobody goes on from what was pinned as `name`."""

    name: str


class Abort(Struct, frozen=True, tag="abort"):
    """Stop a request. `keep`: generated tokens that count (a stop string ended it there)."""

    id: str
    keep: int | None = None


class Ping(Struct, frozen=True, tag="ping"):
    """Sent every second by a caller; an engine drops the requests of one silent for 5 s."""


class Shutdown(Struct, frozen=True, tag="shutdown"):
    """Finish nothing more, release everything, exit 0."""


ToEngine = Submit | Abort | Unpin | Ping | Shutdown

Finish = Literal["stop", "length", "abort", "error"]


class Logprobs(Struct, frozen=True, array_like=True):
    """Log-probabilities of `n` consecutive positions, natural log, of the raw distribution.

    chosen: float32[n]; top_ids: int32[n*k]; top: float32[n*k], best first (bytes, little-endian).
    """

    n: int
    k: int
    chosen: bytes
    top_ids: bytes
    top: bytes


class Delta(Struct, frozen=True, array_like=True, gc=False):
    """What one step, or several, added to one request. The last delta of a request has `finish` set.

    `stop_token` is the id that ended it (already the last of `tokens`). `cached_tokens`,
    `queue_s` are set on the first delta. `error` is (kind, message, retry_after_s). `drafts`, where a step
    verified some: how many, and how many were right.
    """

    id: str
    tokens: list[int] = []
    finish: Finish | None = None
    stop_token: int | None = None
    cached_tokens: int | None = None
    queue_s: float | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None
    error: tuple[str, str, float | None] | None = None
    drafts: tuple[int, int] | None = None


class Outputs(Struct, frozen=True, tag="outputs"):
    """Deltas of one step, or of several at once, for one caller."""

    deltas: list[Delta]


class Progress(Struct, frozen=True, kw_only=True, tag="progress"):
    """State after a completed step, or in answer to a Ping. Counters only grow, but `generated_tokens`
    falls by the tokens that an Abort's `keep` takes back."""

    steps: int = 0
    last_step_s: float = 0.0  # seconds since the last completed step, as of sending
    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    finished: int = 0
    kv_blocks_total: int = 0
    kv_blocks_owned: int = 0
    kv_blocks_reusable: int = 0
    kv_blocks_pinned: int = 0
    busy_s: float = 0.0  # seconds during which a step was on the device
    work_s: float = 0.0  # … during which requests were open, up to the last completed step
    device_s: float = 0.0  # … that the completed steps took, by the device's own clock
    host_s: float = 0.0  # … spent on planning steps and on applying their results
    draft_steps: int = 0  # of one request each
    draft_tokens: int = 0  # verified
    accepted_tokens: tuple[int, ...] = ()  # by place in the draft, from the first
    saved_s: float = 0.0  # by drafts: plain decoding of the same tokens would have taken so much longer
    draft_missing: int = 0  # tokens whose context the drafter did not have, over all its steps
    forced_tokens: int = 0  # that a grammar left no choice about, taken without a draw
    grammar_fallbacks: int = 0  # grammars that the second backend compiled, as the first refused them


class Ready(Struct, frozen=True, kw_only=True, tag="ready"):
    """Sent to a caller once the model is loaded: what it needs to prepare requests."""

    model_id: str
    model_path: str
    max_context: int
    vocab_size: int
    backend: str
    plan: dict[str, int]  # memory plan in bytes, by purpose
    timings: dict[str, float]  # seconds per part of the start
    fallbacks: list[str] = []
    synthetic_acceptance: bool = False  # of drafts: answers are not the model's
    block_size: int = 16  # tokens; only whole blocks are cached


class Loading(Struct, frozen=True, tag="loading"):
    """Progress of the start: a phase's name and a share in 0..1."""

    phase: str
    share: float


class Refused(Struct, frozen=True, tag="refused"):
    """The model can't be served: sent instead of Ready."""

    kind: str
    message: str


FromEngine = Outputs | Progress | Ready | Loading | Refused

encoder = msgspec.msgpack.Encoder()
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
