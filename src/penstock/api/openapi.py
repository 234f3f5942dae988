"""`/openapi.json`: an OpenAPI 3.1 document made from the structs that do the reading and writing.

Constraints come from the same annotations that the decoders enforce. Added by hand is only what a
struct can't say: lists of one kind in `prompt`, keys of `logit_bias`, the models that are served.
"""

from __future__ import annotations

from typing import Any

import msgspec

from penstock import __version__
from penstock.api import anthropic, conversations, files, prefix_miss, responses, tokens
from penstock.gateway.service import Health
from penstock.wire import (
    anthropic_batches,
    anthropic_messages,
    openai_batches,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
    openai_responses_body,
    openai_responses_compact,
    rerank,
    score,
)
from penstock.wire.anthropic_dialect import ErrorEnvelope
from penstock.wire.anthropic_stream import MessageBody
from penstock.wire.openai_common import MAX_INT, ErrorBody

Json = dict[str, Any]

_ERRORS = {
    "400": "the request is not valid; `param` names the field",
    "401": "no API key, or not this server's",
    "403": "the Host header does not name this server",
    "404": "no such route or model",
    "405": "another method; the Allow header names the right ones",
    "409": "it has ended, or has not yet: what was asked for can't be done",
    "408": "the body stopped coming",
    "413": "the body is over max_body_bytes",
    "415": "the body is not declared as application/json",
    "429": "the queue is full; Retry-After says when to come back",
    "431": "the headers are too large",
    "503": "no engine right now; Retry-After says when to come back",
    "504": "the request's deadline passed",
}
_GET_ERRORS = ("400", "401", "403", "405", "431", "503")
_REF = "#/components/schemas/{name}"


def document(models: list[str], secured: bool) -> Json:
    """The document for a server of `models`; `secured`: an API key is needed."""
    from penstock.api.bodies import ModelBody, ModelList, VersionBody

    bodies = [
        openai_chat.ChatRequest,
        openai_chat.ChatCompletion,
        openai_completions.CompletionRequest,
        openai_completions.Completion,
        openai_responses.ResponsesRequest,
        openai_responses_body.ResponseBody,
        openai_responses_compact.CompactedResponse,
        prefix_miss.PrefixMissBody,
        prefix_miss.PrefixMissRequest,
        responses.DeletedResponse,
        responses.InputTokens,
        responses.ItemList,
        conversations.NewConversation,
        conversations.ConversationUpdate,
        conversations.NewItems,
        conversations.ConversationBody,
        conversations.DeletedConversation,
        tokens.TokenizeRequest,
        tokens.TokenizeAnswer,
        tokens.DetokenizeRequest,
        tokens.DetokenizeAnswer,
        openai_embeddings.EmbeddingRequest,
        openai_embeddings.EmbeddingList,
        rerank.RerankRequest,
        rerank.RerankAnswer,
        score.ScoreRequest,
        score.ScoreList,
        ModelBody,
        ModelList,
        VersionBody,
        Health,
        ErrorBody,
        anthropic_messages.MessagesRequest,
        anthropic_messages.CountRequest,
        MessageBody,
        anthropic.TokenCount,
        anthropic.AnthropicModel,
        anthropic.AnthropicModelList,
        openai_batches.NewBatch,
        openai_batches.BatchBody,
        openai_batches.BatchList,
        openai_batches.FileBody,
        openai_batches.FileList,
        openai_batches.DeletedFile,
        anthropic_batches.NewMessageBatch,
        anthropic_batches.MessageBatchBody,
        anthropic_batches.MessageBatchList,
        anthropic_batches.DeletedMessageBatch,
        ErrorEnvelope,
    ]
    _, schemas = msgspec.json.schema_components(bodies, ref_template=_REF)
    _amend(schemas, models)
    components: Json = {"schemas": schemas, "responses": _error_responses()}
    if secured:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    paths = _paths()
    for path, operations in paths.items():
        open_to_all = not secured or path in ("/", "/health", "/ready")
        for method in operations.keys() - {"parameters"}:
            operations[method]["security"] = [] if open_to_all else [{"key": []}]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Penstock",
            "version": __version__,
            "description": "LLM inference in OpenAI's and Anthropic's formats. Unknown fields are ignored.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": components,
    }


def _paths() -> Json:
    return {
        openai_chat.PATH: {"post": _generate("createChatCompletion", "ChatRequest", "ChatCompletion")},
        openai_completions.PATH: {"post": _generate("createCompletion", "CompletionRequest", "Completion")},
        openai_embeddings.PATH: {"post": _post("createEmbedding", "EmbeddingRequest", "EmbeddingList")},
        **_aliases(rerank.PATHS, "rerank", "RerankRequest", "RerankAnswer"),
        **_aliases(score.PATHS, "score", "ScoreRequest", "ScoreList"),
        **_anthropic_paths(),
        **response_paths(),
        **conversation_paths(),
        **batch_paths(),
        **message_batch_paths(),
        "/tokenize": {"post": _post("tokenize", "TokenizeRequest", "TokenizeAnswer")},
        "/detokenize": {"post": _post("detokenize", "DetokenizeRequest", "DetokenizeAnswer")},
        "/v1/models": {"get": _get("listModels", _either("ModelList", "AnthropicModelList"))},
        "/v1/models/{model}": {
            "get": _get("getModel", _either("ModelBody", "AnthropicModel"), "404")
            | {"parameters": [_in_path("model", "may contain slashes")]}
        },
        "/health": {"get": _probe("health", "the engine answers and, if it has work, steps complete")},
        "/ready": {"get": _probe("ready", "requests are accepted now")},
        "/metrics": {"get": _get("metrics", {"text/plain": {"schema": {"type": "string"}}})},
        "/version": {"get": _get("version", _json_content("VersionBody"))},
        "/openapi.json": {"get": _get("openapi", {"application/json": {"schema": {"type": "object"}}})},
    }


def _aliases(paths: tuple[str, ...], name: str, request: str, answer: str) -> Json:
    """One operation under all its paths; operation ids are unique."""
    return {
        path: {"post": _post(name if number == 0 else f"{name}{number + 1}", request, answer)}
        for number, path in enumerate(paths)
    }


def _anthropic_paths() -> Json:
    messages, count = anthropic_messages.PATH, anthropic_messages.COUNT_PATH
    errors = {"prefix": "AnthropicError"}
    created = _generate("createMessage", "MessagesRequest", "MessageBody", **errors)
    created["responses"]["200"]["description"] = "one JSON body; with `stream: true` named events"
    return {
        messages: {"post": created},
        count: {"post": _post("countMessageTokens", "CountRequest", "TokenCount", **errors)},
        "/": {
            "get": {
                "operationId": "greet",
                "responses": {"200": {"description": "the server is there", "content": {"text/plain": {}}}}
                | _error_refs(("400", "403", "431")),
            },
            "head": {
                "operationId": "reach",
                "responses": {"200": {"description": "the server is there"}}
                | _error_refs(("400", "403", "431")),
            },
        },
    }


def response_paths() -> Json:
    """Of answers in the Responses format, and of those that are stored."""
    name = [_in_path("response_id", "the id of a stored response")]
    response, request = _json_content("ResponseBody"), "ResponsesRequest"
    return {
        openai_responses.PATH: {"post": _generate("createResponse", request, "ResponseBody")},
        openai_responses_compact.PATH: {"post": _post("compactResponse", request, "CompactedResponse")},
        "/debug/prefix-miss": {"post": _post("comparePrefixes", "PrefixMissRequest", "PrefixMissBody")},
        "/debug/prefix-miss/{response_id}": {
            "parameters": name,
            "get": _get("explainPrefixMiss", _json_content("PrefixMissBody"), "404"),
        },
        "/v1/responses/input_tokens": {"post": _post("countInputTokens", "TokenCount", "InputTokens")},
        "/v1/responses/{response_id}": {
            "parameters": name,
            "get": _get("getResponse", response, "404"),
            "delete": _get("deleteResponse", _json_content("DeletedResponse"), "404"),
        },
        "/v1/responses/{response_id}/cancel": {
            "parameters": name,
            "post": _get("cancelResponse", response, "404"),
        },
        "/v1/responses/{response_id}/input_items": {
            "parameters": name + _list_parameters(),
            "get": _get("listInputItems", _json_content("ItemList"), "404"),
        },
    }


def conversation_paths() -> Json:
    name = [_in_path("conversation_id", "the id of a conversation")]
    item = [*name, _in_path("item_id", "the id of one of its items")]
    conversation, items = _json_content("ConversationBody"), _json_content("ItemList")
    deleted = _json_content("DeletedConversation")
    return {
        "/v1/conversations": {"post": _post("createConversation", "NewConversation", "ConversationBody")},
        "/v1/conversations/{conversation_id}": {
            "parameters": name,
            "get": _get("getConversation", conversation, "404"),
            "post": _post("updateConversation", "ConversationUpdate", "ConversationBody"),
            "delete": _get("deleteConversation", deleted, "404"),
        },
        "/v1/conversations/{conversation_id}/items": {
            "parameters": name,
            "post": _post("createConversationItems", "NewItems", "ItemList"),
            "get": _get("listConversationItems", items, "404") | {"parameters": _list_parameters()},
        },
        "/v1/conversations/{conversation_id}/items/{item_id}": {
            "parameters": item,
            "get": _get("getConversationItem", {"application/json": {"schema": {"type": "object"}}}, "404"),
            "delete": _get("deleteConversationItem", conversation, "404"),
        },
    }


def batch_paths() -> Json:
    """Of OpenAI's files and batches."""
    file, batch = _json_content("FileBody"), _json_content("BatchBody")
    file_id = [_in_path("file_id", "the id of a file")]
    batch_id = [_in_path("batch_id", "the id of a batch")]
    fields: Json = {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": list(openai_batches.PURPOSES)},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
    }
    form = {"schema": {"type": "object", "properties": fields, "required": ["file", "purpose"]}}
    upload = _post("createFile", "NewBatch", "FileBody")
    upload["requestBody"]["content"] = {"multipart/form-data": form}
    listing = _list_parameters()
    most, order = {"type": "integer", "minimum": 1, "maximum": files.MAX_LIMIT}, listing[2]
    of_files = [listing[0], {"name": "limit", "in": "query", "schema": most}, order]
    of_purpose = {"name": "purpose", "in": "query", "schema": {"type": "string"}}
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {
        "/v1/files": {
            "post": upload,
            "get": _get("listFiles", _json_content("FileList")) | {"parameters": [*of_files, of_purpose]},
        },
        "/v1/files/{file_id}": {
            "parameters": file_id,
            "get": _get("getFile", file, "404"),
            "delete": _get("deleteFile", _json_content("DeletedFile"), "404"),
        },
        "/v1/files/{file_id}/content": {
            "parameters": file_id,
            "get": _get("getFileContent", content, "404"),
        },
        "/v1/batches": {
            "post": _post("createBatch", "NewBatch", "BatchBody"),
            "get": _get("listBatches", _json_content("BatchList")) | {"parameters": listing[:2]},
        },
        "/v1/batches/{batch_id}": {"parameters": batch_id, "get": _get("getBatch", batch, "404")},
        "/v1/batches/{batch_id}/cancel": {
            "parameters": batch_id,
            "post": _get("cancelBatch", batch, "404", "409"),
        },
    }


def message_batch_paths() -> Json:
    """Of Anthropic's batches."""
    path, batch = anthropic_batches.PATH, _json_content("MessageBatchBody")
    name = [_in_path("batch_id", "the id of a message batch")]
    pages: list[Json] = [
        {"name": "after_id", "in": "query", "schema": {"type": "string"}},
        {"name": "before_id", "in": "query", "schema": {"type": "string"}},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000}},
    ]
    listed = _get("listMessageBatches", _json_content("MessageBatchList"), prefix="AnthropicError")
    created = _post("createMessageBatch", "NewMessageBatch", "MessageBatchBody", prefix="AnthropicError")
    deleted = _json_content("DeletedMessageBatch")

    def about_one(name: str, content: Json, *errors: str) -> Json:
        return _get(name, content, "404", *errors, prefix="AnthropicError")

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


def _in_path(name: str, description: str) -> Json:
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _list_parameters() -> list[Json]:
    schemas: dict[str, Json] = {
        "after": {"type": "string"},
        "limit": {"type": "integer", "minimum": 1, "maximum": responses.MAX_LIMIT, "default": 20},
        "order": {"enum": ["asc", "desc"], "default": "desc"},
    }
    return [{"name": name, "in": "query", "schema": schema} for name, schema in schemas.items()]


def _post(name: str, request: str, answer: str, prefix: str = "Error") -> Json:
    """prefix: of the names of its error responses."""
    return {
        "operationId": name,
        "requestBody": {"required": True, "content": _json_content(request)},
        "responses": {"200": {"description": "the answer", "content": _json_content(answer)}}
        | _error_refs(tuple(_ERRORS), prefix),
    }


def _generate(name: str, request: str, answer: str, prefix: str = "Error") -> Json:
    operation = _post(name, request, answer, prefix)
    answered = operation["responses"]["200"]
    answered["description"] = "one JSON body; with `stream: true` chunks in `data:` events, then `[DONE]`"
    answered["content"]["text/event-stream"] = {}  # OpenAPI 3.1 has no schema for the events of a stream
    return operation


def _get(name: str, content: Json, *more_errors: str, prefix: str = "Error") -> Json:
    return {
        "operationId": name,
        "responses": {"200": {"description": "the answer", "content": content}}
        | _error_refs((*_GET_ERRORS, *more_errors), prefix),
    }


def _probe(name: str, meaning: str) -> Json:
    content = _json_content("Health")
    responses = {"200": {"description": meaning, "content": content}}
    failing = {"503": {"description": "not so; `detail` says why", "content": content}}
    return {
        "operationId": name,
        "responses": responses | _error_refs(("400", "403", "405", "431")) | failing,
    }


def _json_content(schema: str) -> Json:
    return {"application/json": {"schema": {"$ref": _REF.format(name=schema)}}}


def _either(schema: str, anthropic_schema: str) -> Json:
    """The second with an `anthropic-version` header."""
    schemas = [{"$ref": _REF.format(name=name)} for name in (schema, anthropic_schema)]
    return {"application/json": {"schema": {"anyOf": schemas}}}


def _error_refs(statuses: tuple[str, ...], prefix: str = "Error") -> Json:
    """In Anthropic's API the lack of capacity is 529."""
    if prefix != "Error":
        statuses = (*(status for status in statuses if status not in ("429", "503")), "529")
    return {status: {"$ref": f"#/components/responses/{prefix}{status}"} for status in sorted(statuses)}


def _error_responses() -> Json:
    texts = _ERRORS | {"529": "the queue is full or no engine is there; Retry-After says when to come back"}
    return {
        f"{prefix}{status}": {"description": text, "content": _json_content(body)}
        for prefix, body in (("Error", "ErrorBody"), ("AnthropicError", "ErrorEnvelope"))
        for status, text in texts.items()
    }


def _amend(schemas: Json, models: list[str]) -> None:
    """What the structs can't say."""
    for name in ("ChatRequest", "CompletionRequest", "ResponsesRequest"):
        properties = schemas[name]["properties"]
        properties["model"] = {"type": "string", "enum": models}
        for choice in properties["logit_bias"]["anyOf"]:
            if choice.get("type") == "object":
                choice["propertyNames"] = {"pattern": "^(0|[1-9][0-9]{0,8})$"}
    aliases = [anthropic_messages.ALIAS + model for model in models]
    for name in ("MessagesRequest", "CountRequest"):
        schemas[name]["properties"]["model"] = {"type": "string", "enum": [*models, *aliases]}
    count = {**schemas["ResponsesRequest"]}
    schemas["TokenCount"] = count | {"required": [], "title": "TokenCount"}
    for name in ("TokenizeRequest", "DetokenizeRequest"):
        schemas[name]["properties"]["model"] = {"enum": [*models, None]}
    token = {"type": "integer", "minimum": 0, "maximum": MAX_INT}
    ids = {"type": "array", "items": token, "minItems": 1}
    schemas["EmbeddingRequest"]["properties"]["input"] = _text_or_ids(ids, openai_embeddings.MAX_INPUTS)
    schemas["CompletionRequest"]["properties"]["prompt"] = _text_or_ids(ids, openai_completions.MAX_PROMPTS)


def _text_or_ids(ids: Json, most: int) -> Json:
    return {
        "anyOf": [
            {"type": "string"},
            ids,
            {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": most},
            {"type": "array", "items": ids, "minItems": 1, "maxItems": most},
        ]
    }
