"""Content types of request bodies: JSON, declared as such.

A form or text body is what a foreign web page may send to 127.0.0.1 without being asked first; a body
declared as JSON is not (CORS preflight). So the declaration is required, not guessed.
"""

from __future__ import annotations

from starlette.types import Scope

from penstock.api.errors import UnsupportedMedia
from penstock.api.exchange import header


def require_json(scope: Scope) -> None:
    """Raises UnsupportedMedia unless the content type is application/json or ends in +json."""
    given = (header(scope, b"content-type") or b"").decode("latin-1")
    media = given.partition(";")[0].strip().lower()
    if media == "application/json" or (media.startswith("application/") and media.endswith("+json")):
        return
    shown = repr(given[:100]) if given else "none"
    raise UnsupportedMedia(
        f"content-type: {shown}; send `Content-Type: application/json`", param="content-type"
    )
