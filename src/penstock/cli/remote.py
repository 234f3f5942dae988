"""A running server, asked over its HTTP API by the verbs that look after it."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from penstock.config import ServerSettings
from penstock.errors import (
    ConfigError,
    EngineUnavailable,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    PenstockError,
    Unauthorized,
)

DEFAULT_URL = f"http://{ServerSettings().host}:{ServerSettings().port}"
TIMEOUT_S = 60.0

Url = Annotated[str, typer.Option("--url", help="of the server")]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="bearer key of the server")]

_ERRORS: dict[int, Callable[[str], PenstockError]] = {
    401: lambda text: Unauthorized(f"{text}; pass the server's key with --api-key", param="--api-key"),
    403: Forbidden,
    404: NotFound,
    429: Overloaded,
    503: EngineUnavailable,
}


class Server:
    """One request a connection. Raises EngineUnavailable where nobody answers, else what the status says.

    url: with or without a trailing `/v1`.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url: {url} is not of the form http://host:port", param="--url")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.secure = parts.scheme == "https"
        self.api_key = api_key
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._timeout_s = timeout_s

    def get(self, path: str) -> Any:
        return self._checked(*self._ask("GET", path, None))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._checked(*self._ask("POST", path, body))

    def models(self) -> list[dict[str, Any]]:
        """`data` of GET /v1/models. Raises ConfigError where something else answers."""
        found = self.get("/v1/models")
        if not isinstance(found, dict) or not isinstance(found.get("data"), list):
            raise ConfigError(f"--url: {self.url}/v1/models is no list of models", param="--url")
        return list(found["data"])

    def health(self) -> dict[str, Any]:
        """GET /health: an answer also where it says that nothing moves (503)."""
        status, found = self._ask("GET", "/health", None)
        if status in (200, 503) and isinstance(found, dict) and "alive" in found:
            return found
        self._checked(status, found)
        raise ConfigError(f"--url: {self.url}/health is not a Penstock server's", param="--url")

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        """(status, body), the body decoded if it is JSON."""
        headers = {"accept": "application/json", "connection": "close"}
        if body is not None:
            headers["content-type"] = "application/json"
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        connection = self._connection()
        try:
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, self._prefix + path, content, headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise EngineUnavailable(
                f"{self.url}: nobody answers ({error or type(error).__name__}); `penstock serve` starts "
                "a server, --url names another"
            ) from None
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text.decode(errors="replace")

    def _connection(self) -> http.client.HTTPConnection:
        if self.secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self.host, self.port, timeout=self._timeout_s, context=context)
        return http.client.HTTPConnection(self.host, self.port, timeout=self._timeout_s)

    def _checked(self, status: int, body: Any) -> Any:
        if 200 <= status < 300:
            return body
        error = body.get("error", body) if isinstance(body, dict) else body
        text = error.get("message") if isinstance(error, dict) else error
        text = f"{self.url}: HTTP {status}: {text}"
        raise _ERRORS.get(status, InvalidRequest if status < 500 else PenstockError)(text)
