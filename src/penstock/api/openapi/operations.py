"""What the operations of an OpenAPI 3.1 document are made of."""

from __future__ import annotations

from typing import Any

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
REF = "#/components/schemas/{name}"


def in_path(name: str, description: str) -> Json:
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def post(name: str, request: str, answer: str, prefix: str = "Error") -> Json:
    """prefix: of the names of its error responses."""
    return {
        "operationId": name,
        "requestBody": {"required": True, "content": json_content(request)},
        "responses": {"200": {"description": "the answer", "content": json_content(answer)}}
        | error_refs(tuple(_ERRORS), prefix),
    }


def generate(name: str, request: str, answer: str, prefix: str = "Error") -> Json:
    operation = post(name, request, answer, prefix)
    answered = operation["responses"]["200"]
    answered["description"] = "one JSON body; with `stream: true` chunks in `data:` events, then `[DONE]`"
    answered["content"]["text/event-stream"] = {}  # OpenAPI 3.1 has no schema for the events of a stream
    return operation


def get(name: str, content: Json, *more_errors: str, prefix: str = "Error") -> Json:
    return {
        "operationId": name,
        "responses": {"200": {"description": "the answer", "content": content}}
        | error_refs((*_GET_ERRORS, *more_errors), prefix),
    }


def aliases(paths: tuple[str, ...], name: str, request: str, answer: str) -> Json:
    """One operation under all its paths; operation ids are unique."""
    return {
        path: {"post": post(name if number == 0 else f"{name}{number + 1}", request, answer)}
        for number, path in enumerate(paths)
    }


def probe(name: str, meaning: str) -> Json:
    content = json_content("Health")
    responses = {"200": {"description": meaning, "content": content}}
    failing = {"503": {"description": "not so; `detail` says why", "content": content}}
    return {
        "operationId": name,
        "responses": responses | error_refs(("400", "403", "405", "431")) | failing,
    }


def json_content(schema: str) -> Json:
    return {"application/json": {"schema": {"$ref": REF.format(name=schema)}}}


def either(schema: str, anthropic_schema: str) -> Json:
    """The second with an `anthropic-version` header."""
    schemas = [{"$ref": REF.format(name=name)} for name in (schema, anthropic_schema)]
    return {"application/json": {"schema": {"anyOf": schemas}}}


def error_refs(statuses: tuple[str, ...], prefix: str = "Error") -> Json:
    """In Anthropic's API the lack of capacity is 529."""
    if prefix != "Error":
        statuses = (*(status for status in statuses if status not in ("429", "503")), "529")
    return {status: {"$ref": f"#/components/responses/{prefix}{status}"} for status in sorted(statuses)}


def error_responses() -> Json:
    texts = _ERRORS | {"529": "the queue is full or no engine is there; Retry-After says when to come back"}
    return {
        f"{prefix}{status}": {"description": text, "content": json_content(body)}
        for prefix, body in (("Error", "ErrorBody"), ("AnthropicError", "ErrorEnvelope"))
        for status, text in texts.items()
    }
