"""What a call says its answer must look like, as one GrammarSpec."""

from __future__ import annotations

from penstock.call import Call
from penstock.decoding.grammar.spec import (
    GrammarSpec,
    spec_of_choices,
    spec_of_schema,
    spec_of_structural_tag,
    spec_of_text,
)
from penstock.errors import InvalidRequest


def grammar_of(call: Call) -> GrammarSpec | None:
    """None for free text. Raises InvalidRequest for what is malformed, or said twice."""
    params, form = call.sampling, call.response_format
    found: dict[str, GrammarSpec] = {}
    if form is not None and form.kind == "json_object":
        found["response_format"] = GrammarSpec("json_object")
    elif form is not None and form.kind == "json_schema":
        schema = {} if form.schema is None else form.schema
        found["response_format"] = spec_of_schema(schema, "response_format.json_schema.schema")
    if params.json_schema is not None:
        found["json_schema"] = spec_of_schema(params.json_schema, "json_schema")
    if params.regex is not None:
        found["regex"] = spec_of_text("regex", params.regex, "regex")
    if params.choice is not None:
        found["choice"] = spec_of_choices(params.choice, "choice")
    if params.grammar is not None:
        found["grammar"] = spec_of_text("grammar", params.grammar, "grammar")
    if params.structural_tag is not None:
        found["structural_tag"] = spec_of_structural_tag(params.structural_tag, "structural_tag")
    if len(found) > 1:
        names = ", ".join(found)
        raise InvalidRequest(f"{names}: an answer can have one form only; leave one", param=next(iter(found)))
    if found and params.min_tokens:
        raise InvalidRequest(
            f"min_tokens: {next(iter(found))} decides when the answer ends; leave min_tokens out",
            param="min_tokens",
        )
    return next(iter(found.values()), None)
