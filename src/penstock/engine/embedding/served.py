"""ServedModel: one embedding model, from texts to vectors and scores; Residence loads it when asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from penstock.call import ModelCard
from penstock.config import ServerSettings
from penstock.embedding import MODEL_LIMIT, EmbedCall, Embeddings, LoadedModel, ScoreCall, Scores
from penstock.engine.embedding.batches import Batches
from penstock.engine.embedding.messages import Loaded
from penstock.engine.embedding.residence import Residence
from penstock.errors import ContextOverflow, InvalidRequest
from penstock.models.encoder.pool import normalized
from penstock.text.text_tokenizer import TextTokenizer, TokenizedText

INLINE_CHARS = 4096  # tokenized in under a millisecond: below it a change of threads costs as much


class ServedModel:
    """name: for clients; model: name or path of what is loaded; make_room: see Residence."""

    def __init__(
        self,
        name: str,
        model: str,
        settings: ServerSettings,
        backend: str,
        make_room: Callable[[], Awaitable[bool]],
    ) -> None:
        self.name = name
        self.model = model
        self._created = int(time.time())
        keep_alive_s = settings.embedding_keep_alive_s
        self.residence = Residence(
            model,
            backend,
            settings.embedding_threads,
            math.inf if keep_alive_s < 0 else keep_alive_s,
            make_room,
        )
        self._batches = Batches(self.residence.run, settings.embedding_queue)

    @property
    def card(self) -> ModelCard:
        loaded = self.residence.loaded
        return ModelCard(self.name, self._created, loaded.max_tokens if loaded else 0)

    @property
    def loaded(self) -> LoadedModel | None:
        """None while it takes no memory."""
        residence = self.residence
        if residence.worker is None or residence.loaded is None:
            return None
        return LoadedModel(self.name, residence.loaded.max_tokens, residence.expires)

    async def embed(self, call: EmbedCall) -> Embeddings:
        began = time.perf_counter()
        async with self.residence.use(call.keep_alive_s) as (loaded, tokenizer):
            load_s = time.perf_counter() - began
            if call.dimensions is not None and call.dimensions > loaded.width:
                raise InvalidRequest(
                    f"dimensions: {call.dimensions}; the vectors of {self.name} have {loaded.width}",
                    param="dimensions",
                )
            if not call.inputs:
                return Embeddings(np.empty((0, call.dimensions or loaded.width), np.float32), 0, (), load_s)
            size = sum(map(len, call.inputs))
            limit = _limit(call.max_tokens, loaded)
            texts = await self._in_thread(size, _tokenize, tokenizer, call.inputs, limit, loaded.vocab_size)
            self._check_lengths(texts, "input", loaded)
            vectors = await self._batches.submit("embed", texts)
        if call.dimensions is not None and call.dimensions < loaded.width:
            vectors = normalized(vectors[:, : call.dimensions])
        return Embeddings(vectors, _tokens(texts), _cut(texts), load_s)

    async def score(self, call: ScoreCall) -> Scores:
        """A cross-encoder reads each pair; of an embedding model it is the cosine of both vectors."""
        async with self.residence.use() as (loaded, tokenizer):
            if loaded.labels > 1:
                raise InvalidRequest(
                    f"model: {self.name} has {loaded.labels} classes; scores need a head of one output",
                    param="model",
                )
            if loaded.labels:
                return await self._classify(call, loaded, tokenizer)
            return await self._compare(call, loaded, tokenizer)

    async def _classify(self, call: ScoreCall, loaded: Loaded, tokenizer: TextTokenizer) -> Scores:
        limit = _limit(call.max_tokens, loaded)
        texts = await self._in_thread(_size(call), tokenizer.pairs, call.pairs, limit, call.document_tokens)
        self._check_lengths(texts, "documents", loaded)
        logits = (await self._batches.submit("classify", texts))[:, 0].astype(np.float64)
        scores = 1.0 / (1.0 + np.exp(-logits))
        return Scores(tuple(scores.tolist()), _tokens(texts), _cut(texts))

    async def _compare(self, call: ScoreCall, loaded: Loaded, tokenizer: TextTokenizer) -> Scores:
        size, limit = _size(call), _limit(call.max_tokens, loaded)
        queries = list(dict.fromkeys(query for query, _ in call.pairs))
        documents = list(dict.fromkeys(document for _, document in call.pairs))
        document_limit = min((n for n in (limit, call.document_tokens) if n is not None), default=None)
        texts = await self._in_thread(size, tokenizer.texts, queries, limit)
        texts += await self._in_thread(size, tokenizer.texts, documents, document_limit)
        self._check_lengths(texts, "documents", loaded)
        vectors = normalized(await self._batches.submit("embed", texts))
        place = {("query", text): i for i, text in enumerate(queries)}
        place |= {("document", text): len(queries) + i for i, text in enumerate(documents)}
        rows = [(place["query", query], place["document", document]) for query, document in call.pairs]
        cosines = tuple(float(vectors[a] @ vectors[b]) for a, b in rows)
        cut = tuple(i for i, (a, b) in enumerate(rows) if texts[a].cut or texts[b].cut)
        return Scores(cosines, _tokens(texts), cut)

    async def close(self) -> None:
        await self._batches.close()
        await self.residence.close()

    async def _in_thread(self, size: int, function: Callable[..., Any], *arguments: Any) -> Any:
        if size <= INLINE_CHARS:
            return function(*arguments)
        return await self.residence.in_thread(function, *arguments)

    def _check_lengths(self, texts: list[TokenizedText], param: str, loaded: Loaded) -> None:
        most = loaded.max_tokens
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


def _size(call: ScoreCall) -> int:
    """Characters."""
    return sum(len(query) + len(document) for query, document in call.pairs)


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
