"""LocalEmbeddings over real worker processes: vectors, scores, batches, limits, deaths, endings."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.config import ServerSettings
from penstock.embedding import EmbedCall, ScoreCall
from penstock.engine.embedding import model as model_module
from penstock.engine.embedding import residence as residence_module
from penstock.engine.embedding.batches import Batches
from penstock.engine.embedding.messages import NO_ROOM
from penstock.engine.embedding.model import open_embedding_model
from penstock.engine.embedding.service import LocalEmbeddings
from penstock.errors import (
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    ModelRefused,
    NotFound,
    Overloaded,
)
from penstock.kernels.encoder import TextBatch
from penstock.text.text_tokenizer import TextTokenizer, TokenizedText
from support.tiny_encoders import make_tiny_encoder

TEXTS = ("the cat sat on the mat", "a dog ran", "", "stock market fell!")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, tuple[Path, Any]]:
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for variant in ("bert-mean", "bert-cls", "cross", "classes"):
        (folder / variant).mkdir()
        made[variant] = (folder / variant, make_tiny_encoder(variant, folder / variant))
    return made


@pytest.fixture
async def open_service(models):
    opened: list[LocalEmbeddings] = []

    def start(*variants: str, **settings: Any) -> LocalEmbeddings:
        names = tuple(str(models[variant][0]) for variant in variants)
        service = LocalEmbeddings(ServerSettings(embedding_models=names, embedding_threads=1, **settings))
        opened.append(service)
        return service

    yield start
    for service in opened:
        await service.close()
    left = [task.get_name() for task in asyncio.all_tasks() if "penstock" in task.get_name()]
    assert left == [], "tasks outlive their service"


async def test_a_model_loads_when_it_is_first_asked_for(open_service, models):
    """Red if a server pays for embeddings that nobody wants, or texts get other vectors than the model's."""
    service = open_service("bert-mean", "cross")
    assert [(card.id, card.max_context) for card in service.models()] == [("bert-mean", 0), ("cross", 0)]
    answer = await service.embed(EmbedCall(model="bert-mean", inputs=TEXTS))
    assert [card.max_context for card in service.models()] == [32, 0]
    tokenizer = TextTokenizer.load(models["bert-mean"][0])
    texts = tokenizer.texts(TEXTS)
    assert answer.prompt_tokens == sum(len(text.ids) for text in texts)
    model = open_embedding_model(str(models["bert-mean"][0]))
    for text, vector in zip(texts, answer.vectors, strict=True):
        alone = model.run("embed", TextBatch(text.ids, np.array([0, len(text.ids)], np.int32)))[0]
        assert np.array_equal(alone, vector)
    given = tuple(tuple(text.ids.tolist()) for text in texts)
    by_ids = await service.embed(EmbedCall(model="bert-mean", inputs=given))
    assert np.array_equal(by_ids.vectors, answer.vectors)


async def test_dimensions_are_the_first_ones_at_length_one(open_service):
    """Red if shortened vectors are not of length 1, or more dimensions than there are come back."""
    service = open_service("bert-mean")
    whole = (await service.embed(EmbedCall(model="bert-mean", inputs=TEXTS))).vectors
    short = (await service.embed(EmbedCall(model="bert-mean", inputs=TEXTS, dimensions=8))).vectors
    np.testing.assert_allclose(short, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1)[:, None], rtol=1e-5)
    with pytest.raises(InvalidRequest, match="dimensions: 41; the vectors of bert-mean have 40"):
        await service.embed(EmbedCall(model="bert-mean", inputs=TEXTS, dimensions=41))


async def test_long_inputs_are_refused_or_cut_and_named(open_service):
    """Red if an input over the model's length is cut unasked, or cut and not said."""
    service = open_service("bert-mean")
    inputs = ("cat", "cat " * 60, tuple(range(5, 45)))
    with pytest.raises(ContextOverflow, match="entry 1 has 62 tokens, bert-mean reads 32"):
        await service.embed(EmbedCall(model="bert-mean", inputs=inputs))
    answer = await service.embed(EmbedCall(model="bert-mean", inputs=inputs, max_tokens=-1))
    assert (answer.truncated, answer.prompt_tokens) == ((1, 2), 3 + 32 + 32)
    shorter = await service.embed(EmbedCall(model="bert-mean", inputs=inputs, max_tokens=5))
    assert (shorter.truncated, shorter.prompt_tokens) == ((1, 2), 3 + 5 + 5)


async def test_token_ids_outside_the_vocabulary_are_refused(open_service):
    """Red if a bad id reaches the tables."""
    service = open_service("bert-mean")
    with pytest.raises(InvalidRequest, match=r"token id 999 of entry 1 is outside the vocabulary \[0,"):
        await service.embed(EmbedCall(model="bert-mean", inputs=((5,), (5, 999))))


async def test_cross_encoders_read_pairs_and_embedders_give_cosines(open_service, models):
    """Red if a pair's score is not the sigmoid of the model's logit, or not the cosine of its vectors."""
    import torch
    import transformers

    service = open_service("cross", "bert-mean")
    pairs = (("the cat", "a kitten sat"), ("the cat", "market"), ("dog", "the cat"))
    scores = await service.score(ScoreCall(model="cross", pairs=pairs))
    folder, model = models["cross"]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    for pair, found in zip(pairs, scores.scores, strict=True):
        given = tokenizer(*pair, return_tensors="pt", return_token_type_ids=True)
        with torch.no_grad():
            assert found == pytest.approx(torch.sigmoid(model(**given).logits[0, 0]).item(), abs=2e-6)
    cosines = await service.score(ScoreCall(model="bert-mean", pairs=pairs))
    vectors = (await service.embed(EmbedCall(model="bert-mean", inputs=tuple(sum(pairs, ()))))).vectors
    assert cosines.scores == pytest.approx(
        [float(a @ b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    )
    cut = await service.score(
        ScoreCall(model="cross", pairs=(("a cat", "dog " * 9), ("a cat", "dog")), document_tokens=3)
    )
    assert cut.truncated == (0,)


async def test_a_classifier_has_no_scores(open_service):
    """Red if the first of several classes is sold as relevance."""
    service = open_service("classes")
    with pytest.raises(InvalidRequest, match="3 classes"):
        await service.score(ScoreCall(model="classes", pairs=(("a", "b"),)))


async def test_unknown_and_broken_models_say_so(open_service, tmp_path):
    """Red if a model that can't be had hangs, or its error does not name it."""
    service = open_service("bert-mean")
    with pytest.raises(NotFound, match=r"'gpt' is no embedding model.*bert-mean"):
        await service.embed(EmbedCall(model="gpt", inputs=("x",)))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    broken = LocalEmbeddings(ServerSettings(embedding_models=(str(tmp_path),)))
    for _ in range(2):  # the second attempt tries again and fails alike
        with pytest.raises(ModelRefused, match=r"model\.safetensors"):
            await broken.embed(EmbedCall(model=tmp_path.name, inputs=("x",)))
    await broken.close()


async def test_a_killed_worker_fails_its_callers_and_the_next_call_starts_another(open_service):
    """Red if a crash in native code hangs callers, or ends embeddings for good."""
    service = open_service("bert-mean")
    call = EmbedCall(model="bert-mean", inputs=TEXTS)
    before = await service.embed(call)
    worker = service._models["bert-mean"].residence.worker
    os.kill(worker._process.pid, signal.SIGSTOP)
    waiting = asyncio.create_task(service.embed(call))
    await asyncio.sleep(0)
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match="status -9"):
        await waiting
    assert np.array_equal((await service.embed(call)).vectors, before.vectors)


async def test_a_model_that_nobody_uses_gives_its_memory_back(open_service):
    """Red if an idle model keeps its process, one in use loses it, or the next request is not answered."""
    service = open_service("bert-mean", embedding_keep_alive_s=0.0)
    call = EmbedCall(model="bert-mean", inputs=TEXTS)
    residence = service._models["bert-mean"].residence
    async with residence.use():
        first, process = await service.embed(call), residence.worker._process
        assert [model.expires for model in service.loaded()] == [None]  # in use: no clock runs
        assert process.returncode is None
    assert service.loaded() == []
    await process.wait()
    kept = await service.embed(EmbedCall(model="bert-mean", inputs=TEXTS, keep_alive_s=60.0))
    assert np.array_equal(kept.vectors, first.vectors) and kept.load_s > 0
    [loaded] = service.loaded()
    assert 0 < loaded.expires - time.time() <= 60
    await service.embed(EmbedCall(model="bert-mean", inputs=(), keep_alive_s=0.0))
    assert service.loaded() == []


async def test_a_model_without_room_ends_the_least_recently_used_idle_one(open_service, monkeypatch):
    """Red if memory that nobody uses keeps a model out, or one that a request uses is taken from it."""
    service = open_service("bert-mean", "cross", "classes", "bert-cls")
    residences = {name: model.residence for name, model in service._models.items()}
    begin = residence_module.WorkerProcess.begin

    async def begin_if_room(*arguments):
        """Room for two."""
        if sum(residence.worker is not None for residence in residences.values()) >= 2:
            raise ModelRefused("no room", code=NO_ROOM)
        return await begin(*arguments)

    monkeypatch.setattr(residence_module.WorkerProcess, "begin", begin_if_room)

    async def load(name: str) -> list[str]:
        await service.embed(EmbedCall(model=name, inputs=("a",)))
        return [model.name for model in service.loaded()]

    assert await load("bert-mean") == ["bert-mean"]
    assert await load("cross") == ["bert-mean", "cross"]
    assert await load("bert-mean") == ["bert-mean", "cross"]
    assert await load("classes") == ["bert-mean", "classes"]
    async with residences["bert-mean"].use():
        assert await load("cross") == ["bert-mean", "cross"]
        async with residences["cross"].use():
            with pytest.raises(ModelRefused, match="no room"):
                await load("bert-cls")


def test_a_model_that_memory_has_no_room_for_is_refused_with_the_numbers(models, monkeypatch):
    """Red if a model is read until the system kills something."""
    monkeypatch.setattr(model_module, "available_memory", lambda: 1 << 10)
    with pytest.raises(ModelRefused, match=r"needs \d+ MiB for its weights, 0 MiB are free") as refused:
        open_embedding_model(str(models["bert-mean"][0]))
    assert refused.value.code == NO_ROOM


async def test_closing_while_a_model_loads_leaves_no_process(open_service):
    """Red if a shutdown in the middle of a load waits for it or leaves the worker behind."""
    service = open_service("bert-mean")
    waiting = asyncio.create_task(service.embed(EmbedCall(model="bert-mean", inputs=TEXTS)))
    await asyncio.sleep(0)
    await service.close()
    with pytest.raises(EngineUnavailable, match="shutting down"):
        await waiting


class Recorder:
    """Stands for a worker: the vector of a text is its first id; batches are let through one by one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Semaphore(0)

    async def run(self, task: str, batch: TextBatch) -> np.ndarray:
        first = batch.tokens[batch.offsets[:-1]]
        self.batches.append(first.tolist())
        await self.gate.acquire()
        return first[:, None].astype(np.float32)


def texts_of(*ids: int, length: int = 4) -> list[TokenizedText]:
    return [TokenizedText(np.full(length, i, np.int32)) for i in ids]


async def test_requests_take_turns_in_a_batch():
    """Red if a large request keeps a small one waiting longer than the batch that runs."""
    recorder = Recorder()
    batches = Batches(recorder.run, 100, batch_tokens=16)
    first = asyncio.create_task(batches.submit("embed", texts_of(1)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    large = asyncio.create_task(batches.submit("embed", texts_of(*range(10, 20))))
    await asyncio.sleep(0)
    small = asyncio.create_task(batches.submit("embed", texts_of(2)))
    await asyncio.sleep(0)
    for _ in range(9):
        recorder.gate.release()
    assert (await first).tolist() == [[1.0]]
    assert (await small).tolist() == [[2.0]]
    assert (await large).tolist() == [[float(i)] for i in range(10, 20)]
    assert recorder.batches[:2] == [[1], [10, 2, 11, 12]]
    assert all(len(batch) <= 4 for batch in recorder.batches)
    await batches.close()


async def test_the_queue_is_bounded_and_forgets_those_who_leave():
    """Red if texts pile up without end, or a cancelled request goes on taking room or time."""
    recorder = Recorder()
    batches = Batches(recorder.run, 6, batch_tokens=8)
    running = asyncio.create_task(batches.submit("embed", texts_of(1, 2)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaving = asyncio.create_task(batches.submit("embed", texts_of(3, 4, 5, 6)))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="embedding_queue"):
        await batches.submit("embed", texts_of(7, 8, 9))
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    later = asyncio.create_task(batches.submit("embed", texts_of(7, 8, 9)))
    for _ in range(3):
        recorder.gate.release()
    assert (await running).tolist() == [[1.0], [2.0]]
    assert (await later).tolist() == [[7.0], [8.0], [9.0]]
    assert recorder.batches == [[1, 2], [7, 8], [9]]
    await batches.close()


async def test_texts_of_both_tasks_never_share_a_batch():
    """Red if a classification runs as an embedding."""
    recorder = Recorder()
    batches = Batches(recorder.run, 100)
    tasks = [
        asyncio.create_task(batches.submit(task, texts_of(i)))
        for i, task in enumerate(("embed", "classify", "embed", "classify"))
    ]
    for _ in range(4):
        recorder.gate.release()
    assert [row.tolist() for row in await asyncio.gather(*tasks)] == [[[0.0]], [[1.0]], [[2.0]], [[3.0]]]
    assert sorted(map(sorted, recorder.batches)) == [[0, 2], [1, 3]]
    await batches.close()
