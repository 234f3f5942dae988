"""LangChain's own suite for embeddings, against this server as OpenAI and Ollama."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("langchain_tests", reason="langchain-tests is part of the test extra")
served = pytest.importorskip("penstock.engine.embedding.service", reason="this server makes no embeddings")

from langchain_core.embeddings import Embeddings
from langchain_ollama import OllamaEmbeddings
from langchain_openai import OpenAIEmbeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests

from penstock.config import ServerSettings
from support.threaded_server import live_servers

MODEL = "tiny-bert"

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # the classes share connections between models
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # and leave them to the garbage collector
    pytest.mark.filterwarnings("ignore:The test .* is marked with:pytest.PytestWarning"),  # some do not wait
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from support.tiny_encoders import make_tiny_encoder

    path = tmp_path_factory.mktemp("models") / MODEL
    path.mkdir()
    make_tiny_encoder("bert-mean", path)
    settings = ServerSettings(embedding_models=(str(path),), embedding_threads=1)
    with live_servers() as start:
        yield start(embeddings=served.LocalEmbeddings(settings)).url
        gc.collect()  # else what the classes left open is warned of in another module


class Suite(EmbeddingsIntegrationTests):
    url: str

    @pytest.fixture(autouse=True)
    def _serve(self, url: str) -> None:
        self.url = url


class TestOpenAI(Suite):
    """Red if LangChain's OpenAI embeddings can't use this server in one of the suite's ways."""

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        # Counting the context is done with OpenAI's own vocabularies.
        fixed = {"api_key": "any", "check_embedding_ctx_length": False}
        return {"model": MODEL, "base_url": f"{self.url}/v1", **fixed}


class TestOllama(Suite):
    """Red if LangChain's Ollama embeddings can't use this server in one of the suite's ways."""

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return OllamaEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": MODEL, "base_url": self.url}
