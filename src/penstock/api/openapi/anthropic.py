"""Anthropic's routes."""

from __future__ import annotations

from penstock.api import anthropic
from penstock.api.openapi.operations import Json, error_refs, generate, get, in_path, json_content, post
from penstock.wire import anthropic_batches, anthropic_messages
from penstock.wire.anthropic_dialect import ErrorEnvelope
from penstock.wire.anthropic_stream import MessageBody

BODIES = (
    anthropic_messages.MessagesRequest,
    anthropic_messages.CountRequest,
    MessageBody,
    anthropic.TokenCount,
    anthropic.AnthropicModel,
    anthropic.AnthropicModelList,
    anthropic_batches.NewMessageBatch,
    anthropic_batches.MessageBatchBody,
    anthropic_batches.MessageBatchList,
    anthropic_batches.DeletedMessageBatch,
    ErrorEnvelope,
)


def paths() -> Json:
    return {**_message_paths(), **_batch_paths()}


def _message_paths() -> Json:
    messages, count = anthropic_messages.PATH, anthropic_messages.COUNT_PATH
    errors = {"prefix": "AnthropicError"}
    created = generate("createMessage", "MessagesRequest", "MessageBody", **errors)
    created["responses"]["200"]["description"] = "one JSON body; with `stream: true` named events"
    return {
        messages: {"post": created},
        count: {"post": post("countMessageTokens", "CountRequest", "TokenCount", **errors)},
        "/": {
            "get": {
                "operationId": "greet",
                "responses": {"200": {"description": "the server is there", "content": {"text/plain": {}}}}
                | error_refs(("400", "403", "431")),
            },
            "head": {
                "operationId": "reach",
                "responses": {"200": {"description": "the server is there"}}
                | error_refs(("400", "403", "431")),
            },
        },
    }


def _batch_paths() -> Json:
    """Of Anthropic's batches."""
    path, batch = anthropic_batches.PATH, json_content("MessageBatchBody")
    name = [in_path("batch_id", "the id of a message batch")]
    pages: list[Json] = [
        {"name": "after_id", "in": "query", "schema": {"type": "string"}},
        {"name": "before_id", "in": "query", "schema": {"type": "string"}},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000}},
    ]
    listed = get("listMessageBatches", json_content("MessageBatchList"), prefix="AnthropicError")
    created = post("createMessageBatch", "NewMessageBatch", "MessageBatchBody", prefix="AnthropicError")
    deleted = json_content("DeletedMessageBatch")

    def about_one(name: str, content: Json, *errors: str) -> Json:
        return get(name, content, "404", *errors, prefix="AnthropicError")

    return {
        path: {"post": created, "get": listed | {"parameters": pages}},
        path + "/{batch_id}": {
            "parameters": name,
            "get": about_one("getMessageBatch", batch),
            "delete": about_one("deleteMessageBatch", deleted, "409"),
        },
        path + "/{batch_id}/cancel": {
            "parameters": name,
            "post": about_one("cancelMessageBatch", batch, "409"),
        },
        path + "/{batch_id}/results": {
            "parameters": name,
            "get": about_one("getMessageBatchResults", {"application/x-jsonl": {}}),
        },
    }
