"""Stores over every database that is served: a SQLite file, and a PostgreSQL of the session's own if one is
installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from penstock.store.batches import Batches
from penstock.store.database import Database
from penstock.store.turns import Turns


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a server that ends with the session."""
    pytest.importorskip("psycopg", reason="PostgreSQL needs penstock[postgres]")
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("needs PostgreSQL's initdb and pg_ctl")
    folder = Path(tempfile.mkdtemp(prefix="penstock-postgres-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        shutil.chown(folder, "nobody")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    data = str(folder / "data")

    def run(*command: str) -> None:
        subprocess.run([*as_user, *command], check=True, stdout=subprocess.DEVNULL, timeout=60)

    run("initdb", "-D", data, "-A", "trust", "-U", "penstock", "--no-sync")
    options = f"-p {port} -k {folder} -h 127.0.0.1 -c fsync=off"
    run("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
    yield f"postgresql://penstock@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/turns.db"
    found: str = request.getfixturevalue("postgres")
    return found


@pytest.fixture
async def turns(url: str) -> AsyncIterator[Turns]:
    made = Turns(Database(url))
    yield made
    await made.close()


@pytest.fixture
async def batches(url: str) -> AsyncIterator[Batches]:
    database = Database(url)
    yield Batches(database)
    await database.close()
