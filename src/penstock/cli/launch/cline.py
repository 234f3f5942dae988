"""Cline: its provider file, `~/.cline/data/settings/providers.json`, as `cline auth` writes it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from penstock.cli.launch.edit import read_object
from penstock.cli.launch.tool import ConfigFile, Setup, Target, Tool, home

PROVIDER = "openai-compatible"


def configure(target: Target, folder: Path) -> Setup:
    path = home() / ".cline" / "data" / "settings" / "providers.json"
    config = read_object(path)
    settings = {
        "provider": PROVIDER,
        "apiKey": target.key,
        "model": target.model,
        "baseUrl": target.openai_url,
        "contextWindow": target.context,
    }
    providers = config.setdefault("providers", {})
    if providers.get(PROVIDER, {}).get("settings") != settings:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        providers[PROVIDER] = {"settings": settings, "updatedAt": now, "tokenSource": "manual"}
    config["lastUsedProvider"] = PROVIDER
    config.setdefault("version", 1)
    config.setdefault("modes", {})
    content = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    return Setup(files=(ConfigFile(path, content),))


TOOL = Tool(
    name="cline",
    executable="cline",
    install="npm install -g cline",
    configure=configure,
    reserved=("-P", "--provider", "-k", "--key", "-m", "--model", "--config", "--data-dir"),
    min_context=16_384,
    min_version=(3, 0),
)
