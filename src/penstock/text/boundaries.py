"""Safe boundaries: places where a text may be cut so that its parts' tokens are the whole text's.

Before anything else a tokenizer splits a text at its special tokens, leftmost and longest first, and treats
what lies between them piece by piece. So a text may be cut in front of a special token that the split
finds. It finds it whatever comes behind, if no other special token could begin earlier and reach over its
head: the text must be known as far as the longest special token reaches from there.

Tokens that are no such boundary: those that take white space before them or must be a word alone, and those
that are matched after normalization. A vocabulary without any, or a text that has none, is tokenized whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from penstock.text.tokenizer import Tokenizer, check_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


class Encoded(Struct, frozen=True):
    """A text and its tokens. ids: int32[n], read-only. starts, places: int64[m], character at which each
    boundary token begins, ascending, and its index in `ids`."""

    text: str
    ids: np.ndarray
    starts: np.ndarray
    places: np.ndarray

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory."""
        return 2 * len(self.text) + self.ids.nbytes + self.starts.nbytes + self.places.nbytes


class BoundaryEncoder:
    """`Tokenizer.encode`, going on from a text that begins the same."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._boundaries = _boundaries(tokenizer.backend)
        added = tokenizer.backend.get_added_tokens_decoder().values()
        self._reach = max((len(token.content) for token in added), default=1)

    def encode(self, text: str, before: Encoded | None = None, shared: int = 0) -> Encoded:
        """`before.text` and `text` have the first `shared` characters in common, at least.

        Raises InvalidRequest as `Tokenizer.encode` does.
        """
        cut = 0 if before is None else int(np.searchsorted(before.starts, shared - self._reach, "right"))
        if before is None or cut == 0:
            return self._encoded(text, text, 0, None, 0)
        start, place = int(before.starts[cut - 1]), int(before.places[cut - 1])
        return self._encoded(text, text[start:], start, (before, place), cut - 1)

    def _encoded(
        self, text: str, rest: str, start: int, head: tuple[Encoded, int] | None, cut: int
    ) -> Encoded:
        check_text(text)
        ids, offsets = self._tokenizer.encode_with_offsets(rest)
        fresh = np.asarray(ids, np.int32)
        known = self._boundaries
        found = [
            (offsets[i][0], i)
            for i in np.flatnonzero(np.isin(fresh, list(known))).tolist()
            if rest.startswith(known[ids[i]], offsets[i][0])
        ]
        pairs = np.array(found, np.int64).reshape(-1, 2)
        starts, places = pairs[:, 0] + start, pairs[:, 1]
        if head is not None:
            before, place = head
            fresh = np.concatenate((before.ids[:place], fresh))
            starts = np.concatenate((before.starts[:cut], starts))
            places = np.concatenate((before.places[:cut], places + place))
        fresh.flags.writeable = False
        return Encoded(text, fresh, starts, places)


def common_length(a: str, b: str) -> int:
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:  # a[:low] and b[:low] are equal
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _boundaries(backend: Backend) -> dict[int, str]:
    return {
        i: token.content
        for i, token in backend.get_added_tokens_decoder().items()
        if token.content and not (token.normalized or token.lstrip or token.single_word)
    }
