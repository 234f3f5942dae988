"""Block identity: what the prefix tree, every lower tier, KV events and cluster routing call a block.

    namespace = sha256(canonical(fields))
    root      = sha256(namespace || salt)                    one per namespace, tenant salt, adapter
    block i   = sha256(block i-1 || tokens as little-endian u32)

An adapter is appended to the salt as 0xFF || digest; media inside a block are appended to its tokens
as u32 length || bytes; when absent they add nothing. 0xFF never occurs in UTF-8, so no salt can
imitate another salt's adapter. Only hashlib over plain bytes: no Python `hash`, no random seed, no
pickle, so every process and machine agrees.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import msgspec
import numpy as np

DIGEST_BYTES = 32


def canonical(value: Any) -> bytes:
    """One byte string per value, injective over the supported types.

    None `n`; True `t`; False `f`; int `i<decimal>;`; float `d` and 8 bytes, IEEE 754 big-endian;
    str `s<bytes>:<UTF-8>`; bytes `b<bytes>:<raw>`; sequence `l…e`; mapping with str keys, or a
    msgspec Struct, `m…e` with keys and values alternating, sorted by the keys' UTF-8 bytes.
    TypeError for anything else.
    """
    if value is None:
        return b"n"
    if isinstance(value, bool):
        return b"t" if value else b"f"
    if isinstance(value, int):
        return b"i%d;" % value
    if isinstance(value, float):
        return b"d" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return b"s%d:%s" % (len(data), data)
    if isinstance(value, bytes):
        return b"b%d:%s" % (len(value), value)
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} of a canonical mapping is {type(key).__name__}; use str")
        items = sorted((key.encode(), item) for key, item in value.items())
        return b"m" + b"".join(b"s%d:%s%s" % (len(k), k, canonical(v)) for k, v in items) + b"e"
    if isinstance(value, Sequence):
        return b"l" + b"".join(canonical(item) for item in value) + b"e"
    raise TypeError(
        f"{type(value).__name__} has no canonical encoding; use None, bool, int, float, str, bytes, "
        "sequences and mappings of them"
    )


def namespace_digest(fields: Mapping[str, Any]) -> bytes:
    """32 bytes for everything that decides what a block's bytes mean beside its tokens: format,
    weights revision, tokenizer, numerics (weights form, backend, instruction set), KV dtype, rope
    configuration, group specs, block size, attention mode."""
    return sha256(canonical(fields)).digest()


def root(namespace: bytes, salt: str, adapter: bytes = b"") -> bytes:
    """32 bytes, the parent of every first block. `adapter`: digest of the adapter's version or b""."""
    digest = sha256(namespace)
    digest.update(salt.encode("utf-8", "surrogatepass"))
    if adapter:
        digest.update(b"\xff" + adapter)
    return digest.digest()


def child(parent: bytes, tokens: bytes, extra: bytes = b"") -> bytes:
    """32 bytes. `tokens`: the block's token ids as little-endian u32. `extra`: content hashes and
    offsets of the media in this block, or b""."""
    if extra:
        return sha256(parent + tokens + struct.pack("<I", len(extra)) + extra).digest()
    return sha256(parent + tokens).digest()


def token_bytes(tokens: np.ndarray | Sequence[int]) -> bytes:
    """Token ids (each below 2**31) as little-endian u32 bytes."""
    return np.asarray(tokens, "<i4").tobytes()
