"""A Vocabulary from a model folder: tokenizer.json and the small JSON files beside it.

tokenizer.json                    the `tokenizers` library's own form; encoding is taken as it is, the tokens
                                  that it puts around a text included (as transformers does)
tokenizer_config.json             bos_token, eos_token, …, chat_template
special_tokens_map.json           the same roles, older; used where tokenizer_config.json has none
chat_template.jinja, .json        newer places of the template; they win
generation_config.json, config.json   eos_token_id: one id or several

Only decoders whose tokens stand for bytes are served (byte-level, SentencePiece); others are refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from penstock.errors import ModelRefused
from penstock.text.pieces import Spelling
from penstock.text.vocabulary import Vocabulary, end_ids

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def load(folder: Path) -> Vocabulary:
    """Vocabulary of the model in `folder`. ModelRefused naming what is missing or not understood."""
    from tokenizers import Tokenizer as Backend

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelRefused(f"{folder}: no tokenizer.json; convert the tokenizer to that form first")
    try:
        data = path.read_bytes()
        backend = Backend.from_buffer(data)
        state = json.loads(data)
    except Exception as error:  # noqa: BLE001  (all that the library raises)
        raise ModelRefused(f"{path}: {error}; fetch the file again") from None
    backend.no_truncation()
    backend.no_padding()
    config = _read(folder / "tokenizer_config.json")
    spelling, strip = _spelling(state, path)
    added = backend.get_added_tokens_decoder()
    roles = _roles(config, _read(folder / "special_tokens_map.json"))
    ids = {role: i for role, text in roles.items() if (i := backend.token_to_id(text)) is not None}
    texts = {i: token.content for i, token in added.items()} | {i: roles[role] for role, i in ids.items()}
    special = {i for i, token in added.items() if token.special} | set(ids.values())
    bos = ids.get("bos_token")
    return Vocabulary(
        backend=backend,
        spelling=spelling,
        size=max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1,
        added=texts,
        special_ids=frozenset(special),
        bos_id=bos,
        eos_ids=end_ids(_declared_ends(folder, ids), {i: t for i, t in texts.items() if i in special}),
        add_bos=bos is not None and backend.encode("").ids[:1] == [bos],
        strip_leading_space=strip,
        templates=_templates(folder, config),
        special_tokens=roles,
        digest=hashlib.sha256(data).hexdigest(),
    )


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, {} if the file is absent."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelRefused(f"{path}: not JSON: {error}; fetch the file again") from None
    if not isinstance(value, dict):
        raise ModelRefused(f"{path}: a JSON object is expected; fetch the file again")
    return value


def _roles(*sources: dict[str, Any]) -> dict[str, str]:
    """Text of each special role; a role is a string or an object with `content`."""
    found: dict[str, str] = {}
    for source in sources:
        for role in _ROLES:
            value = source.get(role)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str) and role not in found:
                found[role] = text
    return found


def _spelling(state: dict[str, Any], path: Path) -> tuple[Spelling, bool]:
    """How entries are spelled, and whether decoding drops one leading space."""
    decoder = state.get("decoder") or {}
    steps = decoder.get("decoders", [decoder]) if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return "byte-level", False
    if kinds == ["Metaspace"]:
        return "sentencepiece", steps[0].get("prepend_scheme", "always") != "never"
    if set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and "ByteFallback" in kinds:
        return "sentencepiece", "Strip" in kinds
    raise ModelRefused(f"{path}: decoder {kinds} is not served; ByteLevel, Metaspace and ByteFallback are")


def _declared_ends(folder: Path, ids: dict[str, int]) -> list[int]:
    ends = [ids["eos_token"]] if "eos_token" in ids else []
    for name in ("generation_config.json", "config.json"):
        value = _read(folder / name).get("eos_token_id")
        if value is not None:
            ends += value if isinstance(value, list) else [value]
            break
    return ends


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name; the main one is "default"."""
    found: dict[str, str] = {}
    for source in (config.get("chat_template"), _read(folder / "chat_template.json").get("chat_template")):
        if isinstance(source, str):
            found["default"] = source
        elif isinstance(source, list):
            found.update({entry["name"]: entry["template"] for entry in source})
    single = folder / "chat_template.jinja"
    if single.is_file():
        found["default"] = single.read_text(encoding="utf-8")
    for extra in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[extra.stem] = extra.read_text(encoding="utf-8")
    return found
