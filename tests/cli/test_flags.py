"""Flags made from records: complete, faithful, and no second home for a default."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from penstock.bench.options import WorkloadOptions
from penstock.call import SamplingParams
from penstock.cli.flags import SAMPLING_HELP, parse_bytes, sampling_params, with_flags
from penstock.config import EngineSettings, ServerSettings, build
from penstock.errors import ConfigError, InvalidRequest


def parsed(record: type, *flags: str) -> dict[str, Any]:
    """What a command gets for the record's place when these flags are given."""
    seen: dict[str, Any] = {}
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @with_flags(place=record, skip=("model",))
    def command(*, place: dict[str, Any]) -> None:
        seen.update(place)

    result = CliRunner().invoke(app, list(flags), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen


@pytest.mark.parametrize("record", [EngineSettings, ServerSettings, WorkloadOptions])
def test_absent_flags_leave_every_default_to_the_record(record: type) -> None:
    """Red if a flag restates a default: the record and the command line could then disagree."""
    assert parsed(record) == {}
    assert build(record, **parsed(record)) == record()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--token-budget", "64"], {"token_budget": 64}),
        (["--no-prefix-cache"], {"prefix_cache": False}),
        (["--prefix-cache"], {"prefix_cache": True}),
        (["--kv-bytes", "2G"], {"kv_bytes": 2 << 30}),
        (["--kv-share", "0.5"], {"kv_share": 0.5}),
        (["--backend", "reference"], {"backend": "reference"}),
        (
            ["--tenant-weights", "a=2", "--tenant-weights", "b=0.5"],
            {"tenant_weights": {"a": 2.0, "b": 0.5}},
        ),
    ],
)
def test_given_flags_become_settings(flags: list[str], expected: dict[str, Any]) -> None:
    """Red if a flag's value reaches the settings under another name, type or scale."""
    assert parsed(EngineSettings, *flags) == expected
    settings = build(EngineSettings, **parsed(EngineSettings, *flags))
    for name, value in expected.items():
        assert getattr(settings, name) == value


def test_repeated_flags_become_tuples() -> None:
    """Red if only the last of several --allowed-hosts counts."""
    flags = ["--allowed-hosts", "a.example", "--allowed-hosts", "b.example"]
    assert build(ServerSettings, **parsed(ServerSettings, *flags)).allowed_hosts == ("a.example", "b.example")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tenant-weights", "a"], "a is not NAME=NUMBER"),
        (["--tenant-weights", "a=x"], "a=x is not NAME=NUMBER"),
        (["--speculation", "{"], "{ is not JSON"),
    ],
)
def test_unreadable_values_are_named(flags: list[str], words: str) -> None:
    """Red if a value that can't be read is dropped, or reported without saying which one."""
    with pytest.raises(ConfigError, match="--"):
        parsed(EngineSettings, *flags)
    with pytest.raises(ConfigError) as caught:
        parsed(EngineSettings, *flags)
    assert words in caught.value.message


@given(st.integers(0, 2**50), st.sampled_from(["", "K", "m", "G", "MiB", "kb"]))
def test_bytes_with_units(number: int, unit: str) -> None:
    """Red if a unit is read as decimal, or an exact number of bytes is rounded."""
    factor = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}[unit[:1].lower()]
    if number * factor < 2**53:
        assert parse_bytes(f"{number}{unit}") == number * factor


@pytest.mark.parametrize("text", ["", "G", "1.2.3G", "4 apples", "-1", "1e"])
def test_bytes_that_are_none(text: str) -> None:
    """Red if a typing error in a size becomes some number."""
    with pytest.raises(typer.BadParameter):
        parse_bytes(text)


def test_sampling_flags_are_fields_of_sampling_params() -> None:
    """Red if a sampling flag is offered that SamplingParams does not know."""
    assert set(SAMPLING_HELP) <= set(SamplingParams.__struct_fields__)
    given_flags = parsed(SamplingParams, "--temperature", "0", "--stop", "a", "--stop", "b", "--ignore-eos")
    assert sampling_params(given_flags) == SamplingParams(temperature=0.0, stop=("a", "b"), ignore_eos=True)


def test_sampling_flags_are_checked() -> None:
    """Red if a value out of range is found only after the model was loaded."""
    with pytest.raises(InvalidRequest, match="top_p"):
        sampling_params({"top_p": 1.5})
