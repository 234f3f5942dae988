"""One token of one request in plain Python, from its whole history: the brute-force twin of the sampler.

No state, no arrays, no shortcuts; every rule is written as its definition reads. Exact beside the sampler
when scores and penalties are small multiples of a power of two (float32 then rounds nothing).
"""

from __future__ import annotations

import math

from penstock.decoding.params import TokenSampling
from penstock.decoding.thinking import Marker, ThinkingSpec

NEVER = -math.inf


def noise(seed: int, position: int) -> float:
    """Philox4x32-10 with Python's integers."""
    low = 0xFFFFFFFF
    counter, key = [position, 0, 0, 0], [seed & low, seed >> 32 & low]
    for _ in range(10):
        a, b = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [b >> 32 ^ counter[1] ^ key[0], b & low, a >> 32 ^ counter[3] ^ key[1], a & low]
        key = [key[0] + 0x9E3779B9 & low, key[1] + 0xBB67AE85 & low]
    return (counter[0] << 32 | counter[1]) // 2**11 / 2**53


def next_token(logits: list[float], prompt: list[int], output: list[int], s: TokenSampling) -> int:
    """The token that follows prompt + output."""
    if s.thinking is not None and (token := forced_token(prompt, output, s.thinking)) is not None:
        return token
    scores = penalized(logits, prompt, output, s)
    if s.allowed_token_ids:
        scores = [x if i in s.allowed_token_ids else NEVER for i, x in enumerate(scores)]
    fallback = greedy(scores) if max(scores) > NEVER else min(s.allowed_token_ids)
    scores = masked(scores, prompt + output, len(output), s)
    if max(scores) == NEVER:
        return fallback
    if s.temperature == 0:
        return greedy(scores)
    left = filtered(scores, s)
    target = noise(s.seed, len(prompt) + len(output)) * sum(left.values())
    reached = 0.0
    for token in sorted(left):
        reached += left[token]
        if reached > target:
            return token
    raise AssertionError("the noise is below 1")


def greedy(scores: list[float]) -> int:
    return scores.index(max(scores))


def penalized(logits: list[float], prompt: list[int], output: list[int], s: TokenSampling) -> list[float]:
    scores = list(logits)
    for token, bias in s.logit_bias:
        scores[token] += bias
    for token in set(prompt + output):
        scores[token] *= s.repetition_penalty if scores[token] < 0 else 1 / s.repetition_penalty
    for token in set(output):
        scores[token] -= s.frequency_penalty * output.count(token) + s.presence_penalty
    return scores


def masked(scores: list[float], tokens: list[int], generated: int, s: TokenSampling) -> list[float]:
    scores = list(scores)
    for word in s.bad_words:
        before = list(word[:-1])
        if not before or tokens[-len(before) :] == before:
            scores[word[-1]] = NEVER
    if generated < s.min_tokens:
        for token in s.stop_token_ids:
            scores[token] = NEVER
    return scores


def filtered(scores: list[float], s: TokenSampling) -> dict[int, float]:
    """What may be drawn: id -> probability, summing to 1."""
    peak = max(scores)
    left = normalized({i: math.exp((x - peak) / s.temperature) for i, x in enumerate(scores) if x > NEVER})
    if s.top_k:
        left = normalized(dict(sorted(left.items(), key=lambda item: (-item[1], item[0]))[: s.top_k]))
    if s.top_p < 1:
        left = until(left, s.top_p, {i: -p for i, p in left.items()})
    if s.min_p:
        left = normalized({i: p for i, p in left.items() if p >= s.min_p * max(left.values())})
    if s.typical_p < 1:
        entropy = -sum(p * math.log(p) for p in left.values())
        left = until(left, s.typical_p, {i: abs(-math.log(p) - entropy) for i, p in left.items()})
    return left


def until(probs: dict[int, float], mass: float, cost: dict[int, float]) -> dict[int, float]:
    """The cheapest tokens, as few as reach `mass`."""
    kept: dict[int, float] = {}
    for token in sorted(probs, key=lambda i: (cost[i], i)):
        kept[token] = probs[token]
        if sum(kept.values()) >= mass:
            break
    return normalized(kept)


def normalized(weights: dict[int, float]) -> dict[int, float]:
    total = sum(weights.values())
    return {i: weight / total for i, weight in weights.items()}


def sections(
    prompt: list[int], output: list[int], spec: ThinkingSpec, leading: bool = False
) -> tuple[list[list[int]], list[int] | None]:
    """(sections that ended in the output, the one that has not), markers left out."""
    tokens, closed, inside = prompt + output, [], spec.open
    begin = len(prompt) - spec.used if inside else len(prompt) if leading else 0
    for end in range(len(prompt) + 1, len(tokens) + 1):
        stretch = tokens[begin:end]
        hit = longest_end(stretch, (*spec.ends, *spec.ended_by) if inside else spec.starts)
        if hit:
            if inside:
                closed.append(stretch[: len(stretch) - len(hit)])
                if leading:
                    return closed, None
            inside, begin = not inside, end
        elif leading and not inside and stretch != list(spec.starts[0][: len(stretch)]):
            return closed, None
    return closed, tokens[begin:] if inside else None


def longest_end(tokens: list[int], markers: tuple[Marker, ...]) -> Marker:
    return max((m for m in markers if tuple(tokens[-len(m) :]) == m), key=len, default=())


def forced_token(
    prompt: list[int], output: list[int], spec: ThinkingSpec, leading: bool = False
) -> int | None:
    """The token that the thinking budget forces."""
    closed, section = sections(prompt, output, spec, leading)
    if section is None or spec.budget is None:
        return None
    left, end, at = spec.budget - sum(map(len, closed)), spec.ends[0], 0 if closed else spec.used
    while at <= len(section):
        begun = len(longest_end(section[:at], tuple(end[:n] for n in range(1, len(end)))))
        if at < left and at + len(spec.closing) != left:
            at += 1
            continue
        plan = end[begun:] if begun or at >= left else spec.closing + end
        rest = section[at:]
        obeyed = next((i for i, (a, b) in enumerate(zip(rest, plan, strict=False)) if a != b), len(rest))
        if obeyed == len(rest):
            return plan[obeyed]
        at += obeyed + 1  # told otherwise: it is decided anew from there
    return None
