"""Input files of batches in any pieces, and how many lines are in flight."""

from __future__ import annotations

import asyncio
import json

from hypothesis import given
from hypothesis import strategies as st

from penstock.call import Health
from penstock.gateway.batches.input_file import MAX_ERRORS, InputFile, first_model
from penstock.gateway.batches.places import LEAST, Places
from penstock.wire.openai_batches import MAX_LINES

CHAT = "/v1/chat/completions"


def _line(name: str, text: str = "x") -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": body}).encode()


@given(
    texts=st.lists(st.text(max_size=20), min_size=1, max_size=8),
    ends=st.sampled_from([b"", b"\n", b"\r\n", b"\n\n"]),
    data=st.data(),
)
def test_any_pieces_give_the_same_lines(texts, ends, data):
    """Red if a line that two pieces share is lost or torn, or its body changes."""
    whole = b"\n".join(_line(f"r{i}", text) for i, text in enumerate(texts)) + ends
    found = InputFile(CHAT, ["m"])
    lines, rest = [], whole
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        lines += found.feed(rest[:size])
        rest = rest[size:]
    lines += found.end()
    assert found.errors == [] and found.model == first_model(whole) == "m"
    assert [line.custom_id for line in lines] == [f"r{i}" for i in range(len(texts))]
    assert [json.loads(line.request)["messages"][0]["content"] for line in lines] == texts


@given(
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([_line("a"), _line("b"), b"{}"])), max_size=6)
)
def test_any_bytes_are_lines_or_errors(pieces):
    """Red if some input makes the reader break, or a line is taken from a file that has errors."""
    found = InputFile(CHAT, ["m"])
    whole = b"\n".join(pieces)
    lines = found.feed(whole) + found.end()
    first_model(whole)
    assert found.errors or len(lines) == sum(1 for piece in whole.split(b"\n") if piece.strip())
    for error in found.problems():
        assert error["code"] and error["message"]


def test_a_file_with_too_many_lines_or_errors():
    """Red if a batch over the limit is run, or its errors fill the memory."""
    found = InputFile(CHAT, ["m"])
    for i in range(MAX_LINES + 2):
        found.feed(_line(f"r{i}") + b"\n")
    found.end()
    assert [(error.code, error.line) for error in found.errors] == [("too_many_tasks", MAX_LINES + 1)]
    wrong = InputFile(CHAT, ["m"])
    wrong.feed(b"x\n" * 1000)
    wrong.end()
    assert len(wrong.errors) == MAX_ERRORS


class _Engine:
    """Takes `rows` requests; the others wait."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.places: Places | None = None

    def health(self) -> Health:
        taken = self.places.taken if self.places else 0
        return Health(True, True, "", running=min(taken, self.rows), waiting=max(0, taken - self.rows))


async def _fill(places: Places, lines: int) -> int:
    """Run lines that end in turn, oldest first, as many at once as there are places; the most at once."""
    most, running = 0, 0
    for _ in range(lines):
        while places.taken < places.limit:
            await places.take()
            running += 1
        most = max(most, running)
        places.give_back()
        running -= 1
    return most


async def test_lines_in_flight_fill_the_rows_and_hardly_more():
    """Red if thousands of lines are queued in the engine, or rows stay empty that lines could fill."""
    engine = _Engine(rows=80)
    engine.places = places = Places(256, engine.health)
    assert places.limit == LEAST
    most = await _fill(places, 1000)
    assert 80 <= most <= 80 * 1.2
    engine.rows = 40  # calls came
    await _fill(places, 200)
    assert LEAST <= places.limit <= 40 * 1.2
    small = Places(4, engine.health)
    assert await _fill(small, 20) <= 4


async def test_places_go_round():
    """Red if one batch keeps another from its share, or a place is lost with a feeder that ends."""
    engine = _Engine(rows=1000)
    engine.places = places = Places(1, engine.health)
    order: list[str] = []

    async def feed(name: str) -> None:
        for _ in range(5):
            place = await places.take()
            try:
                order.append(name)
                await asyncio.sleep(0)
            finally:
                place.give_back()
                place.give_back()

    gone = asyncio.create_task(feed("gone"))
    tasks = [asyncio.create_task(feed(name)) for name in "ab"]
    await asyncio.sleep(0)
    gone.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    mixed = [name for name in order if name != "gone"]
    assert mixed.count("a") == mixed.count("b") == 5
    assert mixed != sorted(mixed)
