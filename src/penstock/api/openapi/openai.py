"""OpenAI's routes but Responses, and those that others have made common beside them: rerank, score."""

from __future__ import annotations

from penstock.api import files
from penstock.api.openapi.operations import Json, aliases, generate, get, in_path, json_content, post
from penstock.api.openapi.responses import list_parameters
from penstock.wire import openai_batches, openai_chat, openai_completions, openai_embeddings, rerank, score

BODIES = (
    openai_chat.ChatRequest,
    openai_chat.ChatCompletion,
    openai_completions.CompletionRequest,
    openai_completions.Completion,
    openai_embeddings.EmbeddingRequest,
    openai_embeddings.EmbeddingList,
    rerank.RerankRequest,
    rerank.RerankAnswer,
    score.ScoreRequest,
    score.ScoreList,
    openai_batches.NewBatch,
    openai_batches.BatchBody,
    openai_batches.BatchList,
    openai_batches.FileBody,
    openai_batches.FileList,
    openai_batches.DeletedFile,
)


def paths() -> Json:
    return {
        openai_chat.PATH: {"post": generate("createChatCompletion", "ChatRequest", "ChatCompletion")},
        openai_completions.PATH: {"post": generate("createCompletion", "CompletionRequest", "Completion")},
        openai_embeddings.PATH: {"post": post("createEmbedding", "EmbeddingRequest", "EmbeddingList")},
        **aliases(rerank.PATHS, "rerank", "RerankRequest", "RerankAnswer"),
        **aliases(score.PATHS, "score", "ScoreRequest", "ScoreList"),
        **_batch_paths(),
    }


def _batch_paths() -> Json:
    """Of OpenAI's files and batches."""
    file, batch = json_content("FileBody"), json_content("BatchBody")
    file_id = [in_path("file_id", "the id of a file")]
    batch_id = [in_path("batch_id", "the id of a batch")]
    fields: Json = {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": list(openai_batches.PURPOSES)},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
    }
    form = {"schema": {"type": "object", "properties": fields, "required": ["file", "purpose"]}}
    upload = post("createFile", "NewBatch", "FileBody")
    upload["requestBody"]["content"] = {"multipart/form-data": form}
    listing = list_parameters()
    most, order = {"type": "integer", "minimum": 1, "maximum": files.MAX_LIMIT}, listing[2]
    of_files = [listing[0], {"name": "limit", "in": "query", "schema": most}, order]
    of_purpose = {"name": "purpose", "in": "query", "schema": {"type": "string"}}
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {
        "/v1/files": {
            "post": upload,
            "get": get("listFiles", json_content("FileList")) | {"parameters": [*of_files, of_purpose]},
        },
        "/v1/files/{file_id}": {
            "parameters": file_id,
            "get": get("getFile", file, "404"),
            "delete": get("deleteFile", json_content("DeletedFile"), "404"),
        },
        "/v1/files/{file_id}/content": {
            "parameters": file_id,
            "get": get("getFileContent", content, "404"),
        },
        "/v1/batches": {
            "post": post("createBatch", "NewBatch", "BatchBody"),
            "get": get("listBatches", json_content("BatchList")) | {"parameters": listing[:2]},
        },
        "/v1/batches/{batch_id}": {"parameters": batch_id, "get": get("getBatch", batch, "404")},
        "/v1/batches/{batch_id}/cancel": {
            "parameters": batch_id,
            "post": get("cancelBatch", batch, "404", "409"),
        },
    }
