"""The server's own routes: tokens, models, health, metrics."""

from __future__ import annotations

from penstock.api import tokens
from penstock.api.bodies import ModelBody, ModelList, VersionBody
from penstock.api.openapi.operations import Json, either, get, in_path, json_content, post, probe
from penstock.gateway.service import Health
from penstock.wire.openai_common import ErrorBody

BODIES = (
    tokens.TokenizeRequest,
    tokens.TokenizeAnswer,
    tokens.DetokenizeRequest,
    tokens.DetokenizeAnswer,
    ModelBody,
    ModelList,
    VersionBody,
    Health,
    ErrorBody,
)


def paths() -> Json:
    return {
        "/tokenize": {"post": post("tokenize", "TokenizeRequest", "TokenizeAnswer")},
        "/detokenize": {"post": post("detokenize", "DetokenizeRequest", "DetokenizeAnswer")},
        "/v1/models": {"get": get("listModels", either("ModelList", "AnthropicModelList"))},
        "/v1/models/{model}": {
            "get": get("getModel", either("ModelBody", "AnthropicModel"), "404")
            | {"parameters": [in_path("model", "may contain slashes")]}
        },
        "/health": {"get": probe("health", "the engine answers and, if it has work, steps complete")},
        "/ready": {"get": probe("ready", "requests are accepted now")},
        "/metrics": {"get": get("metrics", {"text/plain": {"schema": {"type": "string"}}})},
        "/version": {"get": get("version", json_content("VersionBody"))},
        "/openapi.json": {"get": get("openapi", {"application/json": {"schema": {"type": "object"}}})},
    }
