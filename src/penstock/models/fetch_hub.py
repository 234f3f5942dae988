"""Fetch a model of the Hugging Face hub into the store, through `huggingface_hub`.

The library does the transfer (retries, parallel files, HF_ENDPOINT, HF_TOKEN); what is fetched is
decided here from the repository's listing, pinned to one commit, and every file is checked against the
listing's size, and its SHA-256 where the hub gives one, before the entry is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from msgspec import Struct

from penstock.errors import InvalidRequest, ModelRefused, NotFound, PenstockError
from penstock.models import store
from penstock.models.store import Progress, Record

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

PREFIX = "hf:"
_REPOSITORY = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", re.ASCII)
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".txt", ".tiktoken")  # configuration, tokenizer, templates
_POLL_S = 0.2


class HubName(Struct, frozen=True):
    """`hf:org/name[@revision]` or `hf:org/name/path/file.gguf[@revision]`, taken apart."""

    repository: str
    revision: str | None
    file: str | None

    @property
    def text(self) -> str:
        file = f"/{self.file}" if self.file else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{file}{revision}"

    @property
    def key(self) -> str:
        """The entry's key in the store: different names have different keys."""
        quoted = quote(self.text.removeprefix(PREFIX), safe="/@")  # a literal "+" becomes %2B
        return "hf+" + quoted.replace("/", "+").replace("~", "%7E")


class _File(Struct, frozen=True):
    name: str
    nbytes: int
    sha256: str | None


def parse_hub_name(text: str) -> HubName:
    """InvalidRequest if `text` is not of one of the two forms."""
    body, _, revision = text.removeprefix(PREFIX).partition("@")
    parts = body.split("/", 2)
    repository, file = "/".join(parts[:2]), parts[2] if len(parts) > 2 else None
    plain = file is None or (file.endswith(".gguf") and ".." not in file.split("/"))
    if not _REPOSITORY.fullmatch(repository) or not plain:
        raise InvalidRequest(
            f"{text}: not a name of the hub; write hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME/FILE.gguf"
        )
    return HubName(repository, revision or None, file)


def fetch_hub_model(name: HubName, progress: Progress) -> Path:
    """Bring the model into the store and return its path; the caller holds the entry's lock.

    An entry that already is that commit is left alone; of an interrupted download the files that had
    arrived whole are kept (the library begins each file anew).
    Raises NotFound (no such repository, revision or file), ModelRefused (gated, no network, no room,
    nothing that can be served, wrong bytes).
    """
    with _hub_errors(name):
        commit, listing = _list_files(name)
    wanted = _choose(name, listing)
    record = _record(name, commit, wanted)
    if store.read_record(name.key) == record and store.is_whole(name.key, record):
        return store.entry_folder(name.key) / record.path
    work = store.work_folder(name.key, keep=commit[:16])
    for piece in work.rglob(
        "*.incomplete"
    ):  # of a process that was killed; the library never goes back to it
        piece.unlink()
    total = sum(file.nbytes for file in wanted)
    store.require_space(total - min(total, _bytes_below(work)), name.text)
    with _hub_errors(name), _watched(work, total, progress):
        _download(name, commit, wanted, work)
    _verify(name, wanted, work, progress)
    shutil.rmtree(work / ".cache", ignore_errors=True)  # the library's notes for resuming
    return store.install(name.key, work, record)


def _record(name: HubName, commit: str, wanted: list[_File]) -> Record:
    return Record(
        name=name.text,
        source=name.text,
        path=name.file or "",
        files={file.name: file.nbytes for file in wanted},
        revision=commit,
    )


def _list_files(name: HubName) -> tuple[str, list[_File]]:
    """(commit, every file of the repository at it)."""
    from huggingface_hub import HfApi

    info: ModelInfo = HfApi().model_info(name.repository, revision=name.revision, files_metadata=True)
    if info.sha is None:
        raise ModelRefused(
            f"{name.text}: the hub names no commit for it; try again or give a commit as revision"
        )
    files = []
    for sibling in info.siblings or []:
        sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
        files.append(_File(sibling.rfilename, sibling.size or 0, sha256))
    return info.sha, files


def _choose(name: HubName, listing: list[_File]) -> list[_File]:
    """The files of `listing` that make a model: one GGUF (all its parts), or safetensors and what is
    needed beside them."""
    ggufs = [file for file in listing if file.name.endswith(".gguf")]
    if name.file is not None:
        return _choose_gguf(name, ggufs)
    top = [file for file in listing if "/" not in file.name]
    weights = [file for file in top if file.name.endswith(".safetensors")]
    if any(file.name.startswith("model") for file in weights):  # leaves out copies in a vendor's own layout
        weights = [file for file in weights if file.name.startswith("model")]
    if not weights:
        if ggufs:
            names = ", ".join(file.name for file in ggufs[:6])
            raise ModelRefused(
                f"{name.text}: has no safetensors but {len(ggufs)} GGUF files ({names}); "
                f"pull one of them, as hf:{name.repository}/{ggufs[0].name}"
            )
        raise ModelRefused(
            f"{name.text}: its {len(listing)} files hold no safetensors and no GGUF; nothing to serve"
        )
    return weights + [file for file in top if file.name.endswith(_BESIDE_WEIGHTS)]


def _choose_gguf(name: HubName, ggufs: list[_File]) -> list[_File]:
    file = name.file or ""
    shard = _SHARD.search(file)
    if shard is None:
        chosen, count = [one for one in ggufs if one.name == file], 1
    else:
        stem, count = file[: shard.start()], int(shard[1])
        parts = {f"{stem}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)}
        chosen = [one for one in ggufs if one.name in parts]
    if not chosen or len(chosen) != count:
        names = ", ".join(one.name for one in ggufs[:6]) or "none"
        raise NotFound(f"{name.text}: {len(chosen)} of {count} files found; GGUF files there: {names}")
    return chosen


def _download(name: HubName, commit: str, wanted: list[_File], work: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(
        name.repository,
        revision=commit,
        local_dir=work,
        cache_dir=work / ".cache" / "hub",
        allow_patterns=[_literal(file.name) for file in wanted],
        tqdm_class=_silent_bar(),
    )


def _literal(name: str) -> str:
    """A pattern that matches exactly this name (the library matches with fnmatch)."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _silent_bar() -> Any:
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        """The library insists on a bar; ours is drawn from `progress`."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

    return Silent


@contextlib.contextmanager
def _watched(folder: Path, total: int, progress: Progress) -> Iterator[None]:
    """Report from a thread how many bytes lie below `folder` while the body runs."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_POLL_S):
            progress("download", min(total, _bytes_below(folder)), total)

    thread = threading.Thread(target=watch, name="penstock-pull-progress", daemon=True)
    progress("download", min(total, _bytes_below(folder)), total)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    progress("download", total, total)


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # renamed when complete
                total += os.stat(os.path.join(root, name)).st_size
    return total


def _verify(name: HubName, wanted: list[_File], work: Path, progress: Progress) -> None:
    total = sum(file.nbytes for file in wanted)
    done = 0
    for file in wanted:
        path = work / file.name
        size = path.stat().st_size if path.is_file() else 0
        digest = None
        if size == file.nbytes and file.sha256 is not None:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if size != file.nbytes or digest != file.sha256:
            shutil.rmtree(work, ignore_errors=True)  # going on from damaged bytes would fail again
            raise ModelRefused(
                f"{name.text}: {file.name} arrived with {size} bytes, SHA-256 {digest}; the hub lists "
                f"{file.nbytes}, {file.sha256}; pull it again"
            )
        done += size
        progress("verify", done, total)


@contextlib.contextmanager
def _hub_errors(name: HubName) -> Iterator[None]:
    """Turn what the library raises into what happened and what to do."""
    from huggingface_hub import errors as hub

    # the bases: errors of whatever HTTP client this version of the library uses
    client = cast(tuple[type[Exception], ...], hub.HfHubHTTPError.__bases__)
    failures: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError, *client)
    try:
        yield
    except PenstockError:
        raise
    except hub.GatedRepoError:
        raise ModelRefused(
            f"{name.text}: access must be granted first; ask for it on the model's page and set HF_TOKEN"
        ) from None
    except hub.RevisionNotFoundError:
        raise NotFound(f"{name.text}: no revision {name.revision!r} in {name.repository}") from None
    except hub.RepositoryNotFoundError:
        raise NotFound(
            f"{name.text}: no such repository on the hub, or a private one; check the name, or set HF_TOKEN"
        ) from None
    except failures as error:
        raise ModelRefused(
            f"{name.text}: could not be fetched ({type(error).__name__}: {_first(error)}); check the network "
            f"and HF_ENDPOINT and pull again: files that arrived whole are kept"
        ) from error


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no details"
