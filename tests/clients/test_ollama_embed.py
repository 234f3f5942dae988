"""The official `ollama` package asks for embeddings: a tiny BERT in a worker process behind the server."""

from __future__ import annotations

import datetime
import json
import time

import numpy as np
import pytest

ollama = pytest.importorskip("ollama", reason="the ollama package is part of the test extra")

from penstock.config import ServerSettings
from penstock.engine.embedding.service import LocalEmbeddings
from penstock.gateway.local_library import LocalLibrary
from support.threaded_server import live_servers
from support.tiny_encoders import make_tiny_encoder

MODEL = "tiny-bert"
LONG = "cat " * 99


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / MODEL
    path.mkdir()
    make_tiny_encoder("bert-mean", path)
    embeddings = LocalEmbeddings(ServerSettings(embedding_models=(str(path),), embedding_threads=1))
    with live_servers() as start:
        server = start(library=LocalLibrary(lambda: {MODEL: str(path)}), embeddings=embeddings)
        with ollama.Client(host=server.url) as sdk:
            yield sdk


def loaded(client) -> list[str]:
    return [model.model for model in client.ps().models if model.model.startswith(MODEL)]


def until_unloaded(client) -> None:
    end = time.monotonic() + 20
    while loaded(client):
        assert time.monotonic() < end, "the model stays loaded"


def test_embed(client):
    """Red if a text and a list of texts get other vectors or counts, or durations are no nanoseconds."""
    one = client.embed(MODEL, "the cat sat")
    assert isinstance(one, ollama.EmbedResponse)
    many = client.embed(f"{MODEL}:latest", ["the cat sat", "a dog", ""])
    assert many.embeddings[0] == one.embeddings[0] and len(many.embeddings) == 3
    assert (one.prompt_eval_count, many.prompt_eval_count) == (5, 5 + 4 + 2)
    assert np.linalg.norm(one.embeddings[0]) == pytest.approx(1, abs=1e-5)
    assert one.total_duration >= one.load_duration and many.load_duration < 10**8
    assert (one.model, many.model) == (MODEL, f"{MODEL}:latest")


def test_the_older_route_gives_the_same_vector(client):
    """Red if the two routes disagree, or an empty prompt is an error where Ollama loads the model."""
    wanted = client.embed(MODEL, "the cat sat").embeddings[0]
    assert client.embeddings(MODEL, "the cat sat").embedding == wanted
    assert client.embeddings(MODEL, "").embedding == []


def test_dimensions(client):
    """Red if they are not the first ones at length 1, or 0 is not all of them."""
    whole = np.array(client.embed(MODEL, "the cat sat").embeddings[0])
    short = client.embed(MODEL, "the cat sat", dimensions=8).embeddings[0]
    np.testing.assert_allclose(short, whole[:8] / np.linalg.norm(whole[:8]), rtol=1e-5)
    with pytest.raises(ollama.ResponseError, match=r"dimensions: 41") as refused:
        client.embed(MODEL, "a", dimensions=41)
    assert refused.value.status_code == 400


def test_long_texts_are_cut_unless_told_otherwise(client):
    """Red if `truncate: false` cuts, if its absence refuses, or `num_ctx` is ignored."""
    assert client.embed(MODEL, LONG).prompt_eval_count == 32
    assert client.embed(MODEL, LONG, options={"num_ctx": 7}).prompt_eval_count == 7
    with pytest.raises(ollama.ResponseError, match=r"has 101 tokens, tiny-bert reads 32") as refused:
        client.embed(MODEL, LONG, truncate=False)
    assert refused.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="num_ctx: 0"):
        client.embed(MODEL, "a", options={"num_ctx": 0})


def test_unknown_models_and_wrong_inputs(client):
    """Red if errors are not the SDK's, in Ollama's form, with Ollama's status."""
    with pytest.raises(ollama.ResponseError, match="model 'nobody' not found") as refused:
        client.embed("nobody", "a")
    assert refused.value.status_code == 404
    answer = client._client.post("/api/embed", json={"model": MODEL, "input": [1]})
    assert answer.status_code == 400 and json.loads(answer.content).keys() == {"error"}
    answer = client._client.post("/api/embed", json={"model": MODEL, "input": "a", "keep_alive": "soon"})
    assert answer.status_code == 400 and "keep_alive" in answer.text


def test_a_model_is_loaded_kept_and_given_back_as_asked(client):
    """Red if an empty input does not load, `keep_alive` does not set the end, or 0 leaves the process."""
    client.embed(MODEL, "", keep_alive=0)
    until_unloaded(client)
    first = client.embed(MODEL, [], keep_alive="1h")
    assert list(first.embeddings) == [] and first.load_duration > 0
    [running] = [model for model in client.ps().models if model.model == f"{MODEL}:latest"]
    left = running.expires_at - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(minutes=58) < left <= datetime.timedelta(hours=1)
    assert running.context_length == 32
    client.embed(MODEL, "a", keep_alive=-1)
    [running] = [model for model in client.ps().models if model.model == f"{MODEL}:latest"]
    assert running.expires_at.year == 9999
    before = client.embed(MODEL, "a", keep_alive=0).embeddings
    until_unloaded(client)
    assert client.embed(MODEL, "a").embeddings == before


def test_the_library_knows_what_it_is(client):
    """Red if tools that choose by capability offer it for chats, or not for embeddings."""
    shown = client.show(MODEL)
    assert shown.capabilities == ["embedding"]
    assert shown.modelinfo["bert.embedding_length"] == 40 and shown.modelinfo["bert.context_length"] == 32
    assert shown.details.family == "bert" and shown.details.format == "safetensors"
    assert f"{MODEL}:latest" in [model.model for model in client.list().models]
