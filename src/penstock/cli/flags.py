"""Flags made from records: a setting is declared once, in `penstock.config`, and shows here.

`@with_flags(engine=EngineSettings)` replaces the parameter `engine` of a command by one flag per
field. The command gets a dict of the flags that were given; what was not given is absent, so the
record's own default stands. Help text and shown default come from the record.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import typer
from msgspec import Meta, Struct

from penstock.call import SamplingParams
from penstock.errors import ConfigError

S = TypeVar("S", bound=Struct)

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}

_PANELS = {
    "EngineSettings": "Engine settings",
    "ServerSettings": "Server settings",
    "SamplingParams": "Sampling",
    "WorkloadOptions": "Workload",
}

# The part of SamplingParams that makes sense at a terminal; help text here, types and defaults there.
SAMPLING_HELP = {
    "max_tokens": "tokens to generate at most; default: what is left of the context",
    "temperature": "0 is greedy",
    "top_p": "smallest set of tokens with this much probability",
    "top_k": "the k most probable tokens; 0: all",
    "min_p": "tokens with at least this share of the best one's probability",
    "repetition_penalty": "over prompt and output",
    "presence_penalty": "over the output",
    "frequency_penalty": "over the output",
    "seed": "repeats a sampled answer",
    "stop": "string that ends the answer; may be given several times",
    "ignore_eos": "go on after the end-of-sequence token",
}


def with_flags(
    *, skip: Iterable[str] = (), **records: type[Struct]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a Typer command. `skip`: fields that the command takes in its own way (an argument)."""
    skipped = frozenset(skip)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command, eval_str=True).parameters
        parameters = [p for name, p in own.items() if name not in records]
        owner: dict[str, str] = {}
        for place, record in records.items():
            for parameter in _parameters(record):
                if parameter.name not in skipped:
                    owner[parameter.name] = place
                    parameters.append(parameter)

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            given: dict[str, dict[str, Any]] = {place: {} for place in records}
            for name, place in owner.items():
                value = values.pop(name)
                if value is not None and value != []:
                    given[place][name] = _convert(records[place], name, value)
            return command(**values, **given)

        del run.__wrapped__  # Typer would follow it to the old signature
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameters(record: type[Struct]) -> list[inspect.Parameter]:
    hints = get_type_hints(record, include_extras=True)
    found = []
    for info in msgspec.structs.fields(record):
        if record is SamplingParams and info.name not in SAMPLING_HELP:
            continue
        default = info.default
        if default is msgspec.NODEFAULT:
            default = info.default_factory()
        option = _option(info.name, hints[info.name], default, panel=_PANELS[record.__name__])
        found.append(
            inspect.Parameter(info.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        )
    return found


def _option(name: str, hint: Any, default: Any, panel: str) -> Any:
    help_text = SAMPLING_HELP.get(name, "")
    if get_origin(hint) is Annotated:
        help_text = next((m.description for m in hint.__metadata__ if isinstance(m, Meta)), None) or help_text
    kind = _plain(hint)
    flag = "--" + name.replace("_", "-")
    options: dict[str, Any] = {"rich_help_panel": panel, "show_default": False}
    names: tuple[str, ...] = (flag,)
    flag_type: Any
    if kind is bool:
        names = (f"{flag}/--no-{name.replace('_', '-')}",)
        flag_type = bool
    elif kind is int and name.endswith("_bytes"):
        options |= {"metavar": "BYTES", "parser": parse_bytes}
        flag_type = int
    elif get_origin(kind) is Literal or kind in (int, float, str):
        flag_type = kind
    elif get_origin(kind) is tuple:
        flag_type = list[str]
    elif get_origin(kind) is dict and get_args(kind)[1] is float:
        options["metavar"] = "NAME=NUMBER"
        flag_type = list[str]
    else:
        options["metavar"] = "JSON"
        flag_type = str
    return Annotated[
        flag_type | None, typer.Option(*names, help=help_text + shown_default(name, default), **options)
    ]


def shown_default(name: str, default: Any) -> str:
    """` (default 32M)`, or nothing where the description says what absence means."""
    text = default_text(name, default)
    return f" (default {text})" if text else ""


def default_text(name: str, default: Any) -> str:
    """A default as one would write it: `32M`, `on`; "" for absence."""
    if default is None or default in ({}, ()):
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    if name.endswith("_bytes"):
        unit = next((u for u in "tgm" if default % _UNITS[u] == 0), "")
        return f"{default // _UNITS[unit]}{unit.upper()}"
    return str(default)


def _plain(hint: Any) -> Any:
    """`Annotated[Annotated[int, …] | None, …] -> int`."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, UnionType):
        kinds = [arg for arg in get_args(hint) if arg is not type(None)]
        return _plain(kinds[0])
    return hint


def _convert(record: type[Struct], name: str, value: Any) -> Any:
    kind = _plain(get_type_hints(record, include_extras=True)[name])
    flag = "--" + name.replace("_", "-")
    if get_origin(kind) is dict and isinstance(value, list):
        return dict(_pair(flag, item) for item in value)
    if get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, Struct)):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ConfigError(f"{flag}: {value} is not JSON ({error})") from None
    return value


def _pair(flag: str, item: str) -> tuple[str, float]:
    key, sign, number = item.partition("=")
    try:
        if sign:
            return key, float(number)
    except ValueError:
        pass  # told below, together with a missing sign
    raise ConfigError(f"{flag}: {item} is not NAME=NUMBER")


def parse_bytes(text: str | int) -> int:
    """`4G`, `512MiB`, `1e9`, `123456` → bytes; units are binary."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)(?:i?b)?\s*", str(text), re.IGNORECASE)
    if match is None:
        raise typer.BadParameter(f"{text} is not a number of bytes; write 512M or 4G")
    try:
        return int(float(match[1]) * _UNITS[match[2].lower()])
    except ValueError:
        raise typer.BadParameter(f"{text} is not a number of bytes; write 512M or 4G") from None


def sampling_params(given: dict[str, Any]) -> SamplingParams:
    """Validated SamplingParams from the flags that were given."""
    return SamplingParams(**given).validate()
