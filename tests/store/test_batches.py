"""Stored batches and files on every database: leases, results written once, what appears at the end."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import NoResultFound

from penstock.store.batches import Batches, LeaseLost
from penstock.store.database import Database
from penstock.store.records import Cut, LineResult, NewLine, StoredBatch

LEASE_S = 10.0


def new(tenant: str, **fields: Any) -> StoredBatch:
    fixed = {
        "id": f"batch_{uuid.uuid4().hex}",
        "tenant": tenant,
        "api": "openai",
        "endpoint": "/v1/chat/completions",
        "status": "in_progress",
        "times": {"in_progress": 1},
        "created_at": 1,
        "expires_at": 1000,
        "input_file": "file-1",
        "model": tenant,  # so that batches of other tests are not claimed
    }
    return StoredBatch(**(fixed | fields))


def lines(count: int) -> list[NewLine]:
    return [NewLine(f"r{i}", '{"é": "\\u0000"}') for i in range(count)]


def result(number: int, text: str = "answer", state: str = "succeeded") -> LineResult:
    return LineResult(number, state, f"{text} {number}", 3, 2, 1)  # type: ignore[arg-type]


def ended(state: str, custom_id: str) -> str:
    return f"{state} {custom_id}"


async def claimed(batches: Batches, tenant: str, owner: str, now: float) -> list[str]:
    found = await batches.claim(owner, [tenant], 10, now, now + LEASE_S)
    return [batch.id for batch in found]


async def content(batches: Batches, batch: StoredBatch, name: str | None) -> str:
    file = await batches.files.get(batch.tenant, name or "", 2)
    assert file is not None
    data = b"".join([piece async for piece in batches.files.read(file)])
    assert file.bytes == len(data)
    return data.decode()


@pytest.fixture
def tenant() -> str:
    return uuid.uuid4().hex


async def test_a_batch_is_run_by_one_server_at_a_time(batches, url, tenant):
    """Red if servers that look at once both take a batch, or one is taken from a server that is alive."""
    names = [new(tenant) for _ in range(6)]
    for batch in names:
        await batches.add(batch, lines(1))
    stores = [Batches(Database(url)) for _ in range(4)]
    found = await asyncio.gather(
        *(claimed(store, tenant, f"s{i}", 100) for i, store in enumerate(stores) for _ in range(3))
    )
    assert sorted(name for names in found for name in names) == sorted(batch.id for batch in names)
    assert await claimed(batches, tenant, "late", 109) == []
    owner = next(i for i, names in enumerate(found) if names) // 3
    await batches.renew(f"s{owner}", [batch.id for batch in names], 130)
    mine = {name for names in found[3 * owner : 3 * owner + 3] for name in names}
    assert set(await claimed(batches, tenant, "late", 115)) == {batch.id for batch in names} - mine
    for store in stores:
        await store._database.close()


async def test_a_server_is_offered_its_models_only(batches, tenant):
    """Red if a batch is run by a server that does not have its model."""
    batch = new(tenant)
    await batches.add(batch, lines(1))
    assert await batches.claim("s", ["another"], 10, 5, 15) == []
    assert await claimed(batches, tenant, "s", 5) == [batch.id]


async def test_a_server_that_lost_its_lease_writes_nothing(batches, tenant):
    """Red if a server that slept through its lease writes beside the one that took over."""
    batch = new(tenant)
    await batches.add(batch, lines(2))
    await claimed(batches, tenant, "old", 0)
    assert await claimed(batches, tenant, "new", LEASE_S) == [batch.id]
    writes = [
        batches.answered("old", batch.id, [result(0)]),
        batches.finish("old", batch.id, 2000, ended),
        batches.fail("old", batch.id, [], 5),
        batches.begin("old", batch.id, "m", 5),
        batches.add_lines("old", batch.id, 2, lines(1)),
    ]
    for write in writes:
        with pytest.raises(LeaseLost):
            await write
    assert await batches.renew("old", [batch.id], 50) == {}
    assert (await batches.get(tenant, "openai", batch.id)).counts == {"waiting": 2}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 5), max_size=20), end=st.sampled_from(["cancel", "expire", "none"]))
async def test_each_line_has_exactly_one_result(batches, order, end):
    """Red if a second answer replaces the first, its tokens are counted again, or a line without an answer is
    in no file: whatever was answered how often, and however the batch ends."""
    tenant = uuid.uuid4().hex
    batch = new(tenant)
    await batches.add(batch, lines(6))
    await claimed(batches, tenant, "s", 0)
    for turn, number in enumerate(order):
        await batches.answered("s", batch.id, [result(number, f"turn {turn}")])
    answered = {number: order.index(number) for number in order}
    if end == "cancel":
        await batches.cancel(tenant, "openai", batch.id, 3)
    finished = await batches.finish("s", batch.id, 1000 if end == "expire" else 5, ended)
    if end == "none" and len(answered) < 6:
        assert finished is None
        return
    found = await batches.get(tenant, "openai", batch.id)
    state = "cancelled" if end == "cancel" else "expired"
    expected = {"succeeded": len(answered)} if answered else {}
    expected |= {state: 6 - len(answered)} if len(answered) < 6 else {}
    assert found.counts == expected
    all_answered = len(answered) == 6 and end != "cancel"
    assert found.status == ("completed" if all_answered else state)
    assert (found.prompt_tokens, found.completion_tokens) == (3 * len(answered), len(answered))
    output = "".join(f"turn {turn} {number}\n" for number, turn in sorted(answered.items()))
    errors = "".join(f"{state} r{number}\n" for number in range(6) if number not in answered)
    for name, text in ((found.output_file, output), (found.error_file, errors)):
        assert (name is None) == (not text)
        if text:
            assert await content(batches, found, name) == text
    with pytest.raises(LeaseLost):
        await batches.finish("s", batch.id, 2000, ended)


async def test_what_another_tenant_has_does_not_exist(batches, tenant):
    """Red if an id is enough to read, cancel or delete what is somebody else's."""
    batch = new(tenant)
    await batches.add(batch, lines(1))
    file = await batches.files.begin(tenant, "a", 5)
    await batches.files.append(file, 0, b"x")
    await batches.files.complete(file, "batch", 1, None)
    assert await batches.get("other", "openai", batch.id) is None
    assert await batches.get(tenant, "anthropic", batch.id) is None
    assert await batches.cancel("other", "openai", batch.id, 5) == (None, False)
    assert await batches.delete("other", "openai", batch.id) == (False, False)
    assert await batches.files.get("other", file, 5) is None
    assert not await batches.files.delete("other", file, 5)
    page = await batches.files.page("other", Cut(), None, 5)
    assert page is not None and page.items == []


async def test_files_expire_and_uploads_that_broke_off_go(batches, tenant):
    """Red if a file outlives its time, or an upload that never ended stays for ever or shows as a file."""
    files = batches.files
    short = await files.begin(tenant, "short", 0)
    await files.append(short, 0, b"x")
    assert await files.get(tenant, short, 1) is None
    await files.complete(short, "batch", 1, 100)
    broken = await files.begin(tenant, "broken", 0)
    await files.append(broken, 0, b"x")
    assert (await files.get(tenant, short, 99)).filename == "short"
    assert await files.get(tenant, short, 100) is None
    await files.sweep(5000)
    assert await files.get(tenant, short, 1) is None
    with pytest.raises(NoResultFound):
        await files.complete(broken, "batch", 1, None)
