"""Tokens of a scripted model: up to four bytes of whole characters each. An id is these bytes as a number, so
that ids can be read back."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.errors import InvalidRequest

MAX_BYTES = 4
_MARK = b"\x01"  # before the bytes, so that leading zeros count
_LIMIT = 2 << (8 * MAX_BYTES)


def pieces_of(text: str) -> list[str]:
    """The text of each token; joined they are `text`."""
    if text.isascii():
        return [text[start : start + MAX_BYTES] for start in range(0, len(text), MAX_BYTES)]
    pieces: list[str] = []
    piece, size = "", 0
    for character in text:
        width = len(character.encode("utf-8", "replace"))
        if size + width > MAX_BYTES:
            pieces.append(piece)
            piece, size = "", 0
        piece, size = piece + character, size + width
    return [*pieces, piece] if piece else pieces


def token_of(piece: str) -> int:
    return int.from_bytes(_MARK + piece.encode("utf-8", "replace"))


def text_of(tokens: Iterable[int]) -> str:
    """Raises InvalidRequest for an id that no text has."""
    pieces = []
    for token in tokens:
        data = token.to_bytes(MAX_BYTES + 2) if 0 <= token < _LIMIT else b""
        mark, _, piece = data.lstrip(b"\0").partition(_MARK)
        if mark or not piece:
            raise InvalidRequest(f"tokens: {token} is no token of a scripted model", param="tokens")
        pieces.append(piece)
    return b"".join(pieces).decode("utf-8", "replace")
