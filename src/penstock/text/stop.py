"""Stop strings over a stream of text.

The match that ends first wins; of several that end at the same character, the longest. That is what
checking after every single character would find, so the result does not depend on how the text
is cut into deltas, and the token that completes the stop is the last one that counts.

Invariants: at any time exactly the longest end of the text that is a proper beginning of a stop string is
held back; nothing is given out twice or late; a character costs constant amortized time whatever the
number and length of the stop strings (Aho and Corasick, 1975).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache


class _Automaton:
    """Trie of the stop strings with failure links. A state is a node's number; 0 is the root."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.depth: list[int] = [0]
        self.match: list[str | None] = [None]
        for stop in stops:
            state = 0
            for char in stop:
                follower = self.next[state].get(char)
                if follower is None:
                    follower = self.next[state][char] = len(self.next)
                    self.next.append({})
                    self.depth.append(self.depth[state] + 1)
                    self.match.append(None)
                state = follower
            self.match[state] = stop
        self.fail = self._failures()
        self.first = re.compile("|".join(re.escape(char) for char in self.next[0])) if stops else None

    def _failures(self) -> list[int]:
        """For each state the state of its longest proper suffix, breadth first; matches are inherited."""
        fail = [0] * len(self.next)
        queue = list(self.next[0].values())
        for state in queue:
            for char, follower in self.next[state].items():
                fail[follower] = self.step(fail[state], char, fail)
                if self.match[follower] is None:
                    self.match[follower] = self.match[fail[follower]]
                queue.append(follower)
        return fail

    def step(self, state: int, char: str, fail: list[int]) -> int:
        while state and char not in self.next[state]:
            state = fail[state]
        return self.next[state].get(char, 0)


@lru_cache(maxsize=8)  # the choices of a call share one; the worst case, 64 x 1024 characters, takes 20 MB
def _automaton(stops: tuple[str, ...]) -> _Automaton:
    return _Automaton(stops)


class StopScanner:
    """Finds the first stop string. `include`: it is given out as part of the text, else cut off."""

    def __init__(self, stops: Sequence[str], include: bool) -> None:
        if any(not stop for stop in stops):
            raise ValueError("an empty stop string matches everywhere")
        self._automaton = _automaton(tuple(stops))
        self._include = include
        self._state = 0
        self._held = ""
        self.hit: str | None = None

    def feed(self, text: str) -> tuple[str, str | None]:
        """(text that is certain now, the stop string if this text completed one).

        After a hit everything is ignored.
        """
        if self.hit is not None:
            return "", None
        machine = self._automaton
        if machine.first is None:
            return text, None
        state, at = self._state, 0
        while at < len(text):
            if state == 0:  # skip at the speed of the regular-expression engine
                start = machine.first.search(text, at)
                if start is None:
                    break
                at = start.start()
            state = machine.step(state, text[at], machine.fail)
            at += 1
            stop = machine.match[state]
            if stop is not None:
                self.hit = stop
                found = self._held + text[:at]
                self._held = ""
                return (found if self._include else found[: len(found) - len(stop)]), stop
        self._state = state
        known = self._held + text
        sure = len(known) - machine.depth[state]
        self._held = known[sure:]
        return known[:sure], None

    def flush(self) -> str:
        """The text held back, at the end of the stream."""
        rest, self._held, self._state = self._held, "", 0
        return rest
