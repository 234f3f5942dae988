"""Every Python block of docs/clients/openai.md, run in order against a live server."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from support.agent_service import AgentService

PAGE = Path(__file__).parents[2] / "docs" / "clients" / "openai.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


async def test_the_page_runs(serve, capsys):
    """Red if an example of the page fails with the SDK that is pinned."""
    server = await serve(AgentService())
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) > 8
    names: dict[str, Any] = {"base_url": server.url, "__name__": "docs"}

    def run() -> None:
        for number, block in enumerate(blocks):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)  # the page is ours
        names["client"].close()

    await asyncio.to_thread(run)
    shown = capsys.readouterr().out
    for word in ("hello there", "get_weather", "It said: sunny", "Oslo", "model_not_found"):
        assert word in shown
