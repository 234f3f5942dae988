"""The published document: complete, and true under generated requests."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial

import jsonschema_rs
import pytest

from conftest import parse, request
from penstock.api.openapi.document import PARTS
from support.scripted_service import MODEL

CHAT = "/v1/chat/completions"


@pytest.fixture
async def serve(serve, tmp_path):
    """Servers whose stored responses are the test's own."""
    return partial(serve, database_url=f"sqlite:///{tmp_path}/turns.db")


async def test_the_document_lists_every_route(serve):
    """Red if a route is served but not documented, or documented but not served."""
    server = await serve()
    document = json.loads((await server.get("/openapi.json"))[2])
    for path, operations in document["paths"].items():
        for method in operations.keys() - {"parameters"}:
            url = path.replace("{model}", MODEL)
            body = b"{}" if method == "post" else b""
            answer = await server.send(request(method.upper(), url, body, "Connection: close"))
            status, _, body = parse(answer)
            named = "{" in url and b"unknown_route" not in body
            content = operations[method].get("requestBody", {}).get("content", {"application/json": {}})
            refused = status == 415 and "application/json" not in content  # a form is documented
            assert status in (200, 400) or refused or (named and status == 404), (path, method)
    routes = server.app.routes.paths()
    assert {path.replace("{model:path}", "{model}") for path in routes} == document["paths"].keys()


async def test_a_key_is_documented_only_where_it_is_needed(serve):
    """Red if the document asks for a key that is not needed, or hides one that is."""
    server = await serve(api_key="k")
    document = json.loads((await server.get("/openapi.json", "Authorization: Bearer k"))[2])
    assert document["paths"][CHAT]["post"]["security"] == [{"key": []}]
    assert document["paths"]["/health"]["get"]["security"] == []
    open_server = await serve()
    assert "securitySchemes" not in json.loads((await open_server.get("/openapi.json"))[2])["components"]


async def test_every_answer_is_described_by_its_own_schema(serve):
    """Red if two structs of one name take each other's place: clients generate code from it."""
    document = json.loads((await (await serve()).get("/openapi.json"))[2])
    count = document["paths"]["/v1/messages/count_tokens"]["post"]["responses"]["200"]["content"]
    schema = count["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert document["components"]["schemas"][schema]["required"] == ["input_tokens"]
    bodies = [body.__name__ for part in PARTS for body in part.BODIES]
    assert len(bodies) == len(set(bodies))


async def test_limits_in_the_document_are_those_enforced(serve):
    """Red if the schema of a request states another range than the reader enforces."""
    server = await serve()
    document = json.loads((await server.get("/openapi.json"))[2])
    schema = {**document["components"]["schemas"]["ChatRequest"], "components": document["components"]}
    validator = jsonschema_rs.validator_for(schema)
    base = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    cases = [
        *({"n": n} for n in (0, 1, 128, 129)),
        *({"temperature": t} for t in (-0.1, 0, 2, 100, 100.5)),
        *({"top_p": p} for p in (0, 0.1, 1, 1.1)),
        *({"stop": s} for s in ("a", "", ["a"] * 64, ["a"] * 65, [""])),
        *({"seed": s} for s in (2**64 - 1, 2**64, -(2**63), -(2**63) - 1)),
        *({"logit_bias": b} for b in ({"1": 100}, {"1": 101}, {"x": 1})),
        *(
            {"messages": m}
            for m in ([], [{"role": "x"}], [{"role": "user", "content": [{"type": "text", "text": "a"}]}])
        ),
        {"unknown": [1, {"a": None}]},
    ]
    for case in cases:
        status, _, answer = await server.post(CHAT, json.dumps(base | case).encode())
        assert (status == 200) == validator.is_valid(base | case), (case, answer)


@pytest.mark.parametrize(
    "examples", [pytest.param(12, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.nightly)]
)
async def test_schemathesis_finds_nothing(serve, examples):
    """Red if generated requests find a 5xx, a hang, an undocumented status, or an answer off its schema.

    Left out is the check that every request the schema allows is accepted: contexts end somewhere.
    """
    server = await serve(drain_s=0)
    arguments = ["run", server.url + "/openapi.json", "--max-examples", str(examples)]
    arguments += [
        *("--request-timeout", "20"),
        "--exclude-checks",
        "positive_data_acceptance",
        "--no-color",
        "--generation-database",
        "none",
    ]
    code = "import sys; from schemathesis.cli import schemathesis; schemathesis(sys.argv[1:])"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    output = (await process.stdout.read()).decode(errors="replace")
    report = "\n".join(line[:400] for line in output.splitlines())
    assert await process.wait() == 0, report[-8000:]
