"""Tokenizer: text to token ids and back, for one model.

Encoding is the `tokenizers` library's. Decoding is ours: every token stands for exact bytes
(`token_bytes`), a sequence for their concatenation, and text is that in UTF-8 with U+FFFD for each
ill-formed part (Unicode 3.9, maximal subparts). So decoding a prefix never has to be taken back, and
the incremental detokenizer gives the same text.

Invariants: `decode(encode(text)) == text` where the vocabulary has all 256 bytes (SmolLM2's lacks 21 that
its training text never had; they are dropped, as by transformers); ids are checked here and nowhere
below; an instance may be used from several threads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import InvalidRequest, ModelRefused
from penstock.text.pieces import SPELLINGS
from penstock.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

# Far above any context; the regular-expression engine gives up on (and panics over) single words of more
# than about ten million steps.
MAX_TEXT_CHARS = 4_000_000


class Tokenizer:
    """See `load`. All ids are plain ints in [0, vocab_size)."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._backend = vocabulary.backend
        self._literal: Backend | None = None
        self._continuations: dict[bool, Backend] = {}  # by whether control tokens are parsed
        self._bytes: dict[int, bytes] = {}
        self._spell = SPELLINGS[vocabulary.spelling]
        self.vocab_size: int = vocabulary.size
        self.bos_id: int | None = vocabulary.bos_id
        self.eos_ids: tuple[int, ...] = vocabulary.eos_ids
        self.special_ids: frozenset[int] = vocabulary.special_ids
        self.add_bos: bool = vocabulary.add_bos
        self.digest: str = vocabulary.digest
        self.chat_template: str | None = vocabulary.templates.get("default")
        self.chat_templates = vocabulary.templates
        self.special_tokens = vocabulary.special_tokens
        self.infill_ids = vocabulary.infill_ids
        self.strip_leading_space: bool = vocabulary.strip_leading_space

    @property
    def backend(self) -> Backend:
        """The library's own, for what can be asked of it about added tokens."""
        return self._backend

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """From a GGUF file, or a folder with tokenizer.json.

        Raises ModelRefused naming what is missing, damaged or of an unknown kind.
        """
        from penstock.text import gguf_vocabulary, json_vocabulary

        return cls(json_vocabulary.load(path) if path.is_dir() else gguf_vocabulary.load(path))

    # ------------------------------------------------------------------ text to ids

    def encode(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Ids of `text`.

        `add_special` puts what the model expects around a text (its BOS). `parse_special`: control tokens
        written in the text count as such; else they are plain characters. Raises InvalidRequest for
        lone surrogates, which no UTF-8 text can carry, and for more than MAX_TEXT_CHARS.
        """
        return self.encode_many([text], add_special, parse_special)[0]

    def encode_many(
        self, texts: Sequence[str], add_special: bool = False, parse_special: bool = True
    ) -> list[list[int]]:
        """`encode` of each text."""
        return self._run(self._backend if parse_special else self._literal_backend(), texts, add_special)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode(text)`, and the characters [first, last) that each id stands for."""
        check_text(text)
        try:
            encoding = self._backend.encode(text, add_special_tokens=False)
        except BaseException as error:  # noqa: BLE001  (see _unencodable)
            raise _unencodable(error) from None
        return encoding.ids, encoding.offsets

    def encode_continuation(self, text: str, parse_special: bool = True) -> list[int]:
        """Ids of `text` as it would go on mid-sentence: no automatic leading space, nothing around it."""
        backend = self._continuations.get(parse_special)
        if backend is None:
            backend = _without_leading_space(self._backend)
            backend.encode_special_tokens = not parse_special
            self._continuations[parse_special] = backend
        return self._run(backend, [text], False)[0]

    def _run(self, backend: Backend, texts: Sequence[str], add_special: bool) -> list[list[int]]:
        for text in texts:
            check_text(text)
        return [encoding.ids for encoding in encode_batch(backend, texts, add_special)]

    def _literal_backend(self) -> Backend:
        if self._literal is None:
            backend = _copy(self._backend)
            backend.encode_special_tokens = True
            self._literal = backend
        return self._literal

    # ------------------------------------------------------------------ ids to text

    def decode(self, ids: Sequence[int], skip_special: bool = True, continuation: bool = False) -> str:
        """Text of `ids`. Raises InvalidRequest for an id outside the vocabulary.

        `continuation`: the ids go on an earlier text, so the leading space that some vocabularies put
        before every whole text is kept.
        """
        data = b"".join([self._checked_bytes(i) for i in ids if not (skip_special and i in self.special_ids)])
        if self.strip_leading_space and not continuation and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that the token stands for (the text of a control token)."""
        return self._checked_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """The token as the OpenAI API shows it: its text, or `bytes:\\xf0\\x9f` where that is no UTF-8."""
        data = self._checked_bytes(token_id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def token_id(self, text: str) -> int | None:
        """Id of the vocabulary entry spelled `text` (control tokens), None if there is none."""
        found: int | None = self._backend.token_to_id(text)
        return found

    def piece(self, token_id: int) -> bytes:
        """`token_bytes`, but b"" for an id beyond the vocabulary: models have padding rows in their head."""
        data = self._bytes.get(token_id)
        if data is None:
            if not 0 <= token_id < self.vocab_size:
                return b""
            data = self._bytes[token_id] = self._spelled(token_id)
        return data

    def _checked_bytes(self, token_id: int) -> bytes:
        data = self._bytes.get(token_id)
        if data is not None:
            return data
        if not 0 <= token_id < self.vocab_size:
            raise InvalidRequest(
                f"token id {token_id} is outside the vocabulary [0, {self.vocab_size - 1}]", param="tokens"
            )
        return self.piece(token_id)

    def _spelled(self, token_id: int) -> bytes:
        text = self._vocabulary.added.get(token_id)
        if text is not None:
            return text.encode("utf-8", "replace")
        entry = self._backend.id_to_token(token_id)
        return b"" if entry is None else self._spell(entry)


def encode_batch(backend: Backend, texts: Sequence[str], add_special: bool) -> list[Encoding]:
    """The library's encodings of checked texts. InvalidRequest for what it gives up on."""
    try:
        return backend.encode_batch_fast(list(texts), add_special_tokens=add_special)
    except BaseException as error:  # noqa: BLE001  (see _unencodable)
        raise _unencodable(error) from None


def check_text(text: str) -> None:
    """InvalidRequest for text that can't be encoded: lone surrogates, or more than MAX_TEXT_CHARS."""
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidRequest(f"a text of {len(text)} characters, at most {MAX_TEXT_CHARS}", param="prompt")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the text has a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}; "
            "send whole characters",
            param="prompt",
        ) from None


def _unencodable(error: BaseException) -> BaseException:
    """What to raise for an error of the library. A Rust panic derives from BaseException, so nothing above
    would catch it."""
    if type(error).__name__ == "PanicException" or isinstance(error, Exception):
        return InvalidRequest(f"the text can't be tokenized: {error}", param="prompt")
    return error


def _copy(backend: Backend) -> Backend:
    from tokenizers import Tokenizer as Backend

    return Backend.from_str(backend.to_str())


def _without_leading_space(backend: Backend) -> Backend:
    """`backend` with Prepend normalizers dropped and Metaspace told to prepend nothing."""
    from tokenizers import Tokenizer as Backend

    def strip(step: dict | None) -> dict | None:
        if step is None or step["type"] == "Prepend":
            return None
        if step["type"] == "Metaspace":
            return {**step, "prepend_scheme": "never"}
        for key in ("normalizers", "pretokenizers"):
            if key in step:
                return {**step, key: [kept for part in step[key] if (kept := strip(part)) is not None]}
        return step

    state = json.loads(backend.to_str())
    for key in ("normalizer", "pre_tokenizer"):
        state[key] = strip(state[key])
    try:
        return Backend.from_str(json.dumps(state))
    except Exception as error:  # noqa: BLE001  (all that the library raises)
        raise ModelRefused(f"the tokenizer can't be rebuilt without its leading space: {error}") from None
