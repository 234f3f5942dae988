"""Signatures of thinking blocks: clients send thinking back, and only what this server wrote is taken.

A signature is HMAC-SHA256 over the model's name and the text. The key is made per process: what it signed is
as old as its prefix cache, so a restart loses nothing that was still warm.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

_VERSION = "pn1."  # tells our signatures from those of other servers, and a later form from this one


class Signer:
    """`key`: at least 32 secret bytes, the same on all servers that shall know each other's signatures."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def begin(self, model: str) -> Signing:
        """The signature of a text that comes in pieces."""
        return Signing(self._key, model)

    def sign(self, model: str, text: str) -> str:
        signing = self.begin(model)
        signing.add(text)
        return signing.end()

    def verifies(self, model: str, text: str, signature: str) -> bool:
        """Whether `signature` is this signer's for that text of that model. Constant time; never raises."""
        given = signature.encode("utf-8", "surrogatepass")
        return hmac.compare_digest(given, self.sign(model, text).encode())


class Signing:
    """One signature on its way: `add` pieces, then `end`."""

    def __init__(self, key: bytes, model: str) -> None:
        name = model.encode("utf-8", "surrogatepass")
        self._mac = hmac.new(key, len(name).to_bytes(4, "little") + name, hashlib.sha256)

    def add(self, piece: str) -> None:
        self._mac.update(piece.encode("utf-8", "surrogatepass"))

    def end(self) -> str:
        return _VERSION + base64.urlsafe_b64encode(self._mac.digest()).decode().rstrip("=")


SIGNER = Signer(secrets.token_bytes(32))
