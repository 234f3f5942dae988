from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The service runs on the loop that `serve` uses, the rest on asyncio's own, as `LLM` does."""
    if item.path.name == "test_service.py":
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Sockets of a test lie in its own folder, so that what is left behind is seen.

    Not below `tmp_path`: its name can be longer than a socket path may be.
    """
    with tempfile.TemporaryDirectory(prefix="ps-test-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        yield Path(folder)
