"""Which conversation a request belongs to, as agents tell it in headers: the affinity key of its cache."""

from __future__ import annotations

from starlette.types import Scope

from penstock.api.exchange import header

MAX_CHARS = 256
# (session, agent) as Claude Code names them, and OpenCode and its plugins; Codex names its in the body.
# An agent's id stands beside the session's, since each agent has a prefix of its own.
_HEADERS = (
    (b"x-claude-code-session-id", b"x-claude-code-agent-id"),
    (b"x-session-affinity", None),
    (b"x-opencode-session", None),
)


def affinity_key(scope: Scope) -> str | None:
    """The session, with its agent if it has one. None without a header for it, or with one that is no id."""
    for session_name, agent_name in _HEADERS:
        session = header(scope, session_name)
        agent = header(scope, agent_name) if agent_name else None
        if session and len(session) <= MAX_CHARS and len(agent or b"") <= MAX_CHARS:
            return (session + b"/" + agent if agent else session).decode("latin-1")
    return None
