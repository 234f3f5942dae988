"""The verbs as a user meets them: processes, exit codes, what stands on which stream."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.batch_input import batch_input

Penstock = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "--block-size", "24", "hi"], 2, "24 is not a power of two"),
        (["run", "--top-p", "2", "hi"], 2, "top_p: 2.0 is outside"),
        (["run"], 2, "prompt: empty"),
        (["run", "--raw", "--system", "x", "hi"], 2, "--system"),
        (["run", "--model", "smolm2", "hi"], 2, "did you mean smollm2?"),
        (["serve", "./nothing.gguf"], 2, "nothing.gguf"),
        (["serve", "--port", "70000"], 2, "port"),
        (["engine", "--address", "tcp://0.0.0.0:1", "./x.gguf"], 2, ""),
        (["pull", "nosuchmodel"], 2, "no such model"),
        (["models", "rm", "nosuchmodel"], 2, "no such model"),
        (["batch", "missing.jsonl", "out.jsonl"], 1, "missing.jsonl"),
        (["bench", "offline", "--trace", "x.txt"], 2, "neither .csv"),
        (["bench", "serve", "--url", "http://127.0.0.1:9"], 3, "is the server running?"),
    ],
)
def test_expected_failures_are_one_line(
    penstock: Penstock, arguments: list[str], code: int, words: str
) -> None:
    """Red if a mistake on the command line shows a traceback, writes to stdout or exits 0."""
    result = penstock(*arguments)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert "\x1b[" not in result.stderr


def test_a_damaged_model_is_refused_with_the_reason(penstock: Penstock, tmp_path: Path) -> None:
    """Red if a damaged file ends in a traceback, or in a usage error (code 2) although the call was right."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    result = penstock("run", "--model", path, "hi")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "broken.gguf" in result.stderr
    assert "Traceback" not in result.stderr


def test_every_verb_has_help(penstock: Penstock) -> None:
    """Red if a verb is unregistered or its help fails to render."""
    top = penstock("--help").stdout
    for verb in (
        *("serve", "engine", "pull", "list", "show", "ps", "stop", "cp", "rm", "run", "chat", "batch"),
        *("bench", "doctor", "models", "launch", "settings", "tune"),
    ):
        assert re.search(rf"\b{verb}\b", top)
        assert penstock(verb, "--help").returncode == 0
    assert "--token-budget" in penstock("serve", "--help").stdout


def test_run_streams_data_to_stdout_only(penstock: Penstock, tiny: Path) -> None:
    """Red if progress or notes mix with the answer, or piped text is not part of the prompt."""
    flags = ("--model", tiny, "--temperature", "0", "--max-tokens", "8", "--ignore-eos", "--stats")
    first = penstock("run", "Name a colour.", *flags)
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip()
    assert "8 generated" in first.stderr
    piped = penstock("run", *flags, input="Name a colour.\n")
    assert piped.stdout == first.stdout
    both = penstock("run", "Name a colour.", *flags, input="Or two.")
    prompt_tokens = re.compile(r"(\d+) prompt tokens")
    assert int(prompt_tokens.search(both.stderr)[1]) > int(prompt_tokens.search(first.stderr)[1])  # type: ignore[index]


def test_raw_run_continues_the_text_itself(penstock: Penstock, tiny: Path) -> None:
    """Red if --raw still goes through the chat template."""
    flags = ("--model", tiny, "--max-tokens", "2", "--temperature", "0", "--stats")
    raw = penstock("run", "abc", "--raw", *flags)
    assert raw.returncode == 0, raw.stderr
    assert "3 prompt tokens" in raw.stderr


def test_chat_remembers_and_forgets(penstock: Penstock, tiny: Path) -> None:
    """Red if a turn does not see the one before it, or /clear does not forget."""
    flags = ("chat", tiny, "--temperature", "0", "--max-tokens", "6", "--ignore-eos")
    result = penstock(*flags, input="one\none\n/clear\none\n/exit\nnever\n")
    assert result.returncode == 0, result.stderr
    answers = [line for line in result.stdout.replace("> ", "").splitlines() if line.strip()]
    single = penstock(*flags, input="one\n").stdout.replace("> ", "").splitlines()
    alone = [line for line in single if line.strip()]
    assert answers[: len(alone)] == alone
    assert answers[-len(alone) :] == alone
    assert len(answers) > 2 * len(alone) or answers[len(alone)] != alone[0]
    assert "forgotten" in result.stderr


def test_chat_in_a_terminal_ends_with_end_of_input(tiny: Path, environment: dict[str, str]) -> None:
    """Red if Ctrl-D leaves the process waiting, or ends it with an error."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", "chat", str(tiny), "--max-tokens", "3"],
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    os.close(follower)
    os.write(leader, b"hello\n\x04")
    _, errors = process.communicate(timeout=120)
    os.close(leader)
    assert process.returncode == 0, errors


def test_batch_answers_as_the_api_would(penstock: Penstock, tiny: Path, tmp_path: Path) -> None:
    """Red if a batch result stops being the body that the HTTP API would have sent."""
    source = batch_input(tmp_path / "in.jsonl", 6)
    with source.open("a") as file:
        file.write(json.dumps({"custom_id": "url", "url": "/v1/images", "body": {}}) + "\n")
        file.write(json.dumps({"custom_id": "bad", "url": "/v1/completions", "body": {"model": "m"}}) + "\n")
        body = {"model": "m", "prompt": "x" * 2000, "max_tokens": 4}
        file.write(json.dumps({"custom_id": "long", "url": "/v1/completions", "body": body}) + "\n")
    result = penstock("batch", source, "out.jsonl", "--model", tiny, "--concurrency", "3")
    assert result.returncode == 0, result.stderr
    assert "6 answered, 3 refused" in result.stderr
    found = {
        row["custom_id"]: row for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    }
    assert len(found) == 9
    for i in range(6):
        response = found[f"id-{i}"]["response"]
        assert response["status_code"] == 200
        assert response["body"]["object"] == ("text_completion" if i % 2 else "chat.completion")
        assert response["body"]["usage"]["completion_tokens"] == 4
    assert found["url"]["response"] is None
    assert found["url"]["error"]["code"] == "invalid_url"
    assert found["bad"]["response"]["status_code"] == 400
    assert "prompt" in found["bad"]["response"]["body"]["error"]["message"]
    assert found["long"]["response"]["status_code"] == 400
    again = penstock("batch", source, "out.jsonl", "--model", tiny)
    assert "all 9 were done before" in again.stderr


def test_batch_survives_kill_9(penstock: Penstock, tiny: Path, tmp_path: Path, environment: dict) -> None:
    """Red if a killed batch loses results, answers lines twice, or can't be resumed."""
    source, target = batch_input(tmp_path / "in.jsonl", 60, max_tokens=12), tmp_path / "out.jsonl"
    command = [
        sys.executable,
        "-m",
        "penstock",
        "batch",
        str(source),
        str(target),
        "-m",
        str(tiny),
        "--concurrency",
        "4",
    ]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not target.exists() or target.read_bytes().count(b"\n") < 5):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = target.read_bytes()
    assert done.count(b"\n") >= 5
    result = penstock("batch", source, target, "--model", tiny)
    assert result.returncode == 0, result.stderr
    ids = [json.loads(line)["custom_id"] for line in target.read_text().splitlines()]
    assert sorted(ids) == sorted(f"id-{i}" for i in range(60))
    assert target.read_bytes().startswith(done[: done.rfind(b"\n") + 1])


def test_doctor_tells_what_is_broken(penstock: Penstock, tiny: Path) -> None:
    """Red if doctor passes a machine that can't serve the model, or fails one that can."""
    good = penstock("doctor", tiny)
    assert good.returncode == 0, good.stdout
    for subject in ("processor", "instructions", "backend", "memory plan", "model store", "numpy"):
        assert subject in good.stdout
    assert "llama" in good.stdout
    fresh = penstock("doctor")
    assert fresh.returncode == 0
    assert "run `penstock pull smollm2`" in fresh.stdout
    big = penstock("doctor", tiny, "--kv-bytes", "900T")
    assert big.returncode == 1
    assert re.search(r"broken +model +.*kv_bytes", big.stdout)


def test_bench_offline_writes_a_report(penstock: Penstock, tiny: Path, tmp_path: Path) -> None:
    """Red if the report loses the machine, the workload or the counts that make its numbers readable."""
    flags = ("--num-requests", "3", "--input-len", "20", "--output-len", "5", "--kv-bytes", "64M")
    result = penstock("bench", "offline", tiny, *flags, "--ttft-ms", "60000", "--report", "r.json")
    assert result.returncode == 0, result.stderr
    assert "3 of 3 requests" in result.stdout
    assert "TTFT (ms)" in result.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["machine"]["cpus"] >= 1
    assert report["workload"]["input_len"] == 20
    assert report["result"]["input_tokens"] == 60
    assert report["result"]["output_tokens"] == 15
    assert report["result"]["goodput_rps"] == pytest.approx(report["result"]["requests_per_s"])


def test_models_list_and_rm(penstock: Penstock, environment: dict[str, str]) -> None:
    """Red if a model that lies in the store is not listed, or rm leaves it there."""
    store = Path(environment["XDG_DATA_HOME"]) / "penstock" / "models"
    store.mkdir(parents=True)
    (store / "mine.gguf").write_bytes(bytes(2048))
    assert re.search(r"mine +2\.0 KiB", penstock("models", "list").stdout)
    assert penstock("models", "rm", "mine").returncode == 0
    assert "mine" not in penstock("models", "list").stdout
    assert list(store.glob("mine*")) == []
