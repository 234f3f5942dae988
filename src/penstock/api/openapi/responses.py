"""The Responses format, conversations, and why a stored prompt missed the cache."""

from __future__ import annotations

from penstock.api import conversations, prefix_miss, responses
from penstock.api.openapi.operations import Json, generate, get, in_path, json_content, post
from penstock.wire import openai_responses, openai_responses_body, openai_responses_compact

BODIES = (
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
)


def paths() -> Json:
    return {**_response_paths(), **_conversation_paths()}


def _response_paths() -> Json:
    """Of answers in the Responses format, and of those that are stored."""
    name = [in_path("response_id", "the id of a stored response")]
    response, request = json_content("ResponseBody"), "ResponsesRequest"
    return {
        openai_responses.PATH: {"post": generate("createResponse", request, "ResponseBody")},
        openai_responses_compact.PATH: {"post": post("compactResponse", request, "CompactedResponse")},
        "/debug/prefix-miss": {"post": post("comparePrefixes", "PrefixMissRequest", "PrefixMissBody")},
        "/debug/prefix-miss/{response_id}": {
            "parameters": name,
            "get": get("explainPrefixMiss", json_content("PrefixMissBody"), "404"),
        },
        "/v1/responses/input_tokens": {"post": post("countInputTokens", "InputTokensRequest", "InputTokens")},
        "/v1/responses/{response_id}": {
            "parameters": name,
            "get": get("getResponse", response, "404"),
            "delete": get("deleteResponse", json_content("DeletedResponse"), "404"),
        },
        "/v1/responses/{response_id}/cancel": {
            "parameters": name,
            "post": get("cancelResponse", response, "404"),
        },
        "/v1/responses/{response_id}/input_items": {
            "parameters": name + list_parameters(),
            "get": get("listInputItems", json_content("ItemList"), "404"),
        },
    }


def _conversation_paths() -> Json:
    name = [in_path("conversation_id", "the id of a conversation")]
    item = [*name, in_path("item_id", "the id of one of its items")]
    conversation, items = json_content("ConversationBody"), json_content("ItemList")
    deleted = json_content("DeletedConversation")
    return {
        "/v1/conversations": {"post": post("createConversation", "NewConversation", "ConversationBody")},
        "/v1/conversations/{conversation_id}": {
            "parameters": name,
            "get": get("getConversation", conversation, "404"),
            "post": post("updateConversation", "ConversationUpdate", "ConversationBody"),
            "delete": get("deleteConversation", deleted, "404"),
        },
        "/v1/conversations/{conversation_id}/items": {
            "parameters": name,
            "post": post("createConversationItems", "NewItems", "ItemList"),
            "get": get("listConversationItems", items, "404") | {"parameters": list_parameters()},
        },
        "/v1/conversations/{conversation_id}/items/{item_id}": {
            "parameters": item,
            "get": get("getConversationItem", {"application/json": {"schema": {"type": "object"}}}, "404"),
            "delete": get("deleteConversationItem", conversation, "404"),
        },
    }


def list_parameters() -> list[Json]:
    schemas: dict[str, Json] = {
        "after": {"type": "string"},
        "limit": {"type": "integer", "minimum": 1, "maximum": responses.MAX_LIMIT, "default": 20},
        "order": {"enum": ["asc", "desc"], "default": "desc"},
    }
    return [{"name": name, "in": "query", "schema": schema} for name, schema in schemas.items()]
