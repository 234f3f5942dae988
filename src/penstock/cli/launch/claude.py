"""Claude Code: environment variables alone (code.claude.com/docs/en/llm-gateway)."""

from __future__ import annotations

from pathlib import Path

from penstock.cli.launch.tool import Setup, Target, Tool


def configure(target: Target, folder: Path) -> Setup:
    tiers = ("OPUS", "SONNET", "HAIKU")
    return Setup(
        arguments=("--model", target.model),
        environment={
            "ANTHROPIC_BASE_URL": target.url,
            "ANTHROPIC_API_KEY": "",  # one in the environment would win over the token
            "ANTHROPIC_AUTH_TOKEN": target.key,
            **{f"ANTHROPIC_DEFAULT_{tier}_MODEL": target.model for tier in tiers},
            "CLAUDE_CODE_SUBAGENT_MODEL": target.model,
            "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(target.context),
            "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # a nonce in front of the prompt: no prefix would repeat
            "CLAUDE_CODE_DISABLE_FEEDBACK_SURVEY": "1",
        },
    )


TOOL = Tool(
    name="claude",
    executable="claude",
    install="npm install -g @anthropic-ai/claude-code",
    configure=configure,
    reserved=("--model",),
    min_context=32_768,
)
