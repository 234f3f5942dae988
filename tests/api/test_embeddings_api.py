"""Embeddings over a live socket with the official SDK: a tiny BERT in a worker process behind the server."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal

import numpy as np
import openai
import pytest

from api.conftest import request
from penstock.config import ServerSettings
from penstock.engine.embedding.service import LocalEmbeddings
from support.tiny_encoders import make_tiny_encoder

MODEL = "tiny-bert"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / MODEL
    path.mkdir()
    make_tiny_encoder("bert-mean", path)
    return path


@pytest.fixture
async def server(serve, folder):
    settings = {"embedding_models": (str(folder),), "embedding_threads": 1}
    return await serve(embeddings=LocalEmbeddings(ServerSettings(**settings)), **settings)


@pytest.fixture
async def sdk(server):
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as client:
        yield client


async def test_the_sdk_reads_our_vectors(sdk):
    """Red if the SDK's default (base64) or floats give other vectors, order or usage."""
    inputs = ["the cat sat", "a dog", "ran"]
    packed = await sdk.embeddings.create(model=MODEL, input=inputs)  # the SDK asks for base64 by itself
    plain = await sdk.embeddings.create(model=MODEL, input=inputs, encoding_format="float")
    assert [item.index for item in packed.data] == [0, 1, 2]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert np.array_equal(np.array(one.embedding, np.float32), np.array(other.embedding, np.float32))
        assert np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-5)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == 5 + 4 + 3
    assert packed.model == MODEL and packed.object == "list"
    single = await sdk.embeddings.create(model=MODEL, input=inputs[0], dimensions=8)
    assert len(single.data[0].embedding) == 8


async def test_base64_on_the_wire_is_little_endian_float32(server, sdk):
    """Red if the bytes are of another type or order: other SDKs decode them alike."""
    body = json.dumps({"model": MODEL, "input": "a cat", "encoding_format": "base64"}).encode()
    status, headers, answer = await server.post("/v1/embeddings", body)
    assert (status, headers["content-type"]) == (200, "application/json")
    data = base64.b64decode(json.loads(answer)["data"][0]["embedding"])
    plain = await sdk.embeddings.create(model=MODEL, input="a cat", encoding_format="float")
    assert np.array_equal(np.frombuffer(data, "<f4"), np.array(plain.data[0].embedding, np.float32))


async def test_errors_are_the_sdks_own(sdk):
    """Red if a bad request is not the typed exception that clients catch, with the field's name."""
    with pytest.raises(openai.NotFoundError, match="no embedding model"):
        await sdk.embeddings.create(model="other", input="x")
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.embeddings.create(model=MODEL, input="cat " * 99)
    assert (refused.value.param, refused.value.code) == ("input", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.embeddings.create(model=MODEL, input="x", dimensions=4096)
    assert refused.value.param == "dimensions"
    asked = {"truncate_prompt_tokens": -1}
    cut = await sdk.embeddings.create(model=MODEL, input=["cat " * 99], extra_body=asked)
    assert cut.truncated == [0] and cut.usage.prompt_tokens == 32


async def test_models_are_listed_and_found(sdk):
    """Red if clients that pick a model from the list can't see the embedding models."""
    listed = [model.id async for model in sdk.models.list()]
    assert listed[-1] == MODEL and len(listed) == len(set(listed)) > 1
    assert (await sdk.models.retrieve(MODEL)).id == MODEL


async def test_many_requests_at_once_get_their_own_vectors(sdk):
    """Red if texts of several requests are mixed up in a batch."""
    words = ["cat", "dog", "mat", "market", "kitten", "stock"]
    alone = [(await sdk.embeddings.create(model=MODEL, input=word)).data[0].embedding for word in words]
    answers = await asyncio.gather(
        *(sdk.embeddings.create(model=MODEL, input=[word, *words]) for word in words * 4)
    )
    for word, answer in zip(words * 4, answers, strict=True):
        assert answer.data[0].embedding == alone[words.index(word)]
        assert [item.embedding for item in answer.data[1:]] == alone


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
async def test_rerank(server, path):
    """Red if the document that is the query is not the best one."""
    body = {"model": MODEL, "query": "a cat", "documents": ["the stock market", "a cat", "dog"], "top_n": 2}
    status, _, answer = await server.post(path, json.dumps(body).encode())
    results = json.loads(answer)["results"]
    assert status == 200 and len(results) == 2
    assert results[0]["index"] == 1 and results[0]["relevance_score"] == pytest.approx(1, abs=1e-5)


async def test_score(server):
    """Red if a pair of equal texts does not score 1."""
    body = {"model": MODEL, "text_1": "a cat", "text_2": ["a cat", "dog"]}
    status, _, answer = await server.post("/v1/score", json.dumps(body).encode())
    scores = [item["score"] for item in json.loads(answer)["data"]]
    assert status == 200 and scores[0] == pytest.approx(1, abs=1e-5) and scores[1] < scores[0]


async def test_a_server_without_embedding_models_says_how_to_get_them(serve):
    """Red if the route breaks, or the refusal does not name the setting."""
    server = await serve()
    status, _, answer = await server.post("/v1/embeddings", b'{"model": "minilm", "input": "x"}')
    assert status == 404 and b"--embedding-models" in answer
    assert (await server.get("/v1/embeddings"))[0] == 405


async def test_a_client_that_leaves_takes_its_texts_with_it(server):
    """Red if texts of a departed client go on waiting for their turn, or its departure is not counted."""
    await server.post("/v1/embeddings", b'{"model": "%s", "input": "x"}' % MODEL.encode())
    model = server.app.embeddings._models[MODEL]
    os.kill(
        model.residence.worker._process.pid, signal.SIGSTOP
    )  # so that nothing is done before the client leaves
    try:
        body = json.dumps({"model": MODEL, "input": ["the cat sat on the mat"] * 2048}).encode()
        _, writer = await server.connect()
        writer.write(request("POST", "/v1/embeddings", body))
        async with asyncio.timeout(20):
            while not model._batches._jobs:
                await asyncio.sleep(0)
            writer.close()
            while (
                b'penstock_cancelled_total{cause="disconnect"} 1.0' not in (await server.get("/metrics"))[2]
            ):
                pass
        assert not model._batches._jobs and model._batches._waiting == 0
    finally:
        os.kill(model.residence.worker._process.pid, signal.SIGCONT)
