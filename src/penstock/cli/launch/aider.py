"""aider: flags, and a file that tells litellm, which it calls models by, the context size."""

from __future__ import annotations

import json
from pathlib import Path

from penstock.cli.launch.tool import ConfigFile, Setup, Target, Tool


def configure(target: Target, folder: Path) -> Setup:
    path = folder / "aider-models.json"
    name = f"openai/{target.model}"
    metadata = {
        name: {
            "max_input_tokens": target.context,
            "max_output_tokens": target.context,
            "input_cost_per_token": 0,
            "output_cost_per_token": 0,
            "litellm_provider": "openai",
            "mode": "chat",
        }
    }
    content = json.dumps(metadata, indent=2).encode() + b"\n"
    return Setup(
        arguments=("--model", name, "--model-metadata-file", str(path)),
        environment={"OPENAI_API_BASE": target.openai_url, "OPENAI_API_KEY": target.key},
        files=(ConfigFile(path, content, ours=True),),
    )


TOOL = Tool(
    name="aider",
    executable="aider",
    install="pip install aider-chat",
    configure=configure,
    reserved=("--model", "--model-metadata-file", "--openai-api-base", "--openai-api-key", "--api-key"),
    min_context=4_096,
    needs_tools=False,  # it edits by text
)
