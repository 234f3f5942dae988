"""OpenCode: a provider in OPENCODE_CONFIG_CONTENT, merged over all of its files (opencode.ai/docs/config)."""

from __future__ import annotations

import json
from pathlib import Path

from penstock.cli.launch.tool import Setup, Target, Tool

MIN_CONTEXT = 16_384


def configure(target: Target, folder: Path) -> Setup:
    model = {
        "name": target.model,
        "tool_call": True,
        "limit": {"context": target.context, "output": target.context // 4},
    }
    config: dict[str, object] = {
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
    if target.context < MIN_CONTEXT:  # --force: where its own prompt is too long it would summarize for ever
        config["compaction"] = {"auto": False}
    return Setup(environment={"OPENCODE_CONFIG_CONTENT": json.dumps(config)})


TOOL = Tool(
    name="opencode",
    executable="opencode",
    install="npm install -g opencode-ai",
    configure=configure,
    reserved=("-m", "--model"),
    min_context=MIN_CONTEXT,
    min_version=(1, 0),
)
