"""`/openapi.json`: an OpenAPI 3.1 document made from the structs that do the reading and writing.

Constraints come from the same annotations that the decoders enforce. Added by hand is only what a
struct can't say: lists of one kind in `prompt`, keys of `logit_bias`, the models that are served.
"""

from __future__ import annotations

import msgspec

from penstock import __version__
from penstock.api.openapi import anthropic, openai, responses, server
from penstock.api.openapi.operations import REF, Json, error_responses
from penstock.wire import anthropic_messages, openai_completions, openai_embeddings
from penstock.wire.openai_common import MAX_INT

PARTS = (openai, anthropic, responses, server)


def document(models: list[str], secured: bool) -> Json:
    """The document for a server of `models`; `secured`: an API key is needed."""
    bodies = [body for part in PARTS for body in part.BODIES]
    _, schemas = msgspec.json.schema_components(bodies, ref_template=REF)
    _amend(schemas, models)
    components: Json = {"schemas": schemas, "responses": error_responses()}
    if secured:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    paths = {path: operations for part in PARTS for path, operations in part.paths().items()}
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
    counted = {"required": [], "title": "InputTokensRequest"}  # nothing in it is needed to be counted
    schemas["InputTokensRequest"] = schemas["ResponsesRequest"] | counted
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
