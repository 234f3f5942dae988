"""What each output mode writes: the renderer alone, over any record."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from penstock import errors
from penstock.cli import agents, output


class Row(Struct, frozen=True):
    name: str
    size_bytes: int
    share: float | None
    made_at: datetime
    on: bool
    tags: tuple[str, ...] = ()


NOON = datetime(2026, 11, 21, 12, 0, tzinfo=timezone(timedelta(hours=1)))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    output.choose(None)


def shown(capsys: pytest.CaptureFixture[str], mode: output.Mode, *rows: Row) -> str:
    output.choose(mode)
    output.rows(rows, Row)
    return capsys.readouterr().out


def unescape(cell: str) -> str:
    """The inverse of the documented escapes, written down independently of them."""

    def one(match: re.Match[str]) -> str:
        text = match[0]
        named = {"\\t": "\t", "\\n": "\n", "\\r": "\r", "\\\\": "\\"}
        return named[text] if text in named else chr(int(text[2:], 16))

    return re.sub(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)", one, cell)


@given(st.lists(st.text(), max_size=4))
def test_any_text_survives_a_row(names: list[str]) -> None:
    """Red if a tab, a line break of any kind, a quote or an escape sequence breaks a row, or text is cut."""
    rows = [Row(name, 1, None, NOON, True) for name in names]
    text = output._tsv(rows, Row)
    assert "\x1b" not in text
    assert len(text.splitlines()) == len(rows) + 1
    found = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert found[0] == ["name", "size_bytes", "share", "made_at", "on", "tags"]
    assert [unescape(row[0]) for row in found[1:]] == names
    assert {len(row) for row in found} == {6}


def test_agents_read_plain_values(capsys: pytest.CaptureFixture[str]) -> None:
    """Red if agents get units, local times, or words where numbers were."""
    text = shown(capsys, "agent", Row("a", 98362432, None, NOON, True, ("x", "y")))
    assert text.splitlines()[1] == "a\t98362432\t\t2026-11-21T11:00:00Z\ttrue\tx,y"


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    """Red if `--output json` stops being one document with the fields of the records."""
    rows = (Row("a", 1, 0.5, NOON.astimezone(UTC), False), Row("b", 2, None, NOON.astimezone(UTC), True))
    found = json.loads(shown(capsys, "json", *rows))
    assert [row["name"] for row in found] == ["a", "b"]
    assert found[0] == {
        "name": "a",
        "size_bytes": 1,
        "share": 0.5,
        "made_at": "2026-11-21T11:00:00Z",
        "on": False,
        "tags": [],
    }


def test_people_read_units(capsys: pytest.CaptureFixture[str]) -> None:
    """Red if people get bare byte counts, or a long value is cut where there is no terminal."""
    text = shown(capsys, "human", Row("n" * 500, 98362432, None, NOON, True))
    assert "93.8 MiB" in text
    assert "n" * 500 in text
    assert "—" in text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.PenstockError("x"), 1),
        (errors.ModelRefused("x"), 1),
        (errors.InvalidRequest("x"), 2),
        (errors.ContextOverflow("x"), 2),
        (errors.ConfigError("x"), 2),
        (errors.NotFound("x"), 2),
        (errors.EngineUnavailable("x"), 3),
        (errors.Overloaded("x", retry_after_s=2.0), 3),
        (errors.DeadlineExceeded("x"), 3),
        (errors.Unauthorized("x"), 4),
        (errors.Forbidden("x"), 4),
    ],
)
def test_exit_codes_are_those_of_the_page(
    error: errors.PenstockError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red if an error's exit code changes, or differs from the one in its own object."""
    output.choose("agent")
    assert output.fail(error) == code
    body = json.loads(capsys.readouterr().err)["error"]
    assert (body["kind"], body["message"], body["exit_code"]) == (error.kind, "x", code)
    assert body.get("retry_after_s") == error.retry_after_s


def test_a_question_without_a_person_names_the_flag() -> None:
    """Red if a prompt waits for an agent, or does not say which flag answers it."""
    output.choose("agent")
    with pytest.raises(errors.InvalidRequest, match="--yes"):
        output.confirm("change it", "--yes")


@pytest.mark.parametrize(
    ("environment", "terminal", "agent"),
    [
        ({}, False, None),
        ({"AI_AGENT": "mine"}, True, "agent"),
        ({"CLAUDECODE": "1"}, True, "claude"),
        ({"CLAUDECODE": ""}, False, None),
        ({"CODEX_SANDBOX": "seatbelt"}, False, "codex"),
        ({"OPENCODE": "1"}, False, "opencode"),
        ({"OPENCODE": "0"}, False, None),
        ({"CURSOR_EXTENSION_HOST_ROLE": "agent-exec"}, False, "cursor"),
        ({"CURSOR_EXTENSION_HOST_ROLE": "user"}, False, None),
        ({"REPL_ID": "x"}, True, None),
        ({"REPL_ID": "x"}, False, "replit"),
        ({"COPILOT_GITHUB_TOKEN": "x"}, True, None),
        ({"COPILOT_GITHUB_TOKEN": "x"}, False, "copilot"),
    ],
)
def test_agents_are_told_by_their_environment(
    environment: dict[str, str], terminal: bool, agent: str | None
) -> None:
    """Red if an agent is no longer recognized, or a person's own terminal counts as one."""
    assert agents.detect(environment, terminal=terminal) == agent


def test_the_page_has_every_sign_and_verb() -> None:
    """Red if an agent is recognized, or a verb exists, that docs/cli.md does not mention."""
    from penstock.cli.main import app

    page = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()
    verbs = [command.name for command in app.registered_commands]
    verbs += [group.name for group in app.registered_groups]
    assert [name for name in verbs if f"`{name}" not in page] == []
    assert [sign.variable for sign in agents.SIGNS if sign.variable not in page] == []
