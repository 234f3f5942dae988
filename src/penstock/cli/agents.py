"""Which coding agent runs this command: a table of the variables that agents set for their shells.

Static, so that it answers offline and the same way everywhere. The list is that of
@vercel/detect-agent 1.2.7, and AGENT, which goose and amp set.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class Sign(Struct, frozen=True):
    """`variable` is set (and equals `value`, unless None) in the shells of `agent`.

    `ambiguous`: people have it in shells of their own too, so it counts only where standard output is no
    terminal.
    """

    agent: str
    variable: str
    value: str | None = None
    ambiguous: bool = False


# The first that fits names the agent.
SIGNS = (
    Sign("agent", "AI_AGENT"),
    Sign("cursor", "CURSOR_TRACE_ID", ambiguous=True),
    Sign("cursor", "CURSOR_AGENT"),
    Sign("cursor", "CURSOR_EXTENSION_HOST_ROLE", "agent-exec"),
    Sign("gemini", "GEMINI_CLI"),
    Sign("codex", "CODEX_SANDBOX"),
    Sign("codex", "CODEX_CI"),
    Sign("codex", "CODEX_THREAD_ID"),
    Sign("antigravity", "ANTIGRAVITY_AGENT"),
    Sign("augment", "AUGMENT_AGENT"),
    Sign("opencode", "OPENCODE", "1"),
    Sign("opencode", "OPENCODE_CLIENT"),
    Sign("claude", "CLAUDECODE"),
    Sign("claude", "CLAUDE_CODE"),
    Sign("agent", "AGENT"),
    Sign("replit", "REPL_ID", ambiguous=True),
    Sign("copilot", "COPILOT_MODEL", ambiguous=True),
    Sign("copilot", "COPILOT_ALLOW_ALL", ambiguous=True),
    Sign("copilot", "COPILOT_GITHUB_TOKEN", ambiguous=True),
)


def detect(environment: Mapping[str, str], *, terminal: bool) -> str | None:
    """The agent's name, or None. `terminal`: whether standard output is one."""
    for sign in SIGNS:
        value = environment.get(sign.variable)
        if not value or (sign.ambiguous and terminal):
            continue
        if sign.value is None or value == sign.value:
            return sign.agent
    return None
