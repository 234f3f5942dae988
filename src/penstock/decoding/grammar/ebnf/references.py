"""Where the references of a JSON schema point: pointers, anchors, identifiers within one document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from penstock.decoding.grammar.ebnf.rules import UnkeptError

# Keywords whose value is data, and those whose value holds schemas by name.
DATA = frozenset(["enum", "const", "default", "examples", "example"])
NAMED = frozenset(
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"]
)


class References:
    def __init__(self, document: dict[str, Any]) -> None:
        self._resources: dict[str, Any] = {"": document}
        self._anchors: dict[tuple[str, str], Any] = {}
        self._bases: dict[int, str] = {}
        self._walk(document, "")

    def target(self, schema: dict[str, Any]) -> Any:
        """What the `$ref` of `schema` points to. Raises UnkeptError."""
        reference = schema["$ref"]
        if not isinstance(reference, str):
            raise UnkeptError(f"$ref: {reference!r} is not a string")
        base = self._bases.get(id(schema), "")
        url, fragment = urldefrag(reference)
        url = urldefrag(urljoin(base, url))[0] if url else base
        found = self._resources.get(url)
        if found is None:
            raise UnkeptError(f"$ref: {reference!r} is not in the schema")
        if fragment.startswith("/"):
            for step in fragment[1:].split("/"):
                found = _inner(found, unquote(step).replace("~1", "/").replace("~0", "~"))
        elif fragment:
            found = self._anchors.get((url, unquote(fragment)))
        if not isinstance(found, dict | bool):
            raise UnkeptError(f"$ref: there is nothing at {reference!r}")
        return found

    def _walk(self, schema: Any, base: str) -> None:
        if isinstance(schema, list):
            for item in schema:
                self._walk(item, base)
        if not isinstance(schema, dict):
            return
        for keyword in ("$id", "id"):
            if isinstance(name := schema.get(keyword), str):
                url, anchor = urldefrag(name)
                base = urljoin(base, url) if url else base
                if url:
                    self._resources.setdefault(base, schema)
                if anchor:
                    self._anchors[base, anchor] = schema
        if isinstance(plain := schema.get("$anchor"), str):
            self._anchors[base, plain] = schema
        self._bases[id(schema)] = base
        for inner in subschemas(schema):
            self._walk(inner, base)


def subschemas(schema: dict[str, Any]) -> Iterator[Any]:
    """What may be a schema below `schema`, or a list of such."""
    for keyword, value in schema.items():
        if keyword in NAMED and isinstance(value, dict):
            yield from value.values()
        elif keyword not in DATA:
            yield value


def _inner(value: Any, step: str) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    if isinstance(value, list) and step.isdigit() and int(step) < len(value):
        return value[int(step)]
    return None
