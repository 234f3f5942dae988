"""Which conversation a request belongs to, as agents tell it in headers: the affinity key of its cache."""

from __future__ import annotations

from starlette.types import Scope

from penstock.api.exchange import header

MAX_CHARS = 256
# Claude Code's; the agent's id stands beside the session's, since each agent has a prefix of its own.
_SESSION, _AGENT = b"x-claude-code-session-id", b"x-claude-code-agent-id"


def affinity_key(scope: Scope) -> str | None:
    """The session, with its agent if it has one. None without a header for it, or with one that is no id."""
    session, agent = header(scope, _SESSION), header(scope, _AGENT)
    if not session or len(session) > MAX_CHARS or len(agent or b"") > MAX_CHARS:
        return None
    return (session + b"/" + agent if agent else session).decode("latin-1")
