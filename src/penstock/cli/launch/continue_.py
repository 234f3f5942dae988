"""Continue's command line, `cn`: a configuration file of our own (docs.continue.dev/reference)."""

from __future__ import annotations

import json
from pathlib import Path

from penstock.cli.launch.tool import ConfigFile, Setup, Target, Tool


def configure(target: Target, folder: Path) -> Setup:
    path = folder / "continue.yaml"
    model = {
        "name": target.model,
        "provider": "openai",
        "model": target.model,
        "apiBase": target.openai_url,
        "apiKey": target.key,
        "roles": ["chat", "edit", "apply"],
        "capabilities": ["tool_use"],
        "defaultCompletionOptions": {"contextLength": target.context, "maxTokens": target.context // 4},
    }
    config = {"name": "Penstock", "version": "1.0.0", "schema": "v1", "models": [model]}
    content = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"  # JSON is YAML
    return Setup(arguments=("--config", str(path)), files=(ConfigFile(path, content, ours=True),))


TOOL = Tool(
    name="continue",
    executable="cn",
    install="npm install -g @continuedev/cli",
    configure=configure,
    reserved=("--config", "--model"),
    min_context=8_192,
)
