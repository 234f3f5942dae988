"""What the drafters propose, in plain Python by scanning everything: their brute-force twins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Tokens = Sequence[int]


def ngram_proposal(tokens: Tokens, longest: int, shortest: int, most: int) -> list[int]:
    """What follows the first occurrence of the longest n-gram at the end that stood before."""
    for size in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        for end in range(size, len(tokens)):
            if tokens[end - size : end] == tokens[len(tokens) - size :]:
                return list(tokens[end : end + most])
    return []


def common_suffix(a: Tokens, b: Tokens, most: int) -> int:
    length = 0
    while length < min(len(a), len(b), most) and a[-1 - length] == b[-1 - length]:
        length += 1
    return length


def suffix_proposal(
    tokens: Tokens, sources: Sequence[tuple[Tokens, int]], depth: int, factor: float, least: float, most: int
) -> tuple[list[int], list[float], int]:
    """(tokens, survival, support). sources: texts, the latest first, and the first position in each that
    may be proposed."""
    found = [
        (common_suffix(text[:place], tokens, depth), list(text[place:]))
        for text, start in sources
        for place in reversed(range(start, len(text)))
    ]
    support = max((length for length, _ in found), default=0)
    paths = [following for length, following in found if length == support]
    proposed, survival = frequent_path(paths, min(most, int(factor * support)), least)
    return proposed, survival, support if proposed else 0


def frequent_path(paths: list[list[int]], limit: int, least: float) -> tuple[list[int], list[float]]:
    """The most frequent token of those that follow the tokens before it; of equals, the first path's."""
    total, tokens, survival = len(paths), [], []
    while len(tokens) < limit:
        paths = [path for path in paths if path[: len(tokens)] == tokens and len(path) > len(tokens)]
        counts = Counter(path[len(tokens)] for path in paths)
        if not counts or counts.most_common(1)[0][1] / total < least:
            break
        token, count = counts.most_common(1)[0]
        tokens.append(token)
        survival.append(count / total)
    return tokens, survival
