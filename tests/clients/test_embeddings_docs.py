"""Every Python block of docs/clients/embeddings.md, run in order against a live server with real MiniLM."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ollama", reason="the ollama package is part of the test extra")

from penstock.config import ServerSettings
from penstock.engine.embedding.service import LocalEmbeddings

PAGE = Path(__file__).parents[2] / "docs" / "clients" / "embeddings.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


async def test_the_page_runs(serve, minilm_path, capsys):
    """Red if an example of the page fails, or a server without any setting does not embed with MiniLM."""
    server = await serve(embeddings=LocalEmbeddings(ServerSettings()))
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) == 5
    names: dict[str, Any] = {"base_url": server.url, "__name__": "docs"}

    def run() -> None:
        for number, block in enumerate(blocks):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)  # the page is ours
        names["client"].close()
        names["ollama"].close()

    await asyncio.to_thread(run)
    cosines, refused, truncated, counts, *ranked, score = capsys.readouterr().out.splitlines()
    near, far = (float(number) for number in re.findall(r"-?\d\.\d*", cosines)[1:3])
    assert near > 0.4 > 0.2 > far
    assert (refused, truncated, counts) == ("context_length_exceeded input", "[0]", "3 27")
    assert "bread" in ranked[0] and "sourdough" in ranked[1] and 0.3 < float(score) < 1
