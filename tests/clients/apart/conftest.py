"""These run in the environment of `requirements.txt`, by `tests/clients/test_sdks_apart.py`: without
penstock, against the server that `--url` names."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--url", required=True)


@pytest.fixture(scope="session")
def url(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--url")
