"""Database: transactions off the event loop, over SQLite or PostgreSQL, at the newest schema.

SQLite runs in one thread, since it has one writer anyway, with a write-ahead log: a commit waits for no disk,
survives the process's death, and may be lost with the machine's. PostgreSQL syncs as its server is told to.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError

from penstock.errors import ConfigError, EngineUnavailable
from penstock.store.folder import FILE, data_folder

log = logging.getLogger("penstock.store")

T = TypeVar("T")

BUSY_S = 30  # another process of this machine may be writing
POOL = 4  # PostgreSQL connections, and threads that wait for them
MIGRATION_LOCK = 0x70656E73  # of PostgreSQL; any number that nobody else takes


class Database:
    """`url` as SQLAlchemy spells it; None: a SQLite file in the data folder. Opened, and its schema
    brought up to date, by the first transaction."""

    def __init__(self, url: str | None = None) -> None:
        self._url = url
        self._is_sqlite = url is None or url.startswith("sqlite")
        self._threads = ThreadPoolExecutor(
            1 if self._is_sqlite else POOL, thread_name_prefix="penstock-store"
        )
        self._engine: Engine | None = None
        self._opening = threading.Lock()

    async def run(self, work: Callable[[Connection], T]) -> T:
        """`work(connection)` in a thread, as one transaction: committed when it returns, undone if it raises.

        Raises EngineUnavailable when the database does not answer, and what `work` raises.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._transaction, work)

    async def close(self) -> None:
        """After the transactions that run. Idempotent."""
        await asyncio.to_thread(self._threads.shutdown)
        if self._engine is not None:
            self._engine.dispose()

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._opened().begin() as connection:
                return work(connection)
        except DBAPIError as error:
            log.error("the database failed", exc_info=error)
            raise EngineUnavailable(
                f"the database does not answer ({type(error).__name__}); the server's log has it"
            ) from None

    def _opened(self) -> Engine:
        with self._opening:
            if self._engine is None:
                engine = self._make_engine()
                _migrate(engine)
                self._engine = engine
            return self._engine

    def _make_engine(self) -> Engine:
        if not self._is_sqlite:
            url = make_url(self._url or "").set(drivername="postgresql+psycopg")
            try:
                return create_engine(url, pool_size=POOL, max_overflow=0, pool_pre_ping=True)
            except ModuleNotFoundError as error:
                raise ConfigError(
                    f"database_url: PostgreSQL needs the package {error.name!r}; install penstock[postgres]"
                ) from None
        if self._url is None:
            path = data_folder() / FILE
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            url = make_url("sqlite://").set(database=str(path))
        else:
            url = make_url(self._url)
        if url.database:
            _make_private(Path(url.database))
        engine = create_engine(url, connect_args={"timeout": BUSY_S})
        _set_up_sqlite(engine)
        return engine


def _make_private(path: Path) -> None:
    """Conversations are nobody else's: the file is made for its owner alone. One that exists stays as
    it is."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _set_up_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions where it sees fit
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # a lock taken later could fail instead of waiting


def _migrate(engine: Engine) -> None:
    """Bring the schema to the newest version; processes that start together take turns."""

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
