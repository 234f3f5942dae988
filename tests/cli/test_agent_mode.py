"""Every verb that reads, as an agent runs it: rows that an independent parser reads, errors as objects."""

from __future__ import annotations

import csv
import http.server
import io
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.batch_input import batch_input

Penstock = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def agent(penstock: Penstock, agent_environment: dict[str, str]) -> Penstock:
    """`penstock` in an agent's shell; no byte of an escape sequence may come out, whatever it does."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        result = penstock(*arguments, env=agent_environment, **options)
        assert "\x1b" not in result.stdout + result.stderr
        return result

    return run


def table(result: subprocess.CompletedProcess[str], code: int = 0) -> list[dict[str, str]]:
    assert result.returncode == code, result.stderr
    reader = csv.DictReader(
        io.StringIO(result.stdout, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE, strict=True
    )
    rows = list(reader)
    for row in rows:
        assert None not in row, row  # more cells than the header
        assert None not in row.values(), row  # fewer
    return rows


def error(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The object on the last line of stderr; its exit code is the process's."""
    assert result.stdout == ""
    body = json.loads(result.stderr.splitlines()[-1])["error"]
    assert body["exit_code"] == result.returncode
    return body


@pytest.fixture
def stored(environment: dict[str, str]) -> Path:
    """A store with one file put there by hand."""
    folder = Path(environment["XDG_DATA_HOME"]) / "penstock" / "models"
    folder.mkdir(parents=True)
    (folder / "mine.gguf").write_bytes(bytes(2048))
    return folder


def test_list(agent: Penstock, stored: Path) -> None:
    """Red if the rows of the store lose a column that scripts read."""
    (row,) = table(agent("list"))
    assert row["name"] == "mine"
    assert row["size_bytes"] == "2048"
    assert row["path"] == str(stored / "mine.gguf")
    assert row["modified_at"].endswith("Z")
    assert table(agent("models", "list")) == [row]


def test_an_empty_list_is_a_header_and_a_hint(agent: Penstock) -> None:
    """Red if nothing found is no table, or the hint gets into the rows."""
    result = agent("list")
    assert table(result) == []
    assert result.stdout.startswith("name\t")
    assert "penstock pull smollm2" in result.stderr


def test_show(agent: Penstock, tiny: Path) -> None:
    """Red if what a model is can't be read from one row."""
    (row,) = table(agent("show", tiny))
    assert row["architecture"] == "llama"
    assert row["layers"] == "3"
    assert int(row["parameters"]) > 0
    assert row["tools"] in ("template", "told", "no")
    assert row["path"] == str(tiny)


def test_cp_and_rm(agent: Penstock, stored: Path) -> None:
    """Red if a copy takes its own bytes on disk, or goes with the model that it was made from."""
    (made,) = table(agent("cp", "mine", "other"))
    assert made["change"] == "copied"
    assert Path(made["path"]).samefile(stored / "mine.gguf")
    (gone,) = table(agent("rm", "mine"))
    assert gone["change"] == "removed"
    assert [row["name"] for row in table(agent("list"))] == ["other"]
    assert error(agent("cp", "mine", "x"))["kind"] == "not_found_error"
    assert "exists" in error(agent("cp", "other", "other"))["message"]
    assert error(agent("cp", "other", "a/b"))["exit_code"] == 2


def test_cp_of_a_pulled_model_has_a_record_of_its_own(agent: Penstock, stored: Path) -> None:
    """Red if the copy of an entry with a record shows under the name of the first."""
    folder = stored / "entry"
    folder.mkdir()
    (folder / "m.gguf").write_bytes(b"abc")
    record = {"name": "entry", "source": "somewhere", "path": "m.gguf", "files": {"m.gguf": 3}}
    (folder / "penstock.json").write_text(json.dumps(record))
    table(agent("cp", "entry", "second"))
    found = {row["name"]: row for row in table(agent("list"))}
    assert found["second"]["source"] == "somewhere"
    assert Path(found["second"]["path"]).samefile(folder / "m.gguf")
    assert found["entry"]["path"] == str(folder / "m.gguf")


def test_ps(agent: Penstock, scripted_url: str) -> None:
    """Red if a server's models, or ids with slashes, can't be listed."""
    rows = table(agent("ps", "--url", scripted_url))
    assert [row["model"] for row in rows] == ["scripted", "org/name"]
    assert rows[0]["state"] == "ready"
    assert rows[0]["max_context"] == "512"
    assert table(agent("ps", "--url", f"{scripted_url}/v1")) == rows


def test_nobody_answers(agent: Penstock) -> None:
    """Red if a missing server is told as a mistake of the command line."""
    body = error(agent("ps", "--url", "http://127.0.0.1:9"))
    assert body["kind"] == "service_unavailable_error"
    assert body["exit_code"] == 3
    assert "penstock serve" in body["message"]


class Unloader(http.server.BaseHTTPRequestHandler):
    """A server of two models, of which one API knows how to unload them."""

    posted: list[Any] = []
    knows = True

    def do_GET(self) -> None:
        models = [{"id": "a/b"}, {"id": "c"}]
        self._answer(200 if self.headers["authorization"] == "Bearer k" else 401, {"data": models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.posted.append((self.path, body))
        self._answer(*((200, {"done": True}) if self.knows else (404, {"error": {"message": "no route"}})))

    def _answer(self, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def unloader() -> Iterator[str]:
    Unloader.posted, Unloader.knows = [], True
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unloader)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_stop_asks_the_server_to_unload(agent: Penstock, unloader: str) -> None:
    """Red if stop unloads another model, without a key, or says so although the server can't."""
    where = ("--url", unloader, "--api-key", "k")
    assert table(agent("stop", "a/b", *where)) == [{"model": "a/b", "url": unloader}]
    assert Unloader.posted == [("/api/generate", {"model": "a/b", "keep_alive": 0, "stream": False})]
    assert "served are a/b, c" in error(agent("stop", "d", *where))["message"]
    denied = error(agent("stop", "c", "--url", unloader))
    assert denied["exit_code"] == 4
    assert denied["param"] == "--api-key"
    Unloader.knows = False
    assert "can't unload" in error(agent("stop", "c", *where))["message"]


def test_settings_and_doctor(agent: Penstock, tiny: Path) -> None:
    """Red if settings or findings are no rows, or a broken finding exits 0."""
    rows = {row["flag"]: row for row in table(agent("settings", "server"))}
    assert rows["--port"]["default"] == "8000"
    assert {"--token-budget", "--kv-bytes"} <= {row["flag"] for row in table(agent("settings"))}
    found = table(agent("doctor", tiny, "--kv-bytes", "900T"), code=1)
    assert {row["verdict"] for row in found} <= {"ok", "note", "broken"}
    assert [row["subject"] for row in found if row["verdict"] == "broken"] == ["model"]


def test_bench_and_batch(agent: Penstock, tiny: Path, tmp_path: Path) -> None:
    """Red if results of measurements and batches are prose where a program reads."""
    flags = ("--num-requests", "2", "--input-len", "8", "--output-len", "4", "--kv-bytes", "64M")
    found = {row["measure"]: row["value"] for row in table(agent("bench", "offline", tiny, *flags))}
    assert found["requests"] == "2"
    assert found["output_tokens"] == "8"
    assert float(found["ttft.p50_s"]) > 0
    source = batch_input(tmp_path / "in.jsonl", 3)
    (row,) = table(agent("batch", source, "out.jsonl", "--model", tiny))
    assert (row["answered"], row["refused"], row["done_before"]) == ("3", "0", "0")
    (again,) = table(agent("batch", source, "out.jsonl", "--model", tiny))
    assert (again["answered"], again["done_before"]) == ("0", "3")


def test_run_gives_text_or_an_object(agent: Penstock, tiny: Path) -> None:
    """Red if an answer's text is escaped or framed for agents, or not for programs."""
    flags = ("--model", tiny, "--temperature", "0", "--max-tokens", "8", "--ignore-eos")
    text = agent("run", "Name a colour.", *flags).stdout
    whole = json.loads(agent("run", "Name a colour.", *flags, "--output", "json").stdout)
    assert whole["text"] == text.removesuffix("\n")
    assert whole["completion_tokens"] == 8


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (["nosuchverb"], "usage_error", 2),
        (["list", "--nosuchflag"], "usage_error", 2),
        (["serve", "--port", "seven"], "usage_error", 2),
        (["show"], "usage_error", 2),
        (["show", "smolm2"], "not_found_error", 2),
        (["serve", "--port", "70000"], "config_error", 2),
        (["run"], "invalid_request_error", 2),
        (["chat"], "invalid_request_error", 2),
        (["batch", "missing.jsonl", "out.jsonl"], "failed", 1),
    ],
)
def test_errors_are_objects(agent: Penstock, arguments: list[str], kind: str, code: int) -> None:
    """Red if an error of any layer, the command line's parser included, is prose for an agent."""
    body = error(agent(*arguments))
    assert (body["kind"], body["exit_code"]) == (kind, code)
    assert body["message"]


def test_the_flag_wins_over_the_environment(agent: Penstock, penstock: Penstock, stored: Path) -> None:
    """Red if --output does not decide, before or behind the verb, on every verb."""
    assert json.loads(agent("list", "--output", "json").stdout)[0]["name"] == "mine"
    assert json.loads(agent("--output", "json", "list").stdout)[0]["name"] == "mine"
    assert "2.0 KiB" in agent("list", "--output=human").stdout
    assert table(penstock("list", "--output", "agent"))[0]["name"] == "mine"
    plain = penstock("show", "nosuch", "--output", "json")
    assert error(plain)["kind"] == "not_found_error"
    assert error(agent("list", "--output", "yaml"))["kind"] == "usage_error"


def verbs() -> list[tuple[str, ...]]:
    """Every verb of the command line, those of groups with the group's name."""
    from penstock.cli.main import app

    def of(group: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for command in group.registered_commands:
            yield (*prefix, command.name)
        for inner in group.registered_groups:
            yield from of(inner.typer_instance, (*prefix, inner.name))

    return list(of(app))


# Verbs that change, run or measure something; their results have tests of their own.
NOT_READS = {
    *(("serve",), ("engine",), ("run",), ("chat",), ("batch",), ("pull",), ("cp",), ("rm",), ("stop",)),
    *(("quantize",), ("models", "cp"), ("models", "rm"), ("tune", "self-draft")),
    ("batches", "show"),  # reads what its own test makes
    ("batches", "cancel"),
    *(("bench", "quality"), ("bench", "offline"), ("bench", "serve")),
}


def test_every_verb_that_reads_gives_rows(
    agent: Penstock,
    agent_environment: dict[str, str],
    stored: Path,
    tiny: Path,
    scripted_url: str,
    tmp_path: Path,
) -> None:
    """Red if a new verb is in neither list, or one that reads answers an agent with anything but rows."""
    tool = tmp_path / "bin" / "llm"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho llm, version 0.27\n")
    tool.chmod(0o755)
    agent_environment["PATH"] = f"{tool.parent}:{agent_environment['PATH']}"
    at_server = ("--url", scripted_url)
    reads: dict[tuple[str, ...], tuple[object, ...]] = {
        ("list",): (),
        ("models", "list"): (),
        ("show",): (tiny,),
        ("ps",): at_server,
        ("settings",): (),
        ("doctor",): (tiny,),
        ("launch",): ("llm", "--dry-run", *at_server),
    }
    may_be_empty: dict[tuple[str, ...], tuple[object, ...]] = {("batches", "list"): at_server}
    assert {*reads, *may_be_empty, *NOT_READS} == {*verbs()}
    for verb, arguments in reads.items():
        assert table(agent(*verb, *arguments)), verb
    for verb, arguments in may_be_empty.items():
        result = agent(*verb, *arguments)
        table(result)
        assert "\t" in result.stdout.partition("\n")[0], verb


def test_every_verb_takes_output() -> None:
    """Red if a new verb is registered past the place that gives it --output."""
    from typer.testing import CliRunner

    from penstock.cli.main import app

    for verb in verbs():
        result = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "200"})
        assert "--output" in result.output, verb


def test_help_is_plain_text_for_agents(agent: Penstock) -> None:
    """Red if help comes in boxes, which cost an agent more tokens than the text in them."""
    for arguments in (["--help"], ["serve", "--help"], []):
        result = agent(*arguments)
        assert "╭" not in result.stdout + result.stderr


def test_a_server_says_that_it_is_ready_in_a_row(tiny: Path, agent_environment: dict[str, str]) -> None:
    """Red if an agent that starts a server has to read its address out of a sentence."""
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", "serve", str(tiny), "--port", "0", "--kv-bytes", "64M"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=agent_environment,
    )
    assert process.stdout
    header, row = process.stdout.readline(), process.stdout.readline()
    process.terminate()
    assert process.wait(60) == 0
    process.stdout.close()
    found = dict(zip(header.rstrip("\n").split("\t"), row.rstrip("\n").split("\t"), strict=True))
    assert found["model"] == tiny.name
    assert found["url"].startswith("http://127.0.0.1:")
    assert float(found["start_s"]) > 0


def test_batches(agent: Penstock, scripted_url: str) -> None:
    """Red if a batch can't be listed, shown or cancelled, or an id that is none ends in a traceback."""
    params = {"model": "scripted", "max_tokens": 5, "messages": [{"role": "user", "content": "/hang"}]}
    body = json.dumps({"requests": [{"custom_id": "a", "params": params}]}).encode()
    asked = urllib.request.Request(
        f"{scripted_url}/v1/messages/batches", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        name = json.load(answer)["id"]
    (row,) = [row for row in table(agent("batches", "list", "--url", scripted_url)) if row["id"] == name]
    assert (row["status"], row["total"], row["succeeded"], row["results"]) == ("in_progress", "1", "0", "")
    assert table(agent("batches", "show", name, "--url", scripted_url)) == [row]
    (cancelled,) = table(agent("batches", "cancel", name, "--url", scripted_url))
    assert cancelled["status"] == "canceling"
    assert error(agent("batches", "show", "batch_none", "--url", scripted_url))["kind"] == "not_found_error"
