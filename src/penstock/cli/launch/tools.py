"""The tools that can be launched."""

from __future__ import annotations

from penstock.cli.launch import aider, claude, cline, codex, continue_, llm, opencode
from penstock.cli.launch.tool import Tool

TOOLS: dict[str, Tool] = {
    module.TOOL.name: module.TOOL for module in (claude, codex, opencode, cline, aider, llm, continue_)
}
