"""A JSON schema as shapes of values.

Everything that must hold at one place (references, `allOf`, the schemas of one property in several of them)
is one Conjunction, a set of schemas of the document; so schemas that contain themselves are finite. What must
not hold is turned into what must (`negation.py`). `oneOf` is kept where its branches exclude each other, or
can be made to.

Where a language can't be written exactly a part of it is, so that every answer is valid: members come in the
order in which they are listed, and beside patternProperties only members that it or `properties` describes.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from msgspec.structs import replace

from penstock.decoding.grammar.ebnf import keywords
from penstock.decoding.grammar.ebnf.automata import Automaton, intersection, of_expression
from penstock.decoding.grammar.ebnf.disjoint import Disjoint
from penstock.decoding.grammar.ebnf.expressions import Node, searched, whole
from penstock.decoding.grammar.ebnf.formats import EXPRESSIONS, UNKEPT
from penstock.decoding.grammar.ebnf.negation import EXCLUDED, negated
from penstock.decoding.grammar.ebnf.numbers import Bounds, common_multiple
from penstock.decoding.grammar.ebnf.references import References, subschemas
from penstock.decoding.grammar.ebnf.rules import UnkeptError
from penstock.decoding.grammar.ebnf.shapes import (
    Array,
    Conjunction,
    Literals,
    Member,
    Number,
    Object,
    Part,
    Shape,
    Text,
    canonical,
    type_of,
    types_of,
)

MAX_BRANCHES = 64  # of one place
_MAX_STEPS = 20_000  # of finding them, over the whole schema
_MAX_DEPTH = 64  # of branches inside of branches
_OPENED = "allOf"  # decided: what the schema refers to is in the conjunction
_OF_ARRAYS = ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems")
_OF_OBJECTS = (
    *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
    *("minProperties", "maxProperties"),
)


class Document:
    def __init__(self, schema: dict[str, Any]) -> None:
        self._references = References(schema)
        # Drafts up to 7: whatever stands beside a $ref is ignored.
        self._is_legacy = "json-schema.org/draft-0" in str(schema.get("$schema", ""))
        self._schemas: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._further: dict[int, list[Any]] = {}
        self._shapes: dict[Conjunction, tuple[Shape, ...] | None] = {}
        self._steps = 0
        self._number_all(schema)
        self.root: Conjunction = self.of(schema)
        self._disjoint = Disjoint(self.shapes)

    def of(self, *schemas: Any) -> Conjunction:
        """All of `schemas`. What is always true says nothing."""
        return frozenset(
            Part(self._number(schema)) for schema in schemas if schema is not True and schema != {}
        )

    def shapes(self, conjunction: Conjunction) -> tuple[Shape, ...]:
        """Whose union is valid; none if nothing is. Raises UnkeptError."""
        if conjunction in self._shapes:
            if (known := self._shapes[conjunction]) is None:
                raise UnkeptError("oneOf, propertyNames: of a schema that contains itself")
            return known
        self._shapes[conjunction] = None  # being found
        try:
            found = self._found(conjunction)
        except UnkeptError:
            del self._shapes[conjunction]
            raise
        self._shapes[conjunction] = found
        return found

    # -------------------------------------------------------------------------- what must hold at one place

    def _number_all(self, schema: Any) -> None:
        """In the order of the document, which decides about the order of members."""
        if isinstance(schema, list):
            for item in schema:
                self._number_all(item)
        elif isinstance(schema, dict):
            self._number(schema)
            for inner in subschemas(schema):
                self._number_all(inner)

    def _number(self, schema: Any) -> int:
        if id(schema) not in self._numbers:
            self._numbers[id(schema)] = len(self._schemas)
            self._schemas.append(schema)  # which keeps it alive, and its id
        return self._numbers[id(schema)]

    def _found(self, conjunction: Conjunction) -> tuple[Shape, ...]:
        found: list[Shape] = []
        for branch in self._branches(conjunction, 0):
            found += self._shapes_of(branch)
        return tuple(found)

    def _branches(self, conjunction: Iterable[Part], depth: int) -> list[Conjunction]:
        """Conjunctions without references and alternatives, one of which must hold."""
        if depth > _MAX_DEPTH:
            raise UnkeptError(f"anyOf, oneOf: nested deeper than {_MAX_DEPTH} without a value in between")
        todo, done = sorted(conjunction, reverse=True), set[Part]()
        while todo:
            part = todo.pop()
            schema = self._schemas[part.schema]
            self._steps += 1
            if self._steps > _MAX_STEPS:
                raise UnkeptError("anyOf, oneOf: the schema has too many alternatives")
            if schema is False:
                return []
            opened = Part(part.schema, part.decided | {_OPENED})
            if opened in done or schema is True:
                continue
            if "$ref" in schema and _OPENED not in part.decided:
                todo += self.of(self._references.target(schema))
                if self._is_legacy:
                    continue
            keywords.check(schema, self._is_legacy)
            done.add(opened)
            if _OPENED not in part.decided:
                todo += self.of(*keywords.schemas(schema, "allOf"), *self._implied(schema))
            for keyword in ("anyOf", "oneOf"):
                if keyword in schema and keyword not in part.decided:
                    decided = Part(part.schema, opened.decided | {keyword})
                    rest = frozenset([*todo, *(done - {opened}), decided])
                    return self._distributed(schema, keyword, rest, depth)
        return [frozenset(done)]

    def _distributed(self, schema: Any, keyword: str, rest: Conjunction, depth: int) -> list[Conjunction]:
        options = keywords.schemas(schema, keyword)
        found: list[Conjunction] = []
        for option in self._exclusive(options, rest) if keyword == "oneOf" else map(self.of, options):
            found += self._branches(rest | option, depth + 1)
            if len(found) > MAX_BRANCHES:
                raise UnkeptError(f"{keyword}: more than {MAX_BRANCHES} alternatives at one place")
        return list(dict.fromkeys(found))

    def _exclusive(self, options: list[Any], rest: Conjunction) -> list[Conjunction]:
        """Each of `options` where none of the others holds."""
        by_type = [_by_type(self.shapes(rest | self.of(option))) for option in options]
        found = []
        for at, option in enumerate(options):
            kinds, others = set(by_type[at]), dict[int, Any]()
            for kind, shapes in by_type[at].items():
                for place, theirs in enumerate(by_type):
                    if place == at or self._disjoint.of_shapes(shapes, theirs.get(kind, ())):
                        continue
                    if _is_everything(kind, theirs[kind]):
                        kinds.discard(kind)
                    else:
                        others[place] = options[place]
            try:
                excluded = [
                    self._kept({"anyOf": negated(other, self._resolved)}) for other in others.values()
                ]
            except UnkeptError as reason:
                raise UnkeptError(f"oneOf: its branches are not told apart ({reason})") from None
            left = [] if kinds == set(by_type[at]) else [self._kept({"type": sorted(kinds)})]
            found.append(self.of(option, *excluded, *left))
        return found

    def _implied(self, schema: dict[str, Any]) -> list[Any]:
        """What the keywords that speak of other schemas than their own come to."""
        number = self._number(schema)
        if number not in self._further:
            self._further[number] = [self._kept(further) for further in self._implications(schema)]
        return self._further[number]

    def _implications(self, schema: dict[str, Any]) -> Iterable[Any]:
        if "not" in schema:
            yield {"anyOf": negated(keywords.one_schema("not", schema["not"]), self._resolved)}
        if "if" in schema and ("then" in schema or "else" in schema):
            condition = keywords.one_schema("if", schema["if"])
            then = keywords.one_schema("then", schema.get("then", True))
            other = keywords.one_schema("else", schema.get("else", True))
            fails = {"anyOf": negated(condition, self._resolved)}
            yield {"anyOf": [{"allOf": [condition, then]}, {"allOf": [fails, other]}]}
        for keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
            value = schema.get(keyword, {})
            if not isinstance(value, dict):
                raise UnkeptError(f"{keyword}: not an object")
            for name, needed in value.items():
                if isinstance(needed, list):
                    needed = {"required": keywords.names(keyword, needed)}
                present = {"type": "object", "required": [name]}
                absent = {"properties": {name: False}}
                yield {"anyOf": [absent, {"allOf": [present, keywords.one_schema(keyword, needed)]}]}

    def _resolved(self, schema: dict[str, Any]) -> Any:
        return self._references.target(schema)

    def _kept(self, schema: Any) -> Any:
        """A schema that is not of the document, with its parts numbered."""
        self._number_all(schema)
        return schema

    # -------------------------------------------------------------------------- the shapes of a branch

    def _shapes_of(self, branch: Conjunction) -> list[Shape]:
        schemas = self._in_order(branch)
        allowed = [keywords.types(schema) for schema in schemas]
        kinds = {"object", "array", "string", "number", "boolean", "null"}
        for named in allowed:
            kinds &= named | ({"number"} if "integer" in named else set())
        whole_only = any("integer" in named and "number" not in named for named in allowed)
        values = _common([values for schema in schemas for values in keywords.literals(schema)])
        if values is not None:
            values = [v for v in values if type_of(v) in kinds and self._permits(v, schemas, whole_only)]
            return [Literals(tuple(values))] if values else []
        found: list[Shape | None] = []
        if "object" in kinds:
            found.append(self._object(schemas))
        if "array" in kinds:
            found.append(self._array(schemas))
        if "string" in kinds:
            found.append(self._text(schemas))
        if "number" in kinds:
            found.append(_number(schemas, whole_only))
        plain = [
            value for value, kind in ((True, "boolean"), (False, "boolean"), (None, "null")) if kind in kinds
        ]
        found.append(Literals(tuple(plain)) if plain else None)
        return [shape for shape in found if shape is not None]

    def _in_order(self, branch: Conjunction) -> list[Any]:
        """The schemas of a branch as they stand in the document, what one refers to before itself: the
        members of a value come in this order."""
        numbers, seen, ordered = {part.schema for part in branch}, set[int](), list[Any]()

        def visit(number: int) -> None:
            if number not in seen:
                seen.add(number)
                for inner in self._referred(self._schemas[number]):
                    visit(self._number(inner))
                if number in numbers:
                    ordered.append(self._schemas[number])

        referred = {self._number(inner) for n in numbers for inner in self._referred(self._schemas[n])}
        for number in [*sorted(numbers - referred), *sorted(numbers)]:
            visit(number)
        return ordered

    def _referred(self, schema: Any) -> list[Any]:
        if isinstance(schema, bool):
            return []
        targets = [self._references.target(schema)] if "$ref" in schema else []
        return [*targets, *keywords.schemas(schema, "allOf")]

    def _permits(self, value: Any, schemas: list[Any], whole_only: bool) -> bool:
        """Whether a literal of the right type is what the other keywords ask for."""
        if isinstance(value, str):
            text = self._text(schemas)
            return text.permits(value)
        if isinstance(value, dict | list):
            spoken = _OF_OBJECTS if isinstance(value, dict) else _OF_ARRAYS
            for keyword in spoken:
                if any(keyword in schema for schema in schemas):
                    raise UnkeptError(f"{keyword} beside enum or const")
            return True
        if isinstance(value, bool) or value is None:
            return True
        number = _number(schemas, whole_only)
        return number is not None and number.permits(value)

    def _text(self, schemas: list[Any]) -> Text:
        text = Text()
        for schema in schemas:
            text = text.within(keywords.count(schema, "minLength") or 0, keywords.count(schema, "maxLength"))
            for pattern in keywords.texts(schema, "pattern"):
                text = text.matching(_read("pattern", pattern))
            for name in keywords.texts(schema, "format"):
                if name in UNKEPT:
                    raise UnkeptError(f"format: {name!r} can't be kept")
                if name in EXPRESSIONS:
                    text = replace(text.matching(whole(EXPRESSIONS[name])), is_partial=True)
            text = replace(text, excluded=text.excluded | frozenset(schema.get(EXCLUDED, ())))
        return text

    def _array(self, schemas: list[Any]) -> Array | None:
        lists = [_items(schema) for schema in schemas]
        prefix = tuple(
            self.of(*(first[at] if at < len(first) else rest for first, rest in lists))
            for at in range(max((len(first) for first, _ in lists), default=0))
        )
        least = max((keywords.count(schema, "minItems") or 0 for schema in schemas), default=0)
        most = _least_of(keywords.count(schema, "maxItems") for schema in schemas)
        if most is not None and least > most:
            return None
        unique = any(schema.get("uniqueItems") is True for schema in schemas)
        return Array(prefix, self.of(*(rest for _, rest in lists)), least, most, unique)

    def _object(self, schemas: list[Any]) -> Object | None:
        required = dict.fromkeys(
            name
            for schema in schemas
            if "required" in schema
            for name in keywords.names("required", schema["required"])
        )
        listed = [keywords.named_schemas(schema, "properties") for schema in schemas]
        patterned = [
            {of_expression(_read("patternProperties", source)): inner for source, inner in properties.items()}
            for properties in (keywords.named_schemas(schema, "patternProperties") for schema in schemas)
        ]
        additional = [
            keywords.one_schema("additionalProperties", s.get("additionalProperties", True)) for s in schemas
        ]
        names = self._names(schemas)
        listed_names = dict.fromkeys([*(name for properties in listed for name in properties), *required])
        members = []
        for name in listed_names:
            value = self._member(name, listed, patterned, additional)
            if names is not None and not names.permits(name):
                value = self.of(False)
            members.append(Member(name, value, name in required))
        least = max((keywords.count(schema, "minProperties") or 0 for schema in schemas), default=0)
        most = _least_of(keywords.count(schema, "maxProperties") for schema in schemas)
        if most is not None and max(least, len(required)) > most:
            return None
        patterns = self._patterns(patterned, additional)
        named = frozenset(listed_names)
        return Object(tuple(members), named, patterns, self.of(*additional), names, least, most)

    def _member(
        self, name: str, listed: list[Any], patterned: list[dict[Automaton, Any]], additional: list[Any]
    ) -> Conjunction:
        """What the value of a member must be."""
        found: list[Any] = []
        for properties, patterns, others in zip(listed, patterned, additional, strict=True):
            own = [properties[name]] if name in properties else []
            own += [inner for pattern, inner in patterns.items() if pattern.matches(name)]
            found += own or [others]
        return self.of(*found)

    def _patterns(
        self, patterned: list[dict[Automaton, Any]], additional: list[Any]
    ) -> tuple[tuple[Automaton, Conjunction], ...]:
        """Members by what their names match; a name matches one pattern only, or all say the same."""
        found: dict[Automaton, Conjunction] = {}
        for pattern in dict.fromkeys(pattern for patterns in patterned for pattern in patterns):
            asked: list[Any] = []
            for patterns, others in zip(patterned, additional, strict=True):
                asked.append(patterns.get(pattern, others))
            found[pattern] = self.of(*asked)
        everywhere = list(found.items())
        for at, (pattern, value) in enumerate(everywhere):
            for other, its_value in everywhere[:at]:
                if value != its_value and not intersection(pattern, other).is_empty:
                    raise UnkeptError("patternProperties: one name may match two of its patterns")
        return tuple(everywhere)

    def _names(self, schemas: list[Any]) -> Text | None:
        """What propertyNames asks for; None if nothing."""
        asked = [schema["propertyNames"] for schema in schemas if "propertyNames" in schema]
        if not asked:
            return None
        shapes = self.shapes(
            self.of({"type": "string"}, *(keywords.one_schema("propertyNames", s) for s in asked))
        )
        if len(shapes) != 1 or not isinstance(shapes[0], Text):
            raise UnkeptError("propertyNames: names that are not one pattern or length")
        return shapes[0]


def _by_type(shapes: Iterable[Shape]) -> dict[str, tuple[Shape, ...]]:
    found: dict[str, tuple[Shape, ...]] = {}
    for shape in shapes:
        for kind in dict.fromkeys(types_of(shape)):
            part = shape
            if isinstance(shape, Literals):
                part = Literals(tuple(value for value in shape.values if type_of(value) == kind))
            found[kind] = (*found.get(kind, ()), part)
    return found


def _is_everything(kind: str, shapes: tuple[Shape, ...]) -> bool:
    """Whether all values of a type are valid."""
    everything = {"string": Text(), "number": Number(), "array": Array(), "object": Object()}
    if kind in everything:
        return everything[kind] in shapes
    values = {value for shape in shapes if isinstance(shape, Literals) for value in shape.values}
    return len(values) == (2 if kind == "boolean" else 1)


def _items(schema: dict[str, Any]) -> tuple[list[Any], Any]:
    """The schemas of the first items, and that of the others."""
    items = schema.get("items", True)
    if isinstance(items, list):
        other = schema.get("additionalItems", True)
        return keywords.schemas(schema, "items"), keywords.one_schema("additionalItems", other)
    return keywords.schemas(schema, "prefixItems"), keywords.one_schema("items", items)


def _read(keyword: str, source: str) -> Node:
    try:
        return searched(source)
    except UnkeptError as reason:
        raise UnkeptError(f"{keyword}: {reason}") from None


def _number(schemas: list[Any], whole_only: bool) -> Number | None:
    bounds, steps = Bounds(), [Decimal(1)] if whole_only else []
    for schema in schemas:
        bounds = bounds.both(keywords.bounds(schema))
        steps += keywords.steps(schema)
    return None if bounds.is_empty else Number(bounds, common_multiple(steps))


def _common(lists: list[list[Any]]) -> list[Any] | None:
    """The values that are in all lists, each once; None without a list."""
    if not lists:
        return None
    others = [{canonical(value) for value in values} for values in lists[1:]]
    found = {canonical(value): value for value in lists[0]}
    return [value for text, value in found.items() if all(text in other for other in others)]


def _least_of(limits: Iterable[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
