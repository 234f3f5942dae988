"""The page docs/settings.md, made from the settings records.

    python -m penstock.cli.settings_page > docs/settings.md

A test compares the page with the records, so it can't lag.
"""

from __future__ import annotations

import sys

from msgspec import Struct

from penstock.cli.flags import default_text
from penstock.config import EngineSettings, ServerSettings, SpeculationSettings, describe

_HEAD = """# Settings

Made from `src/penstock/config.py` by `python -m penstock.cli.settings_page > docs/settings.md`: edit the
records, not this page. A setting has one name everywhere: `token_budget` in the settings tree,
`--token-budget` on the command line (`--no-prefix-cache` switches a flag off), `LLM(token_budget=…)` in
Python. Flags for bytes take units: `--kv-bytes 4G`.
"""

_SECTIONS: tuple[tuple[str, str, type[Struct]], ...] = (
    (
        "Engine",
        "`penstock serve`, `engine`, `run`, `chat`, `batch`, `bench offline`; keyword arguments of `LLM`.",
        EngineSettings,
    ),
    (
        "Speculation",
        'The keys of `speculation`, an object: `--speculation \'{"method": "suffix"}\'`. A method is given.',
        SpeculationSettings,
    ),
    ("Server", "`penstock serve`.", ServerSettings),
)


def page() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD]
    for title, where, record in _SECTIONS:
        parts += [
            f"\n## {title}\n\n{where}\n\n| setting | type | default | meaning |\n| --- | --- | --- | --- |\n"
        ]
        for name, kind, default, description in describe(record):
            shown = default_text(name, default) or "—"
            kind = kind.replace("|", " \\| ")
            parts.append(f"| `{name}` | {kind} | {shown} | {description} |\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
