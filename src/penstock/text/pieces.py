"""Vocabulary entries as exact bytes, for the two ways in which vocabularies spell them.

byte-level     each character of an entry stands for one byte (the GPT-2 alphabet)
sentencepiece  entries are text with U+2581 for a space; `<0xNN>` entries are single bytes

Added tokens (control and user-defined) stand for their own text. The bytes of consecutive tokens join
to the bytes of the text, which makes decoding a concatenation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

Spelling = Literal["byte-level", "sentencepiece"]

SPACE_MARK = "\u2581"
_BYTE_ENTRY = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """character -> byte (GPT-2). Printable Latin-1 stands for itself, the other 68 are U+0100 and on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(0x100 + i): byte for i, byte in enumerate(rest)})
    return table


_ALPHABET = byte_alphabet()


def byte_level(entry: str) -> bytes:
    """Bytes of a byte-level entry. One with a character outside the alphabet stands for its own text."""
    try:
        return bytes([_ALPHABET[c] for c in entry])
    except KeyError:
        return entry.encode("utf-8")


def sentencepiece(entry: str) -> bytes:
    """Bytes of a SentencePiece entry."""
    match = _BYTE_ENTRY.fullmatch(entry)
    if match:
        return bytes([int(match[1], 16)])
    return entry.replace(SPACE_MARK, " ").encode("utf-8")


SPELLINGS: dict[Spelling, Callable[[str], bytes]] = {"byte-level": byte_level, "sentencepiece": sentencepiece}
