"""LocalLibrary: what is said about models, and what may happen to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import InvalidRequest, ModelRefused, NotFound
from penstock.gateway.local_library import LocalLibrary, capabilities_of
from penstock.models import store
from penstock.models.fetch_local import fetch_local_model
from support.tiny_models import make_tiny


class _Templates:
    """The part of a Tokenizer that capabilities come from."""

    def __init__(self, **templates: str) -> None:
        self.chat_template = templates.get("default")
        self.chat_templates = templates
        self.infill_ids: dict[str, int] = {}

    def token_id(self, text: str) -> int | None:
        return None


@pytest.mark.parametrize(
    ("templates", "capabilities"),
    [
        ({}, ("completion",)),
        ({"default": "{{ messages[0].content }}"}, ("completion",)),
        ({"default": "{% if tools %}{{ tools }}{% endif %}"}, ("completion", "tools")),
        ({"default": "plain", "tool_use": "{{ tools }}"}, ("completion", "tools")),
        ({"default": "{{ '<think>' }}{{ content }}{{ '</think>' }}"}, ("completion", "thinking")),
        ({"default": "{{ tools }}<tool_call><think></think>"}, ("completion", "tools", "thinking")),
    ],
)
def test_capabilities_are_those_of_the_template(templates, capabilities):
    """Red if a client is told of tools or thinking that the model was not taught, or not of those it was."""
    assert capabilities_of(_Templates(**templates)) == capabilities


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return make_tiny("llama", tmp_path / "tiny-llama")


def quiet(phase: str, done: int, total: int | None) -> None:
    """No progress wanted."""


def test_copies_share_files_and_what_comes_from_outside_does_not(tiny):
    """Red if a copy takes room again, or a change of the user's own file reaches the store."""
    fetched = fetch_local_model(tiny, "one", quiet)
    copied = fetch_local_model(fetched, "two", quiet)
    weights = "model.safetensors"
    assert (fetched / weights).samefile(copied / weights)
    assert not (fetched / weights).samefile(tiny / weights)
    record = store.read_record("two")
    assert record is not None and store.is_whole("two", record) and store.RECORD_NAME not in record.files


def test_an_interrupted_fetch_leaves_nothing(tiny):
    """Red if a client that leaves in the middle of a pull leaves a half model, or files behind."""

    def leave(phase: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_local_model(tiny, "one", leave)
    assert store.entries() == []
    assert list((store.store_folder() / ".partial").iterdir()) == []


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b", "x:7b"])
def test_a_name_stays_in_the_store(tiny, name):
    """Red if a name of the request becomes a path outside the store."""
    with pytest.raises(InvalidRequest, match="no name for a model"):
        fetch_local_model(tiny, name, quiet)


def test_what_is_no_model_is_refused_before_it_is_copied(tiny, tmp_path):
    """Red if any file of the machine can be brought into the store."""
    secret = tmp_path / "notes.gguf"
    secret.write_text("not a model")
    with pytest.raises(ModelRefused):
        fetch_local_model(secret, "notes", quiet)
    with pytest.raises(InvalidRequest):
        LocalLibrary(dict).pull(str(secret), quiet)
    assert store.entries() == []


def test_a_model_that_cannot_be_served_is_listed_and_can_be_deleted(tiny):
    """Red if one broken folder in the store hides every model from its clients."""
    fetch_local_model(tiny, "good", quiet)
    broken = store.store_folder() / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    library = LocalLibrary(dict)
    listed = {model.name: model.architecture for model in library.entries()}
    assert listed == {"good": "llama", "broken": ""}
    with pytest.raises(ModelRefused):
        library.show("broken")
    library.delete("broken")
    assert [model.name for model in library.entries()] == ["good"]


def test_a_served_model_that_is_not_there_yet_is_left_out(tiny):
    """Red if listing fails while the served model is still being fetched."""
    library = LocalLibrary(lambda: {"smollm2": "smollm2", "tiny": str(tiny)})
    assert [model.name for model in library.entries()] == ["tiny"]
    with pytest.raises(NotFound):
        library.show("smollm2")
