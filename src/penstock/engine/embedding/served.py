"""ServedModel: one embedding model, loaded when it is first asked for, in a process of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from penstock.call import ModelCard
from penstock.embedding import MODEL_LIMIT, EmbedCall, Embeddings, ScoreCall, Scores
from penstock.engine.embedding.batches import Batches
from penstock.engine.embedding.messages import Loaded, Task
from penstock.engine.embedding.process import WorkerProcess
from penstock.errors import ContextOverflow, EngineUnavailable, InvalidRequest, PenstockError
from penstock.kernels.encoder import TextBatch
from penstock.models.encoder.pool import normalized
from penstock.models.sources import public_name
from penstock.text.text_tokenizer import TextTokenizer, TokenizedText

INLINE_CHARS = 4096  # tokenized in under a millisecond: below it a change of threads costs as much


class ServedModel:
    def __init__(self, model: str, backend: str, threads: int | None, max_waiting: int) -> None:
        self.name = public_name(model)
        self._model, self._backend, self._threads = model, backend, threads
        self._created = int(time.time())
        self._worker: WorkerProcess | None = None
        self._loaded: Loaded | None = None
        self._tokenizer: TextTokenizer | None = None
        self._starting: asyncio.Task[None] | None = None
        self._batches = Batches(self._run, max_waiting)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="penstock-embedding")
        self._closed = False

    @property
    def card(self) -> ModelCard:
        return ModelCard(self.name, self._created, self._loaded.max_tokens if self._loaded else 0)

    async def embed(self, call: EmbedCall) -> Embeddings:
        loaded, tokenizer = await self._ready()
        if call.dimensions is not None and call.dimensions > loaded.width:
            raise InvalidRequest(
                f"dimensions: {call.dimensions}; the vectors of {self.name} have {loaded.width}",
                param="dimensions",
            )
        limit = _limit(call.max_tokens, loaded)
        texts = await self._in_thread(
            sum(map(len, call.inputs)), _tokenize, tokenizer, call.inputs, limit, loaded.vocab_size
        )
        self._check_lengths(texts, "input")
        vectors = await self._batches.submit("embed", texts)
        if call.dimensions is not None and call.dimensions < loaded.width:
            vectors = normalized(vectors[:, : call.dimensions])
        return Embeddings(vectors, _tokens(texts), _cut(texts))

    async def score(self, call: ScoreCall) -> Scores:
        """A cross-encoder reads each pair; of an embedding model it is the cosine of both vectors."""
        loaded, tokenizer = await self._ready()
        if loaded.labels > 1:
            raise InvalidRequest(
                f"model: {self.name} has {loaded.labels} classes; scores need a head of one output",
                param="model",
            )
        limit = _limit(call.max_tokens, loaded)
        size = sum(len(query) + len(document) for query, document in call.pairs)
        if loaded.labels:
            texts = await self._in_thread(size, tokenizer.pairs, call.pairs, limit, call.document_tokens)
            self._check_lengths(texts, "documents")
            logits = (await self._batches.submit("classify", texts))[:, 0].astype(np.float64)
            scores = 1.0 / (1.0 + np.exp(-logits))
            return Scores(tuple(scores.tolist()), _tokens(texts), _cut(texts))
        queries = list(dict.fromkeys(query for query, _ in call.pairs))
        documents = list(dict.fromkeys(document for _, document in call.pairs))
        document_limit = min((n for n in (limit, call.document_tokens) if n is not None), default=None)
        texts = await self._in_thread(size, tokenizer.texts, queries, limit)
        texts += await self._in_thread(size, tokenizer.texts, documents, document_limit)
        self._check_lengths(texts, "documents")
        vectors = normalized(await self._batches.submit("embed", texts))
        place = {("query", text): i for i, text in enumerate(queries)}
        place |= {("document", text): len(queries) + i for i, text in enumerate(documents)}
        rows = [(place["query", query], place["document", document]) for query, document in call.pairs]
        cosines = tuple(float(vectors[a] @ vectors[b]) for a, b in rows)
        cut = tuple(i for i, (a, b) in enumerate(rows) if texts[a].cut or texts[b].cut)
        return Scores(cosines, _tokens(texts), cut)

    async def close(self) -> None:
        self._closed = True
        await self._batches.close()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._worker is not None:
            await self._drop(self._worker)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------ the worker

    async def _ready(self) -> tuple[Loaded, TextTokenizer]:
        """What the model is, and its tokenizer; starts the worker at the first call, and after a death.

        A caller that leaves meanwhile ends its own waiting, not the start."""
        if self._closed:
            raise EngineUnavailable("the server is shutting down", retry_after_s=5.0)
        if self._worker is None:
            if self._starting is None:
                self._starting = asyncio.create_task(self._start(), name="penstock-embedding-start")
                self._starting.add_done_callback(lambda done: done.cancelled() or done.exception())
            try:
                await asyncio.shield(self._starting)
            except asyncio.CancelledError:
                if self._closed:
                    raise EngineUnavailable("the server is shutting down", retry_after_s=5.0) from None
                raise
        assert self._loaded is not None and self._tokenizer is not None
        return self._loaded, self._tokenizer

    async def _start(self) -> None:
        try:
            worker, loaded = await WorkerProcess.begin(self._model, self._backend, self._threads)
            self._worker, self._loaded = worker, loaded
            if self._tokenizer is None:
                try:
                    self._tokenizer = await self._in_pool(TextTokenizer.load, Path(loaded.path))
                except PenstockError:
                    await self._drop(worker)
                    raise
        finally:
            self._starting = None

    async def _run(self, task: Task, batch: TextBatch) -> np.ndarray:
        await self._ready()
        worker = self._worker
        assert worker is not None
        try:
            return await worker.run(task, batch)
        except EngineUnavailable:
            await self._drop(worker)
            raise

    async def _drop(self, worker: WorkerProcess) -> None:
        if worker is self._worker:
            self._worker = None
        await worker.end()

    async def _in_pool(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def _in_thread(self, size: int, function: Callable[..., Any], *arguments: Any) -> Any:
        if size <= INLINE_CHARS:
            return function(*arguments)
        return await self._in_pool(function, *arguments)

    def _check_lengths(self, texts: list[TokenizedText], param: str) -> None:
        assert self._loaded is not None
        most = self._loaded.max_tokens
        for index, text in enumerate(texts):
            if len(text.ids) > most:
                raise ContextOverflow(
                    f"{param}: entry {index} has {len(text.ids)} tokens, {self.name} reads {most}; "
                    "shorten it, or send truncate_prompt_tokens: -1 to have it cut",
                    param=param,
                    code="context_length_exceeded",
                )
            if not len(text.ids):
                raise InvalidRequest(f"{param}: entry {index} has no tokens; send a text", param=param)


def _limit(max_tokens: int | None, loaded: Loaded) -> int | None:
    if max_tokens is None:
        return None
    return loaded.max_tokens if max_tokens == MODEL_LIMIT else min(max_tokens, loaded.max_tokens)


def _tokenize(
    tokenizer: TextTokenizer, inputs: tuple[str | tuple[int, ...], ...], limit: int | None, vocab_size: int
) -> list[TokenizedText]:
    texts = iter(tokenizer.texts([text for text in inputs if isinstance(text, str)], limit))
    return [
        next(texts) if isinstance(item, str) else _given(item, limit, vocab_size, index)
        for index, item in enumerate(inputs)
    ]


def _given(ids: tuple[int, ...], limit: int | None, vocab_size: int, index: int) -> TokenizedText:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(
                f"input: token id {token} of entry {index} is outside the vocabulary [0, {vocab_size - 1}]",
                param="input",
            )
    return TokenizedText(np.array(ids[:limit], np.int32), None, limit is not None and len(ids) > limit)


def _tokens(texts: list[TokenizedText]) -> int:
    return sum(len(text.ids) for text in texts)


def _cut(texts: list[TokenizedText]) -> tuple[int, ...]:
    return tuple(index for index, text in enumerate(texts) if text.cut)
