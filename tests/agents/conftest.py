import pytest

from support.live_server import serve

__all__ = ["serve"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="store what the real agents send, trimmed")
