"""Stored turns against a list in memory, on every database; the migrations against the tables."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, inspect, select

from penstock.config import ServerSettings
from penstock.errors import ConfigError, EngineUnavailable
from penstock.store.database import Database
from penstock.store.records import Cut, Json, NewResponse
from penstock.store.tables import items, metadata, responses, threads
from penstock.store.turns import Turns


def item(name: str) -> Json:
    return {"type": "message", "id": name, "content": "\x00 é"}


def new(previous: str | None = None, conversation: str | None = None, size: int = 1) -> NewResponse:
    name = f"resp_{uuid.uuid4().hex}"
    given = [item(f"{name}-in{i}") for i in range(size)]
    return NewResponse(name, 1, "{}", given, [item(f"{name}-out")], previous, conversation)


def ids(found: list[Json] | None) -> list[str]:
    assert found is not None
    return [one["id"] for one in found]


async def count(turns: Turns, tenant: str) -> list[int]:
    """Rows of the tenant: threads, their items, responses."""

    def work(connection):
        mine = select(threads.c.id).where(threads.c.tenant == tenant)
        queries = (
            select(func.count()).select_from(threads).where(threads.c.tenant == tenant),
            select(func.count()).select_from(items).where(items.c.thread.in_(mine)),
            select(func.count()).select_from(responses).where(responses.c.tenant == tenant),
        )
        return [connection.execute(query).scalar_one() for query in queries]

    return await turns._database.run(work)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_any_tree_of_responses_keeps_every_history(turns, data):
    """Red if a fork, a deletion or an append changes another branch's turns, or leaves needless rows."""
    tenant, histories = uuid.uuid4().hex, dict[str, list[str]]()
    for _ in range(data.draw(st.integers(1, 8))):
        if histories and data.draw(st.booleans()) and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(histories)))
            assert await turns.delete_response(tenant, gone)
            del histories[gone]
        else:
            previous = data.draw(st.sampled_from([None, *sorted(histories)]))
            made = new(previous, size=data.draw(st.integers(0, 2)))
            assert await turns.add_response(tenant, made)
            before = histories[previous] if previous else []
            histories[made.id] = [*before, *ids([*made.input, *made.output])]
        for name, wanted in histories.items():
            assert ids(await turns.history(tenant, name)) == wanted
    for name in histories:
        assert await turns.delete_response(tenant, name)
    assert await count(turns, tenant) == [0, 0, 0]


async def test_concurrent_answers_to_one_response_fork(turns):
    """Red if two answers that end together append to one thread, one behind the other."""
    root = new()
    await turns.add_response("t", root)
    branches = [new(root.id) for _ in range(8)]
    assert all(await asyncio.gather(*(turns.add_response("t", branch) for branch in branches)))
    for branch in branches:
        wanted = ids([*root.input, *root.output, *branch.input, *branch.output])
        assert ids(await turns.history("t", branch.id)) == wanted
    assert len(await turns.find_items("t", [root.output[0]["id"], "nope"])) == 1


async def test_concurrent_answers_of_one_conversation_are_appended_whole(turns):
    """Red if turns of answers that end together interleave, or one is lost."""
    conversation = await turns.add_conversation("t", 1, {}, [])
    answers = [new(conversation=conversation.id, size=2) for _ in range(8)]
    assert all(await asyncio.gather(*(turns.add_response("t", answer) for answer in answers)))
    version, kept = await turns.all_items("t", conversation.id)
    found = ids(kept)
    assert version == await turns.version("t", conversation.id) == len(found)
    turns_found = [found[i : i + 3] for i in range(0, len(found), 3)]
    assert sorted(turns_found) == sorted(ids([*a.input, *a.output]) for a in answers)


async def test_tenants_do_not_see_each_other(turns):
    """Red if another tenant's response, item or conversation can be read, gone on from or deleted."""
    mine = new()
    await turns.add_response("a", mine)
    conversation = await turns.add_conversation("a", 1, {}, [item("x")])
    assert await turns.response("b", mine.id) is None
    assert await turns.history("b", mine.id) is None
    assert await turns.input_items("b", mine.id, Cut()) is None
    assert await turns.find_items("b", [mine.output[0]["id"]]) == {}
    assert not await turns.delete_response("b", mine.id)
    assert not await turns.add_response("b", new(mine.id))
    assert await turns.conversation("b", conversation.id) is None
    assert await turns.items("b", conversation.id, Cut()) is None
    assert not await turns.add_items("b", conversation.id, [item("y")])
    assert not await turns.delete_conversation("b", conversation.id)
    assert not await turns.add_response("b", new(conversation=conversation.id))


@pytest.mark.parametrize("descending", [False, True])
async def test_pages_join_to_the_whole_list(turns, descending):
    """Red if a page repeats or leaves out an item, or says wrongly that there are more."""
    conversation = await turns.add_conversation("t", 1, {}, [item(f"i{n}") for n in range(7)])
    await turns.delete_item("t", conversation.id, "i3")
    found, after = [], None
    while True:
        page = await turns.items("t", conversation.id, Cut(after, 2, descending))
        assert page is not None
        found += ids(page.items)
        after = found[-1]
        if not page.has_more:
            break
    wanted = [f"i{n}" for n in range(7) if n != 3]
    assert found == (wanted[::-1] if descending else wanted)
    assert await turns.items("t", conversation.id, Cut("i3")) is None


async def test_the_tables_are_what_the_migrations_make(turns, url):
    """Red if a table is changed without a migration, or a migration without the table."""
    await turns.response("t", "x")

    def work(connection):
        found = inspect(connection)
        return {
            table.name: [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(table.name)]
            for table in metadata.sorted_tables
        }

    made = await turns._database.run(work)
    dialect = turns._database._engine.dialect
    assert made == {
        table.name: [(c.name, c.type.compile(dialect), c.nullable) for c in table.columns]
        for table in metadata.sorted_tables
    }


async def test_processes_that_open_together_migrate_once(url):
    """Red if two servers that start on an empty database trip over each other's migration."""
    stores = [Turns(Database(url)) for _ in range(4)]
    assert await asyncio.gather(*(store.response("t", "x") for store in stores)) == [None] * 4
    for store in stores:
        await store.close()


KILLED = """
import asyncio, os, sys
from penstock.store.database import Database
from penstock.store.records import NewResponse
from penstock.store.turns import Turns

async def main():
    await Turns(Database(sys.argv[1])).add_response("t", NewResponse("r", 1, "{}", [], [{"id": "o"}]))
    os._exit(9)

asyncio.run(main())
"""


async def test_what_was_stored_survives_a_kill(turns, url):
    """Red if an answer that was said to be stored is gone after the process is killed."""
    process = subprocess.run([sys.executable, "-c", KILLED, url], timeout=60, check=False)
    assert process.returncode == 9
    assert ids(await turns.history("t", "r")) == ["o"]


async def test_a_database_file_is_its_owners_alone(tmp_path: Path):
    """Red if other users of the machine can read the conversations."""
    path = tmp_path / "turns.db"
    store = Turns(Database(f"sqlite:///{path}"))
    await store.response("t", "x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await store.close()


async def test_a_database_that_fails_is_a_503(tmp_path: Path):
    """Red if a broken database is shown to clients as a defect, with its details."""
    path = tmp_path / "turns.db"
    store = Turns(Database(f"sqlite:///{path}"))
    await store.response("t", "x")
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE responses")
    with pytest.raises(EngineUnavailable, match="does not answer"):
        await store.response("t", "x")
    await store.close()


def test_urls_of_other_databases_are_refused():
    """Red if a URL that can't work is found out about at the first request instead of at the start."""
    with pytest.raises(ConfigError, match="mysql"):
        ServerSettings(database_url="mysql://x/y")


def test_a_server_that_stores_nothing_loads_no_sql():
    """Red if `penstock serve` waits for SQLAlchemy or Alembic before anyone asked it to remember."""
    code = (
        "import sys, penstock.api.app, penstock.cli.main;"
        "sys.exit(any(m.partition('.')[0] in ('sqlalchemy', 'alembic') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
