"""The format of a model's output, from its chat template or by name.

A template shows how the model was taught to write calls: it renders those of the history. The signs are
looked for in the order of `_ORDER`, the most specific first, because families share markers (`<tool_call>`
alone is Hermes).
"""

from __future__ import annotations

from penstock.errors import InvalidRequest
from penstock.text.output.families import (
    deepseek,
    functionary,
    gemma,
    harmony,
    hermes,
    json_lists,
    json_objects,
    kimi,
    mistral,
    pythonic,
    tags,
)
from penstock.text.output.format import OutputFormat

_ORDER = (
    harmony.GPT_OSS,
    kimi.KIMI_K3,
    kimi.KIMI_K2,
    tags.MINIMAX_M3,
    tags.MINIMAX_M2,
    tags.STEP3,
    tags.SEED_OSS,
    tags.COHERE_TAGS,
    deepseek.GIGACHAT35,
    deepseek.DEEPSEEK_V32,
    deepseek.DEEPSEEK_V4,
    deepseek.DEEPSEEK_V3,
    deepseek.DEEPSEEK_V31,
    gemma.GEMMA4,
    gemma.FUNCTION_GEMMA,
    json_lists.APERTUS,
    json_lists.COHERE,
    json_lists.COMMAND_R,
    json_objects.GIGACHAT3,
    json_objects.INTERNLM2,
    hermes.LONGCAT,
    pythonic.LLAMA4,
    pythonic.LFM2,
    pythonic.OLMO3,
    tags.GLM,
    tags.QWEN3_CODER,
    functionary.FUNCTIONARY_V32,
    functionary.FUNCTIONARY_V31,
    json_lists.NEMOTRON_NANO,
    json_lists.PHI4_MINI,
    json_lists.GRANITE,
    json_lists.XLAM,
    mistral.MISTRAL_V11,
    mistral.MISTRAL,
    json_lists.HUNYUAN,
    json_lists.JAMBA,
    hermes.ERNIE,
    hermes.EXAONE,
    json_lists.GRANITE_20B,
    hermes.HERMES,
    json_objects.LLAMA3,
)

FORMATS: dict[str, OutputFormat] = {
    form.name: form for form in (*_ORDER, pythonic.PYTHONIC, hermes.BUILTIN, hermes.PLAIN)
}


def format_for_template(source: str | None) -> OutputFormat:
    """The format of the template `source` (Jinja); the built-in one if it shows none or there is none."""
    if source is not None:
        for form in _ORDER:
            if any(all(text in source for text in sign) for sign in form.signs):
                return form
    return hermes.BUILTIN


def format_by_name(name: str) -> OutputFormat:
    """Raises InvalidRequest naming those that there are."""
    if name not in FORMATS:
        raise InvalidRequest(f"output format {name!r}: unknown; there are {', '.join(sorted(FORMATS))}")
    return FORMATS[name]
