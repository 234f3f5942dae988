"""Deterministic automata over characters: what texts match, and what two sets of texts have in common.

xgrammar is given automata, not expressions: its own automata of nondeterministic expressions match too much
(version 0.2.8 takes `a` for `(a{2,})?`, and `aaa` for `a|a(|a)`), and those of rules that say what follows a
character, one rule a state, do not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

from msgspec import Struct

from penstock.decoding.grammar.ebnf import work
from penstock.decoding.grammar.ebnf.characters import Characters, characters
from penstock.decoding.grammar.ebnf.expressions import Chars, Choice, Edge, Node, Repeat, Sequence, lengths
from penstock.decoding.grammar.ebnf.rules import UnkeptError

MAX_STATES = 1000
KNOWN = 256  # automata that are kept for the next schema
_MOST_REDUCED = 300  # states: beyond it equal ones are not looked for
Step = tuple[Characters, int]
Key = TypeVar("Key", bound=Hashable)
Expand = Callable[[Key], tuple[bool, Iterable[tuple[Characters, Key]]]]


class Automaton(Struct, frozen=True):
    """`steps`: of every state, its characters to the state behind them; no two have one in common. State 0 is
    the first. A text may end in `ends`. From every state one of them can be reached, or there is but one."""

    steps: tuple[tuple[Step, ...], ...]
    ends: frozenset[int]

    @property
    def is_empty(self) -> bool:
        return not self.ends

    def matches(self, text: str) -> bool:
        state = 0
        for char in text:
            behind = [target for chars, target in self.steps[state] if char in chars]
            if not behind:
                return False
            state = behind[0]
        return state in self.ends

    @property
    def longest(self) -> int | None:
        """Characters of the longest text; None if there is no limit."""
        states, length = frozenset([0]), 0
        while states and length <= len(self.steps):
            work.spend(len(states))
            states = frozenset(target for state in states for _, target in self.steps[state])
            length += 1
        return None if states else length - 1

    def may_end_from(self, count: int) -> bool:
        """Whether every text of `count` characters or more that may go on to an end is one itself."""
        states, seen = frozenset([0]), dict[frozenset[int], int]()
        for length in range(count):
            if states in seen:  # from here on it repeats
                period = [met for met, at in seen.items() if at >= seen[states]]
                return all(met <= self.ends for met in period)
            seen[states] = length
            states = frozenset(target for state in states for _, target in self.steps[state])
        reached = set(states)
        todo = list(states)
        while todo:
            for _, target in self.steps[todo.pop()]:
                if target not in reached:
                    reached.add(target)
                    todo.append(target)
        return reached <= self.ends


NOTHING = Automaton(((),), frozenset())


@lru_cache(maxsize=KNOWN)
def of_expression(node: Node) -> Automaton:
    """Raises UnkeptError if it has more than MAX_STATES states."""

    def expand(nodes: frozenset[Node]) -> tuple[bool, Iterable[tuple[Characters, frozenset[Node]]]]:
        following = [step for node in nodes for step in _following(node)]
        return any(lengths(node)[0] == 0 for node in nodes), _determined(following)

    return _built(frozenset([node]), expand)


def counted(of: Characters, least: int, most: int | None) -> Automaton:
    """Texts of `least` to `most` characters of a set."""

    def expand(count: int) -> tuple[bool, list[tuple[Characters, int]]]:
        behind = min(count + 1, least) if most is None else count + 1
        return count >= least, [(of, behind)] if of.ranges and (most is None or count < most) else []

    return _built(0, expand)


def of_words(words: frozenset[str], depth: int) -> Automaton:
    """`words`, and all texts that begin with the first `depth` characters of one of them."""
    everything = ~characters()

    def expand(
        state: tuple[int, frozenset[str]],
    ) -> tuple[bool, list[tuple[Characters, tuple[int, frozenset[str]]]]]:
        at, left = state
        if at == depth:
            return True, [(everything, state)]
        heads = {word[0] for word in left if word}
        behind = [
            (characters(head), (at + 1, frozenset(w[1:] for w in left if w[:1] == head))) for head in heads
        ]
        return "" in left, behind

    return _built((0, words), expand)


@lru_cache(maxsize=KNOWN)
def intersection(one: Automaton, other: Automaton) -> Automaton:
    """Texts that match both. Raises UnkeptError."""

    def expand(pair: tuple[int, int]) -> tuple[bool, Iterator[tuple[Characters, tuple[int, int]]]]:
        work.spend(_pairs(one.steps[pair[0]], other.steps[pair[1]]))
        both = (
            (common, (target, its_target))
            for chars, target in one.steps[pair[0]]
            for its_chars, its_target in other.steps[pair[1]]
            if (common := chars & its_chars).ranges
        )
        return pair[0] in one.ends and pair[1] in other.ends, both

    return _built((0, 0), expand)


@lru_cache(maxsize=KNOWN)
def difference(one: Automaton, other: Automaton) -> Automaton:
    """Texts that match the one and not the other. Raises UnkeptError."""

    def expand(pair: tuple[int, int | None]) -> tuple[bool, list[tuple[Characters, tuple[int, int | None]]]]:
        state, its_state = pair
        if its_state is None:
            return state in one.ends, [(chars, (target, None)) for chars, target in one.steps[state]]
        work.spend(_pairs(one.steps[state], other.steps[its_state]))
        found: list[tuple[Characters, tuple[int, int | None]]] = []
        for chars, target in one.steps[state]:
            for its_chars, its_target in other.steps[its_state]:
                if (common := chars & its_chars).ranges:
                    found.append((common, (target, its_target)))
                    chars = chars - its_chars
            if chars.ranges:
                found.append((chars, (target, None)))
        return state in one.ends and its_state not in other.ends, found

    start: tuple[int, int | None] = (0, 0)
    return _built(start, expand)


def depth_within(words: frozenset[str], states: int) -> int:
    """How many characters of `words` an automaton of so many states tells apart; at least 1."""
    depth, longest = 1, max(map(len, words), default=0)
    while depth <= longest and len({word[:at] for word in words for at in range(depth + 1)}) <= states:
        depth += 1
    return depth


# ------------------------------------------------------------------------------ how they are made


def _built(start: Key, expand: Expand[Key]) -> Automaton:
    """The automaton of the states that `expand` finds from `start` on, as small as it gets."""
    numbers, order, ends = {start: 0}, [start], set[int]()
    steps: list[list[Step]] = []
    for key in order:  # grows meanwhile
        work.spend(1)
        is_end, behind = expand(key)
        if is_end:
            ends.add(numbers[key])
        merged: dict[int, Characters] = {}
        for chars, target in behind:
            work.spend(1)
            if target not in numbers:
                numbers[target] = len(order)
                order.append(target)
                if len(order) > MAX_STATES:
                    raise UnkeptError(f"an automaton of more than {MAX_STATES} states")
            number = numbers[target]
            merged[number] = merged.get(number, Characters()) | chars
        steps.append([(chars, number) for number, chars in merged.items()])
    return _reduced(*_trimmed(steps, ends))


def _trimmed(steps: list[list[Step]], ends: set[int]) -> tuple[list[list[Step]], set[int]]:
    """Without the states from which no end can be reached; only the first one if it is one of them."""
    sources: list[list[int]] = [[] for _ in steps]
    for state, behind in enumerate(steps):
        for _, target in behind:
            sources[target].append(state)
    alive, todo = set(ends), list(ends)
    while todo:
        for state in sources[todo.pop()]:
            if state not in alive:
                alive.add(state)
                todo.append(state)
    if 0 not in alive:
        return [[]], set()
    numbers = {state: number for number, state in enumerate(sorted(alive))}
    kept = [[(chars, numbers[t]) for chars, t in steps[state] if t in alive] for state in sorted(alive)]
    return kept, {numbers[state] for state in ends}


def _reduced(steps: list[list[Step]], ends: set[int]) -> Automaton:
    """Equal states made one (E. F. Moore, 1956)."""
    blocks = [int(state in ends) for state in range(len(steps))]
    while len(steps) <= _MOST_REDUCED:
        work.spend(sum(map(len, steps)))
        signatures = [(block, _by_block(behind, blocks)) for block, behind in zip(blocks, steps, strict=True)]
        numbers: dict[Hashable, int] = {}
        found = [numbers.setdefault(signature, len(numbers)) for signature in signatures]
        if len(numbers) == len(set(blocks)):
            break
        blocks = found
    else:
        blocks = list(range(len(steps)))
    first: dict[int, int] = {}
    for state, block in enumerate(blocks):
        first.setdefault(block, state)
    order = sorted(first, key=lambda block: first[block])  # the first state stays the first
    place = {block: at for at, block in enumerate(order)}
    kept = tuple(
        tuple((Characters(ranges), place[block]) for block, ranges in _by_block(steps[first[block_]], blocks))
        for block_ in order
    )
    return Automaton(kept, frozenset(place[blocks[state]] for state in ends))


def _by_block(behind: list[Step], blocks: list[int]) -> tuple[tuple[int, tuple[tuple[int, int], ...]], ...]:
    merged: dict[int, Characters] = {}
    for chars, target in behind:
        block = blocks[target]
        merged[block] = merged[block] | chars if block in merged else chars
    return tuple(sorted((block, chars.ranges) for block, chars in merged.items()))


def _pairs(steps: tuple[Step, ...], others: tuple[Step, ...]) -> int:
    """Of ranges of characters that are compared."""
    ranges = sum(len(chars.ranges) for chars, _ in steps) * len(others)
    return ranges + sum(len(chars.ranges) for chars, _ in others) * len(steps)


def _determined(steps: list[tuple[Characters, Node]]) -> Iterator[tuple[Characters, frozenset[Node]]]:
    """For every character all that may stand behind it."""
    cuts = sorted({cut for chars, _ in steps for low, high in chars.ranges for cut in (low, high + 1)})
    work.spend(len(cuts) * len(steps) // 10)
    found: dict[frozenset[Node], list[tuple[int, int]]] = {}
    for low, high in pairwise(cuts):
        behind = frozenset(node for chars, node in steps if any(a <= low <= b for a, b in chars.ranges))
        if behind:
            found.setdefault(behind, []).append((low, high - 1))
    for behind, ranges in found.items():
        yield characters(*ranges), behind


def _following(node: Node) -> Iterator[tuple[Characters, Node]]:
    """What `node` may begin with, and what matches behind that.

    V. Antimirov, "Partial derivatives of regular expressions and finite automaton constructions", 1996.
    """
    work.spend(1)
    match node:
        case Chars():
            yield node.of, Sequence(())
        case Edge():
            return
        case Choice():
            for option in node.options:
                yield from _following(option)
        case Sequence():
            for at, part in enumerate(node.parts):
                for chars, behind in _following(part):
                    yield chars, _followed(behind, node.parts[at + 1 :])
                if lengths(part)[0] > 0:
                    return
        case Repeat():
            if node.most == 0:
                return
            fewer = Repeat(node.part, max(0, node.least - 1), None if node.most is None else node.most - 1)
            for chars, behind in _following(node.part):
                yield chars, _followed(behind, (fewer,))


def _followed(node: Node, parts: tuple[Node, ...]) -> Node:
    before = node.parts if isinstance(node, Sequence) else (node,)
    both = (*before, *parts)
    return both[0] if len(both) == 1 else Sequence(both)
