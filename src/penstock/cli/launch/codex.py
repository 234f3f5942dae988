"""Codex: `-c` overrides on its command line, and a model catalogue of one entry; config.toml stays."""

from __future__ import annotations

import json
from pathlib import Path

from penstock.cli.launch.tool import ConfigFile, Setup, Target, Tool

KEY_VARIABLE = "PENSTOCK_API_KEY"  # where the provider below says that its key is
OUTPUT_BYTES = 10_000  # of a command's output that Codex shows to the model; its own default
# Codex has its agent's instructions from the catalogue; without any, a model hears of skills and the sandbox.
INSTRUCTIONS = """\
You are a coding agent in a terminal. You work on the user's files until their request is done.
Look at files before you change them. Change files with apply_patch, everything else goes through the shell.
Make the smallest change that does what was asked, in the style of what is there, and run what shows it works.
Go on by yourself: call tools instead of describing what you would do. Ask only if you can't find out.
When you are done, say in a few sentences what you changed."""


def configure(target: Target, folder: Path) -> Setup:
    catalog = folder / "codex-models.json"
    provider = {
        "name": "Penstock",
        "base_url": target.openai_url,
        "wire_api": "responses",
        "env_key": KEY_VARIABLE,
    }
    overrides = {
        "model_provider": "penstock",
        **{f"model_providers.penstock.{key}": value for key, value in provider.items()},
        "model_catalog_json": str(catalog),
    }
    arguments = [part for key, value in overrides.items() for part in ("-c", f"{key}={json.dumps(value)}")]
    content = json.dumps({"models": [_entry(target)]}, indent=2).encode() + b"\n"
    return Setup(
        arguments=(*arguments, "-m", target.model),
        environment={KEY_VARIABLE: target.key},
        files=(ConfigFile(catalog, content, ours=True),),
    )


def _entry(target: Target) -> dict[str, object]:
    return {
        "slug": target.model,
        "display_name": target.model,
        "context_window": target.context,
        "shell_type": "default",
        "visibility": "list",
        "supported_in_api": True,
        "priority": 0,
        "truncation_policy": {"mode": "bytes", "limit": OUTPUT_BYTES},
        "input_modalities": ["text"],
        "base_instructions": INSTRUCTIONS,
        "apply_patch_tool_type": "freeform",  # without it there is no tool that edits files
        "support_verbosity": False,
        "supports_parallel_tool_calls": True,
        "supports_reasoning_summaries": False,
        "supported_reasoning_levels": [],
        "experimental_supported_tools": [],
    }


TOOL = Tool(
    name="codex",
    executable="codex",
    install="npm install -g @openai/codex",
    configure=configure,
    reserved=(
        *("-m", "--model", "--oss", "-p", "--profile"),
        *(
            f"{flag} {key}"
            for flag in ("-c", "--config")
            for key in ("model", "model_provider", "model_providers.penstock", "model_catalog_json")
        ),
    ),
    min_context=16_384,
    min_version=(0, 81),
)
