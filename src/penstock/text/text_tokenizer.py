"""TextTokenizer: texts and pairs of texts to ids, for models that read them whole: embedders, cross-encoders.

Any vocabulary of the `tokenizers` library will do (WordPiece among them): nothing is ever decoded. What the
model expects around a text ([CLS], [SEP], end of text) is put there, with the token types of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from penstock.errors import ModelRefused
from penstock.text.tokenizer import check_text, encode_batch

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend


class TokenizedText(Struct, frozen=True):
    """ids int32[n]; kinds int32[n], token types, None where all are 0; `cut`: tokens were left out."""

    ids: np.ndarray
    kinds: np.ndarray | None = None
    cut: bool = False


class TextTokenizer:
    """See `load`. May be used from several threads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @classmethod
    def load(cls, path: Path) -> TextTokenizer:
        """From a GGUF file, or a folder with tokenizer.json. ModelRefused for what is missing or damaged."""
        from tokenizers import Tokenizer as Backend

        if not path.is_dir():
            from penstock.text import gguf_vocabulary

            return cls(gguf_vocabulary.load(path).backend)
        file = path / "tokenizer.json"
        if not file.is_file():
            raise ModelRefused(f"{path}: no tokenizer.json; convert the tokenizer to that form first")
        try:
            backend = Backend.from_buffer(file.read_bytes())
        except Exception as error:  # noqa: BLE001  (all that the library raises)
            raise ModelRefused(f"{file}: {error}; fetch the file again") from None
        # Files may ask for lengths that somebody once exported with; ours are the model's.
        backend.no_truncation()
        backend.no_padding()
        return cls(backend)

    def texts(self, texts: Sequence[str], limit: int | None = None) -> list[TokenizedText]:
        """Each text; those over `limit` tokens are cut at their end, the tokens around them kept."""
        for text in texts:
            check_text(text)
        found = []
        for text, encoding in zip(texts, encode_batch(self._backend, texts, True), strict=True):
            cut = limit is not None and len(encoding.ids) > limit
            if cut and limit is not None:
                bare = encode_batch(self._backend, [text], False)[0]
                bare.truncate(max(0, limit - self._backend.num_special_tokens_to_add(False)))
                encoding = self._backend.post_process(bare)
            found.append(_tokenized(encoding, cut))
        return found

    def pairs(
        self, pairs: Sequence[tuple[str, str]], limit: int | None = None, second_limit: int | None = None
    ) -> list[TokenizedText]:
        """Each pair as one text. Second texts are cut to `second_limit` tokens, then both, the longer one
        first, until they fit `limit` with the tokens around them."""
        for text in {text for pair in pairs for text in pair}:
            check_text(text)
        firsts = encode_batch(self._backend, [pair[0] for pair in pairs], False)
        seconds = encode_batch(self._backend, [pair[1] for pair in pairs], False)
        around = self._backend.num_special_tokens_to_add(True)
        found = []
        for first, second in zip(firsts, seconds, strict=True):
            cut = second_limit is not None and len(second.ids) > second_limit
            if cut and second_limit is not None:
                second.truncate(second_limit)
            if limit is not None and len(first.ids) + len(second.ids) + around > limit:
                keep = _shares(len(first.ids), len(second.ids), max(0, limit - around))
                first.truncate(keep[0])
                second.truncate(keep[1])
                cut = True
            found.append(_tokenized(self._backend.post_process(first, second), cut))
        return found


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How much of each is kept when tokens of the longer one go first; an odd one stays with the longer one,
    of two alike with the second."""
    if first > second:
        return _shares(second, first, room)[::-1]
    kept = min(first, room // 2)
    return kept, room - kept


def _tokenized(encoding: Encoding, cut: bool) -> TokenizedText:
    kinds = np.array(encoding.type_ids, np.int32)
    return TokenizedText(np.array(encoding.ids, np.int32), kinds if kinds.any() else None, cut)
