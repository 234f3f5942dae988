"""OpenCode: a provider in OPENCODE_CONFIG_CONTENT, merged over all of its files (opencode.ai/docs/config)."""

from __future__ import annotations

import json
from pathlib import Path

from penstock.cli.launch.tool import Setup, Target, Tool


def configure(target: Target, folder: Path) -> Setup:
    model = {
        "name": target.model,
        "tool_call": True,
        "limit": {"context": target.context, "output": target.context // 4},
    }
    config = {
        "$schema": "https://opencode.ai/config.json",
        "model": f"penstock/{target.model}",
        "small_model": f"penstock/{target.model}",  # for titles; else they go to a hosted model
        "provider": {
            "penstock": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "Penstock",
                "options": {"baseURL": target.openai_url, "apiKey": target.key},
                "models": {target.model: model},
            }
        },
    }
    return Setup(environment={"OPENCODE_CONFIG_CONTENT": json.dumps(config)})


TOOL = Tool(
    name="opencode",
    executable="opencode",
    install="npm install -g opencode-ai",
    configure=configure,
    reserved=("-m", "--model"),
    min_context=16_384,
    min_version=(1, 0),
)
