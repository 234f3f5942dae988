"""Content types of request bodies: JSON, declared as such.

A form or text body is what a foreign web page may send to 127.0.0.1 without being asked first; a body
declared as JSON is not (CORS preflight). So the declaration is required, not guessed.

Ollama asks for none, and its clients and examples (`curl -d`) declare none or another. On its paths a body
counts as JSON unless a browser sent it, which then says so itself: a POST across origins has an Origin.
"""

from __future__ import annotations

from starlette.types import Scope

from penstock.api.dialects import dialect_of
from penstock.api.errors import UnsupportedMedia
from penstock.api.exchange import header
from penstock.wire.ollama_dialect import OLLAMA

_OF_BROWSERS = (b"origin", b"referer", b"sec-fetch-site", b"sec-fetch-mode")


def require_json(scope: Scope) -> None:
    """Raises UnsupportedMedia unless the content type is application/json or ends in +json."""
    given = (header(scope, b"content-type") or b"").decode("latin-1")
    media = given.partition(";")[0].strip().lower()
    if media == "application/json" or (media.startswith("application/") and media.endswith("+json")):
        return
    if dialect_of(scope) is OLLAMA and all(header(scope, name) is None for name in _OF_BROWSERS):
        return
    shown = repr(given[:100]) if given else "none"
    raise UnsupportedMedia(
        f"content-type: {shown}; send `Content-Type: application/json`", param="content-type"
    )
