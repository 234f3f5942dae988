import gc
from collections.abc import Iterator

import pytest

from support.client_script import live_script
from support.live_server import serve
from support.threaded_server import Live

__all__ = ["serve"]

collect_ignore = ["apart"]  # of another environment, see test_sdks_apart.py


@pytest.fixture(scope="module")
def script() -> Iterator[Live]:
    """A server of the script that all clients are tested with."""
    with live_script() as server:
        yield server
        gc.collect()  # else connections that a client left open are warned of in another module
