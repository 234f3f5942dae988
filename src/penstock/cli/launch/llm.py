"""llm: an entry of its `extra-openai-models.yaml`, and of `keys.json` where the server needs a key."""

from __future__ import annotations

import json
import os
from pathlib import Path

from penstock.cli.launch.edit import read_object, with_block
from penstock.cli.launch.tool import ConfigFile, Setup, Target, Tool, config_home

KEY_NAME = "penstock"


def configure(target: Target, folder: Path) -> Setup:
    own = os.environ.get("LLM_USER_PATH")  # llm's own variable
    user = Path(own) if own else config_home() / "io.datasette.llm"
    path = user / "extra-openai-models.yaml"
    name = f"penstock/{target.model}"
    entry: dict[str, object] = {
        "model_id": name,
        "model_name": target.model,
        "api_base": target.openai_url,
        "supports_tools": True,
        "supports_schema": True,
    }
    files = []
    if target.api_key:
        entry["api_key_name"] = KEY_NAME
        keys = {**read_object(user / "keys.json"), KEY_NAME: target.api_key}
        files.append(ConfigFile(user / "keys.json", json.dumps(keys, indent=2).encode() + b"\n"))
    line = f"- {json.dumps(entry, ensure_ascii=False)}"  # JSON is YAML
    return Setup(
        environment={"LLM_MODEL": name},
        files=(ConfigFile(path, with_block(path, line)), *files),
        default=("chat",),
    )


TOOL = Tool(
    name="llm",
    executable="llm",
    install="pip install llm",
    configure=configure,
    reserved=("-m", "--model"),
    min_version=(0, 23),
    needs_tools=False,
)
