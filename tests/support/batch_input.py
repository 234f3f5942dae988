"""Batch files of the OpenAI form, for tests of what answers them."""

from __future__ import annotations

import json
from pathlib import Path


def batch_input(path: Path, count: int, max_tokens: int = 4) -> Path:
    """`count` lines, chat and completions by turns, each of exactly `max_tokens` tokens."""
    lines = [
        {
            "custom_id": f"id-{i}",
            "method": "POST",
            "url": "/v1/completions" if i % 2 else "/v1/chat/completions",
            "body": {
                "model": "any",
                "max_tokens": max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                **({"prompt": f"no {i}"} if i % 2 else {"messages": [{"role": "user", "content": f"{i}"}]}),
            },
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
