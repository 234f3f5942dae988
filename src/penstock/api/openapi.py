"""`/openapi.json`: an OpenAPI 3.1 document made from the structs that do the reading and writing.

Constraints come from the same annotations that the decoders enforce. Added by hand is only what a
struct can't say: lists of one kind in `prompt`, keys of `logit_bias`, the models that are served.
"""

from __future__ import annotations

from typing import Any

import msgspec

from penstock import __version__
from penstock.api import tokens
from penstock.gateway.service import Health
from penstock.wire import openai_chat, openai_completions, openai_embeddings, rerank, score
from penstock.wire.openai_common import MAX_INT, ErrorBody

Json = dict[str, Any]

_ERRORS = {
    "400": "the request is not valid; `param` names the field",
    "401": "no API key, or not this server's",
    "403": "the Host header does not name this server",
    "404": "no such route or model",
    "405": "another method; the Allow header names the right ones",
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
    ]
    _, schemas = msgspec.json.schema_components(bodies, ref_template=_REF)
    _amend(schemas, models)
    components: Json = {"schemas": schemas, "responses": _error_responses()}
    if secured:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    paths = _paths()
    for path, operations in paths.items():
        open_to_all = not secured or path in ("/health", "/ready")
        for operation in operations.values():
            operation["security"] = [] if open_to_all else [{"key": []}]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Penstock",
            "version": __version__,
            "description": "LLM inference over the OpenAI formats. Unknown fields in bodies are ignored.",
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
        "/tokenize": {"post": _post("tokenize", "TokenizeRequest", "TokenizeAnswer")},
        "/detokenize": {"post": _post("detokenize", "DetokenizeRequest", "DetokenizeAnswer")},
        "/v1/models": {"get": _get("listModels", _json_content("ModelList"))},
        "/v1/models/{model}": {
            "get": _get("getModel", _json_content("ModelBody"), "404")
            | {
                "parameters": [
                    {
                        "name": "model",
                        "in": "path",
                        "required": True,
                        "description": "may contain slashes",
                        "schema": {"type": "string", "minLength": 1},
                    }
                ]
            }
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


def _post(name: str, request: str, answer: str) -> Json:
    return {
        "operationId": name,
        "requestBody": {"required": True, "content": _json_content(request)},
        "responses": {"200": {"description": "the answer", "content": _json_content(answer)}}
        | _error_refs(tuple(_ERRORS)),
    }


def _generate(name: str, request: str, answer: str) -> Json:
    operation = _post(name, request, answer)
    answered = operation["responses"]["200"]
    answered["description"] = "one JSON body; with `stream: true` chunks in `data:` events, then `[DONE]`"
    answered["content"]["text/event-stream"] = {}  # OpenAPI 3.1 has no schema for the events of a stream
    return operation


def _get(name: str, content: Json, *more_errors: str) -> Json:
    return {
        "operationId": name,
        "responses": {"200": {"description": "the answer", "content": content}}
        | _error_refs((*_GET_ERRORS, *more_errors)),
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


def _error_refs(statuses: tuple[str, ...]) -> Json:
    return {status: {"$ref": f"#/components/responses/Error{status}"} for status in sorted(statuses)}


def _error_responses() -> Json:
    return {
        f"Error{status}": {"description": text, "content": _json_content("ErrorBody")}
        for status, text in _ERRORS.items()
    }


def _amend(schemas: Json, models: list[str]) -> None:
    """What the structs can't say."""
    for name in ("ChatRequest", "CompletionRequest"):
        properties = schemas[name]["properties"]
        properties["model"] = {"type": "string", "enum": models}
        for choice in properties["logit_bias"]["anyOf"]:
            if choice.get("type") == "object":
                choice["propertyNames"] = {"pattern": "^(0|[1-9][0-9]{0,8})$"}
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
