"""A Vocabulary from GGUF metadata (`tokenizer.ggml.*`).

`gpt2`   byte-level BPE: merges from the file, words cut as `tokenizer.ggml.pre` says.
`llama`  SentencePiece: adjacent pieces merge in order of the score of the result; a character that is in
         no piece becomes its UTF-8 bytes. A space is put before the text, and after every control
         token, unless `add_space_prefix` is false (Gemma). As in SentencePiece it is put there
         even before a text that begins with a space.

Source: the GGUF specification and llama.cpp's keys; SentencePiece (arXiv:1808.06226).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.errors import ModelRefused
from penstock.text import pretokenizers
from penstock.text.pieces import SPACE_MARK
from penstock.text.vocabulary import Vocabulary, end_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_KEY = "tokenizer.ggml."
# Older files have the second spelling; a newer one that is there too counts.
_INFILL_KEYS = {
    "prefix": "prefix",
    "suffix": "suffix",
    "middle": "middle",
    "fim_pre": "prefix",
    "fim_suf": "suffix",
    "fim_mid": "middle",
    "fim_pad": "end",
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def load(path: Path) -> Vocabulary:
    """Vocabulary of the GGUF file at `path`. ModelRefused if it has none or one of an unknown kind."""
    from penstock.formats.gguf import GGUFFile

    return from_metadata(GGUFFile.open(path).metadata, str(path))


def from_metadata(metadata: Mapping[str, Any], name: str) -> Vocabulary:
    """Vocabulary from `tokenizer.*` keys; `name` is for messages. Arrays are list[str] or numpy."""
    model = metadata.get(_KEY + "model")
    if model not in ("gpt2", "llama"):
        raise ModelRefused(f"{name}: tokenizer.ggml.model is {model!r}; served are 'gpt2' and 'llama'")
    tokens: list[str] = metadata.get(_KEY + "tokens") or []
    if not tokens:
        raise ModelRefused(f"{name}: no tokenizer.ggml.tokens: the file carries no vocabulary")
    types = np.asarray(metadata.get(_KEY + "token_type", np.full(len(tokens), NORMAL)), dtype=np.int32)
    if len(types) != len(tokens):
        raise ModelRefused(f"{name}: {len(tokens)} tokens but {len(types)} token types; fetch the file again")
    ids = _declared_ids(metadata, len(tokens), name)
    whole = np.flatnonzero(np.isin(types, (CONTROL, USER_DEFINED, UNKNOWN)))
    added = {int(i): tokens[i] for i in whole}
    added.update({i: tokens[i] for i in ids.values()})
    special = {i for i in added if types[i] != USER_DEFINED} | set(ids.values())
    space_prefix = model == "llama" and bool(metadata.get(_KEY + "add_space_prefix", True))
    if model == "gpt2":
        backend = _byte_level(metadata, tokens, name)
    else:
        backend = _sentencepiece(metadata, tokens, types, ids, space_prefix, name)
    _add_tokens(backend, added, special)
    pre = metadata.get(_KEY + "pre", "default")
    default_bos = model == "llama" or pretokenizers.recipe(pre).ignore_merges
    add_bos = bool(metadata.get(_KEY + "add_bos_token", default_bos)) and "bos" in ids
    add_eos = bool(metadata.get(_KEY + "add_eos_token", False)) and "eos" in ids
    _frame(backend, tokens, ids, add_bos, add_eos)
    return Vocabulary(
        backend=backend,
        spelling="byte-level" if model == "gpt2" else "sentencepiece",
        size=len(tokens),
        added=added,
        special_ids=frozenset(special),
        bos_id=ids.get("bos"),
        eos_ids=end_ids([ids[key] for key in ("eos", "eot", "eom") if key in ids], added),
        add_bos=add_bos,
        strip_leading_space=space_prefix,
        templates=_templates(metadata),
        special_tokens={
            f"{key}_token": tokens[ids[key]] for key in ("bos", "eos", "unk", "pad") if key in ids
        },
        digest=_digest(metadata, tokens, types, add_bos, add_eos),
        infill_ids=_declared(metadata, _INFILL_KEYS, len(tokens), name),
    )


def _declared_ids(metadata: Mapping[str, Any], size: int, name: str) -> dict[str, int]:
    """Ids of the roles bos, eos, eot, eom, unk, pad as far as the file declares them."""
    keys = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unknown": "unk", "padding": "pad"}
    return _declared(metadata, keys, size, name)


def _declared(metadata: Mapping[str, Any], keys: Mapping[str, str], size: int, name: str) -> dict[str, int]:
    ids = {}
    for key, role in keys.items():
        value = metadata.get(f"{_KEY}{key}_token_id")
        if value is None:
            continue
        if not 0 <= int(value) < size:
            raise ModelRefused(f"{name}: {_KEY}{key}_token_id is {value}, the vocabulary has {size} tokens")
        ids[role] = int(value)
    return ids


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], name: str) -> Backend:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    lines: list[str] = metadata.get(_KEY + "merges") or []
    if not lines:
        raise ModelRefused(f"{name}: no tokenizer.ggml.merges; a gpt2 vocabulary can't be used without them")
    # A merge of pieces that begin with a space has its separator after the first character.
    merges = [(line[:cut], line[cut + 1 :]) for line in lines for cut in (line.find(" ", 1),)]
    pre = metadata.get(_KEY + "pre", "default")
    vocab = {token: i for i, token in reversed(list(enumerate(tokens)))}
    try:
        bpe = models.BPE(vocab, merges, ignore_merges=pretokenizers.recipe(pre).ignore_merges)
    except Exception as error:  # noqa: BLE001  (all that the library raises)
        raise ModelRefused(f"{name}: vocabulary and merges do not fit together: {error}") from None
    backend = Backend(bpe)
    backend.pre_tokenizer = pretokenizers.build(pre)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(
    metadata: Mapping[str, Any],
    tokens: list[str],
    types: np.ndarray,
    ids: Mapping[str, int],
    space_prefix: bool,
    name: str,
) -> Backend:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    scores = metadata.get(_KEY + "scores")
    if scores is None or len(scores) != len(tokens):
        raise ModelRefused(
            f"{name}: a llama vocabulary needs {len(tokens)} tokenizer.ggml.scores, one per token"
        )
    # Gemma files spell runs of spaces as spaces, every other entry has the mark.
    entries = [token.replace(" ", SPACE_MARK) for token in tokens]
    vocab = {token: i for i, token in reversed(list(enumerate(entries)))}
    unknown = entries[ids["unk"]] if "unk" in ids else None
    merges = merges_by_score(entries, scores, types == NORMAL)
    backend = Backend(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", SPACE_MARK)
    steps = [normalizers.Prepend(SPACE_MARK), replace] if space_prefix else [replace]
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def merges_by_score(entries: list[str], scores: Any, usable: np.ndarray) -> list[tuple[str, str]]:
    """The merges that scores imply: every way to cut a normal entry into two, best result first.

    Pieces that are matched whole (control, user-defined) or stand for bytes take no part in merging.
    """
    rank = {entry: i for i, entry in enumerate(entries) if usable[i]}
    found = []
    for entry, i in rank.items():
        score = -float(scores[i])
        for cut in range(1, len(entry)):
            left, right = entry[:cut], entry[cut:]
            if left in rank and right in rank:
                found.append((score, i, -cut, left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _add_tokens(backend: Backend, added: Mapping[int, str], special: set[int]) -> None:
    from tokenizers import AddedToken

    control: list[AddedToken] = []
    plain: list[AddedToken] = []
    for i, text in sorted(added.items()):
        if i in special:
            control.append(AddedToken(text, special=True, normalized=False))
        else:
            plain.append(AddedToken(text, special=False, normalized=False))
    backend.add_special_tokens(control)
    backend.add_tokens(plain)


def _frame(backend: Backend, tokens: list[str], ids: Mapping[str, int], add_bos: bool, add_eos: bool) -> None:
    """What `add_special` puts around a text."""
    from tokenizers import processors

    roles = [role for role, wanted in (("bos", add_bos), ("eos", add_eos)) if wanted]
    if roles:
        single = (["bos"] if add_bos else []) + ["$A"] + (["eos"] if add_eos else [])
        backend.post_processor = processors.TemplateProcessing(
            single=[tokens[ids[part]] if part in ids else part for part in single],
            special_tokens=[(tokens[ids[role]], ids[role]) for role in roles],
        )


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name; the main one is "default"."""
    prefix = "tokenizer.chat_template"
    found = {key[len(prefix) + 1 :]: metadata[key] for key in metadata if key.startswith(prefix + ".")}
    if prefix in metadata:
        found["default"] = metadata[prefix]
    return {name: text for name, text in found.items() if isinstance(text, str)}


def _digest(
    metadata: Mapping[str, Any], tokens: list[str], types: np.ndarray, add_bos: bool, add_eos: bool
) -> str:
    """SHA-256 over all that decides which ids a text gets."""
    scores = metadata.get(_KEY + "scores")
    keys = ("model", "pre", "add_space_prefix", "bos_token_id", "eos_token_id")
    head = [metadata.get(_KEY + key) for key in keys]
    digest = hashlib.sha256(repr([head, add_bos, add_eos, len(tokens)]).encode())
    digest.update("\0".join(tokens).encode("utf-8", "surrogatepass"))
    digest.update("\0".join(metadata.get(_KEY + "merges") or ()).encode("utf-8", "surrogatepass"))
    digest.update(types.astype("<i4").tobytes())
    if scores is not None:
        digest.update(np.asarray(scores, dtype="<f4").tobytes())
    return digest.hexdigest()
