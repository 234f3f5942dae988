"""Pulling from the hub: `huggingface_hub` in a process of its own, against a local server of its protocol."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pytest
from safetensors.numpy import save

import penstock

COMMIT = {"v1": "1" * 40, "v2": "2" * 40}
TOKEN = "hf_test_token"
BIG = np.random.default_rng(0).bytes(24 << 20)

# One pull in a fresh process: the library reads HF_ENDPOINT when it is imported.
PULL = """
import json, sys
from penstock.errors import PenstockError
from penstock.models import sources
seen = {}
try:
    path = sources.pull(sys.argv[1], lambda phase, done, total: seen.__setitem__(phase, (done, total)))
    print(json.dumps({"path": str(path), "seen": seen}))
except PenstockError as error:
    print(json.dumps({"error": type(error).__name__, "message": error.message}))
"""


def model_files(value: float) -> dict[str, bytes]:
    weights = save({"w": np.full((4, 8), value, np.float32)})
    return {
        "config.json": json.dumps({"model_type": "llama", "value": value}).encode(),
        "tokenizer.json": b"{}",
        "tokenizer.model": b"sp",
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors": weights,
        "consolidated.safetensors": weights,
        "pytorch_model.bin": b"pickle",
        "original/model.safetensors": weights,
        "onnx/config.json": b"{}",
        "README.md": b"# a model",
    }


class Hub:
    """The hub's protocol as far as a download needs it; weights are redirected to a second server.

    repositories: name -> commit -> files; branches: name -> revision -> commit.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.gated: set[str] = set()
        self.lies: dict[str, bytes] = {}  # file: what the CDN sends instead
        self.sizes: dict[str, int] = {}  # file: what the listing claims
        self.hold_after: int | None = None  # bytes after which the CDN stops until `release`
        self.half_sent, self.release = threading.Event(), threading.Event()
        self.downloads: list[str] = []
        self.authorizations: dict[str, set[str | None]] = {"hub": set(), "cdn": set()}
        self.cdn = self.serve(self.get_cdn)
        self.api = self.serve(self.get_hub)
        self.url = f"http://127.0.0.1:{self.api.server_port}"

    def add(self, name: str, commit: str, files: dict[str, bytes], branch: str = "main") -> None:
        self.repositories.setdefault(name, {})[commit] = files
        self.branches.setdefault(name, {})[branch] = commit

    def serve(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> ThreadingHTTPServer:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                try:
                    answer(self)
                except OSError:
                    self.close_connection = True  # the client went away, as some tests make it do

            do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def close(self) -> None:
        self.release.set()
        for server in (self.api, self.cdn):
            server.shutdown()
            server.server_close()

    def reply(
        self, request: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str | int
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), str(value))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    def refuse(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        self.reply(request, b"{}", status, X_Error_Code=code, X_Error_Message=code)

    def get_hub(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(request.path.partition("?")[0])
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = info or file
        if match is None:
            return self.refuse(request, 404, "EntryNotFound")
        name = match[1]
        self.authorizations["hub"].add(request.headers.get("Authorization"))
        if name in self.gated:
            return self.refuse(request, 403, "GatedRepo")
        if name not in self.repositories:
            return self.refuse(request, 404, "RepoNotFound")
        revision = (info[3] if info else match[2]) or "main"
        commit = self.branches[name].get(revision, revision)
        files = self.repositories[name].get(commit)
        if files is None:
            return self.refuse(request, 404, "RevisionNotFound")
        if info is None:
            return self.get_file(request, name, commit, files, match[3])
        entries = [self.describe(path, content) for path, content in files.items()]
        body: Any = entries
        if info[2] != "tree":
            siblings = [{**entry, "rfilename": entry["path"], "blobId": entry["oid"]} for entry in entries]
            body = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
        return self.reply(request, json.dumps(body).encode(), Content_Type="application/json")

    def describe(self, path: str, content: bytes) -> dict[str, Any]:
        size = self.sizes.get(path, len(content))
        entry = {"type": "file", "path": path, "size": size, "oid": hashlib.sha1(content).hexdigest()}
        if path.endswith((".safetensors", ".gguf")):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 130}
        return entry

    def get_file(
        self, request: BaseHTTPRequestHandler, name: str, commit: str, files: dict[str, bytes], path: str
    ) -> None:
        if path not in files:
            return self.refuse(request, 404, "EntryNotFound")
        entry = self.describe(path, files[path])
        if "lfs" not in entry:
            if request.command == "GET":
                self.downloads.append(path)
            return self.reply(request, files[path], X_Repo_Commit=commit, ETag=f'"{entry["oid"]}"')
        return self.reply(
            request,
            b"",
            302,
            Location=f"http://127.0.0.1:{self.cdn.server_port}/{name}/{commit}/{quote(path)}",
            X_Repo_Commit=commit,
            X_Linked_Etag=f'"{entry["lfs"]["sha256"]}"',
            X_Linked_Size=entry["size"],
        )

    def get_cdn(self, request: BaseHTTPRequestHandler) -> None:
        self.authorizations["cdn"].add(request.headers.get("Authorization"))
        organisation, model, commit, path = unquote(request.path).lstrip("/").split("/", 3)
        self.downloads.append(path)
        content = self.lies.get(path, self.repositories[f"{organisation}/{model}"][commit][path])
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if self.hold_after is not None and len(content) > self.hold_after:
            request.wfile.write(content[: self.hold_after])
            self.half_sent.set()
            self.release.wait(60)
            request.close_connection = True
            return
        request.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """What the pulling process sees: the local hub, a token, an empty store."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return {
        **kept,
        "PYTHONPATH": str(Path(penstock.__file__).parents[1]),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "hf"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }


def pull(name: str, environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PULL, name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def store_of(tmp_path: Path) -> Path:
    return tmp_path / "data" / "penstock" / "models"


def test_safetensors_model(
    hub: Hub, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if needed files are left out, useless gigabytes are fetched, or the token leaves the hub."""
    from penstock.models import sources
    from penstock.models.weights.source import open_source

    hub.add("org/name", COMMIT["v1"], model_files(1.0))
    answer = pull("hf:org/name", environment)
    path = Path(answer["path"])
    wanted = {"config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja", "model.safetensors"}
    assert names_below(path) == wanted | {"penstock.json"}
    assert set(hub.downloads) == wanted
    assert hub.authorizations["hub"] == {f"Bearer {TOKEN}"}
    assert hub.authorizations["cdn"] == {None}
    for phase in ("download", "verify"):
        assert answer["seen"][phase][0] == answer["seen"][phase][1] > 0
    assert list((store_of(tmp_path) / ".partial").iterdir()) == []

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert sources.resolve("hf:org/name") == path
    assert [model.name for model in sources.list_models()] == ["hf:org/name"]
    assert open_source(path).float32("w")[0, 0] == 1.0
    sources.remove("hf:org/name")
    assert not path.exists()


def test_second_pull_fetches_only_a_new_commit(hub: Hub, environment: dict[str, str]) -> None:
    """Red if an unchanged model is fetched again, or a changed one is mixed with its predecessor."""
    hub.add("org/name", COMMIT["v1"], model_files(1.0))
    path = Path(pull("hf:org/name", environment)["path"])
    hub.downloads.clear()
    assert pull("hf:org/name", environment)["path"] == str(path)
    assert hub.downloads == []
    newer = model_files(2.0)
    del newer["tokenizer.model"]
    hub.add("org/name", COMMIT["v2"], newer)
    assert pull("hf:org/name", environment)["path"] == str(path)
    assert json.loads((path / "config.json").read_bytes())["value"] == 2.0
    assert not (path / "tokenizer.model").exists()
    # a revision has a place of its own
    pinned = Path(pull(f"hf:org/name@{COMMIT['v1']}", environment)["path"])
    assert pinned != path
    assert json.loads((pinned / "config.json").read_bytes())["value"] == 1.0


def test_one_gguf_and_all_parts_of_a_split_one(hub: Hub, environment: dict[str, str]) -> None:
    """Red if a GGUF repository is fetched whole, or a split file in part."""
    parts = {f"big/q8-{i:05}-of-00002.gguf": b"GGUF" + bytes([i]) for i in (1, 2)}
    hub.add(
        "org/quants", COMMIT["v1"], {"q4.gguf": b"GGUF4", "q[5].gguf": b"GGUF5", "q5.gguf": b"no", **parts}
    )
    path = Path(pull("hf:org/quants/q4.gguf", environment)["path"])
    assert path.read_bytes() == b"GGUF4"
    assert names_below(path.parent) == {"q4.gguf", "penstock.json"}
    assert Path(pull("hf:org/quants/q[5].gguf", environment)["path"]).read_bytes() == b"GGUF5"
    split = Path(pull("hf:org/quants/big/q8-00002-of-00002.gguf", environment)["path"])
    assert {file.name for file in split.parent.iterdir()} == {Path(name).name for name in parts}
    assert "q5.gguf" not in hub.downloads


def test_refusals_say_what_happened(hub: Hub, environment: dict[str, str], tmp_path: Path) -> None:
    """Red if a wrong name, a gated model, a full disk or a dead network shows as a library's traceback."""
    hub.add("org/name", COMMIT["v1"], model_files(1.0))
    hub.add("org/quants", COMMIT["v1"], {"q4.gguf": b"GGUF4"})
    hub.add("org/pickle", COMMIT["v1"], {"pytorch_model.bin": b"p"})
    hub.add("org/huge", COMMIT["v1"], {"huge.gguf": b"GGUF"})
    hub.sizes["huge.gguf"] = 2**60
    hub.gated.add("org/gated")
    for name, error, telling in (
        ("hf:org/nothing", "NotFound", "no such repository"),
        ("hf:org/name@v9", "NotFound", "no revision 'v9'"),
        ("hf:org/quants/q9.gguf", "NotFound", "q4.gguf"),
        ("hf:org/quants", "ModelRefused", "hf:org/quants/q4.gguf"),
        ("hf:org/pickle", "ModelRefused", "nothing to serve"),
        ("hf:org/gated", "ModelRefused", "HF_TOKEN"),
        ("hf:org/huge/huge.gguf", "ModelRefused", str(2**60)),
    ):
        answer = pull(name, environment)
        assert answer.get("error") == error, answer
        assert telling in answer["message"]
    hub.close()
    answer = pull("hf:org/name", environment)
    assert answer["error"] == "ModelRefused"
    assert "check the network" in answer["message"]
    assert hub.downloads == []
    assert names_below(store_of(tmp_path)) <= {
        f".locks/{path.name}" for path in store_of(tmp_path).rglob(".locks/*")
    }


def test_bytes_that_are_not_the_listed_ones(hub: Hub, environment: dict[str, str], tmp_path: Path) -> None:
    """Red if a corrupted transfer of the right length is installed, or spoils the next attempt."""
    files = model_files(1.0)
    hub.add("org/name", COMMIT["v1"], files)
    hub.lies["model.safetensors"] = files["model.safetensors"][:-1] + b"\xff"
    answer = pull("hf:org/name", environment)
    assert answer["error"] == "ModelRefused"
    assert hashlib.sha256(files["model.safetensors"]).hexdigest() in answer["message"]
    assert not list(store_of(tmp_path).glob("hf*"))
    hub.lies.clear()
    path = Path(pull("hf:org/name", environment)["path"])
    assert (path / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_killed_download_keeps_whole_files_only(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    """Red if a killed pull leaves a model that looks whole, pieces for ever, or loses what had arrived."""
    parts = {"big-00001-of-00002.gguf": b"GGUF small", "big-00002-of-00002.gguf": BIG}
    hub.add("org/big", COMMIT["v1"], parts)
    hub.hold_after = 22 << 20  # the library writes in pieces of 10 MiB
    name = "hf:org/big/big-00001-of-00002.gguf"
    process = subprocess.Popen([sys.executable, "-c", PULL, name], env=environment)
    assert hub.half_sent.wait(60)
    partial = store_of(tmp_path) / ".partial"
    while not any(path.stat().st_size >= 10 << 20 for path in partial.rglob("*.incomplete")) or not list(
        partial.glob("*/big-00001-of-00002.gguf")
    ):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.hold_after = None
    hub.release.set()
    assert not list(store_of(tmp_path).glob("hf*"))
    hub.downloads.clear()
    path = Path(pull(name, environment)["path"])
    assert names_below(path.parent) == {*parts, "penstock.json"}
    assert {part: (path.parent / part).read_bytes() for part in parts} == parts
    assert hub.downloads == ["big-00002-of-00002.gguf"]
    assert list(partial.iterdir()) == []
