"""Instances of JSON schemas, written as answers of the engine: masks, drafts, forced tokens, reasoning.

The model is played: logits with one peak ask for the instance's next token. All else is what an engine runs
for such a request, the native sampler and `penstock.engine.verify`. An instance is accepted if the answer is
that instance, token by token or forced, and then its end. Drafts are the instance's own tokens, at seeded
places wrong ones; the rows behind a wrong one ask for something else, as a model would. Between two rounds a
request may be preempted and come back. Half of the answers are greedy, which asks the matcher for one token
where it can do without a mask.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from penstock.decoding.grammar.backend import CompiledGrammar, GrammarBackend, Matcher, Vocabulary, mask_words
from penstock.decoding.grammar.spec import GrammarSpec, spec_of_schema
from penstock.decoding.grammar.store import GrammarStore
from penstock.decoding.native import NativeSampler
from penstock.decoding.params import TokenSampling
from penstock.decoding.thinking import ThinkingSpec
from penstock.engine.request_rows import BROKEN
from penstock.engine.thinking import ThinkingMarkers, bounded
from penstock.engine.verify import verify
from penstock.errors import PenstockError
from penstock.text.tokenizer import Tokenizer

PEAK = 30.0
PROMPT = "Fill in the form."
LEAD_IN = "\n\n"  # between the reasoning and the answer
WRONG, PREEMPTED = 0.4, 0.1  # shares of the rounds with a wrong draft, and of those after a preemption
MOST_TESTS = 16  # of one schema, written side by side
VERDICTS = ("pass", "refused", "false reject", "false accept", "crash")


class Schema(NamedTuple):
    id: str
    spec: GrammarSpec
    tests: list[tuple[str, bool]]  # an instance as JSON text, and whether it is valid


class Verdict(NamedTuple):
    """`name`: one of VERDICTS; `why`: the refusal, the error, or the instances that were not taken for what
    they are."""

    name: str
    why: str


class Mode(NamedTuple):
    """`drafts`: per round at most; None: the matcher alone, without sampler. `thinking`: the answer may begin
    with reasoning, and mostly does."""

    drafts: int | None
    thinking: bool = False

    def __str__(self) -> str:
        kind = "matcher alone" if self.drafts is None else f"drafts {self.drafts}"
        return kind + ", thinking" * self.thinking


def read_schemas(path: Path) -> list[Schema]:
    """The rows of a jsonschemabench.jsonl."""
    found = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        tests = [(json.dumps(test["data"], ensure_ascii=False), test["valid"]) for test in row["tests"]]
        found.append(Schema(row["id"], spec_of_schema(row["schema"], "json_schema"), tests))
    return found


class TimedBackend:
    """A backend whose compilations and masks are timed, in microseconds."""

    def __init__(self, backend: GrammarBackend) -> None:
        self.name = backend.name
        self._backend = backend
        self.compilations: list[float] = []
        self.masks: list[float] = []

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        began = time.perf_counter()
        grammar = self._backend.compile(spec)
        self.compilations.append((time.perf_counter() - began) * 1e6)
        return _TimedGrammar(grammar, self.masks)


class _TimedGrammar:
    def __init__(self, grammar: CompiledGrammar, masks: list[float]) -> None:
        self.backend = grammar.backend
        self._grammar, self._masks = grammar, masks

    def matcher(self) -> Matcher:
        matcher = self._grammar.matcher()
        fill = matcher.fill

        def timed(mask: np.ndarray) -> None:
            began = time.perf_counter()
            fill(mask)
            self._masks.append((time.perf_counter() - began) * 1e6)

        matcher.fill = timed  # type: ignore[method-assign]
        return matcher


class Script:
    """What one answer is meant to be: `head`, the reasoning as it must come out, then an instance."""

    def __init__(self, tokenizer: Tokenizer, head: list[int], instance: str) -> None:
        self._tokenizer = tokenizer
        self._head = head
        self._instance = instance.encode()
        self._body = [*tokenizer.encode_continuation(instance), tokenizer.eos_ids[0]]

    def rest(self, answer: Sequence[int]) -> list[int] | None:
        """What is still to come behind `answer`; None if that is not how the script goes.

        A grammar may force a text in other tokens than the instance has alone: the text counts."""
        answer = list(answer)
        head, said = self._head[: len(answer)], answer[len(self._head) :]
        if answer[: len(head)] != head:
            raise AssertionError(f"the reasoning came out as {answer[: len(head)]}, meant was {head}")
        if said == self._body[: len(said)]:
            return [*self._head[len(answer) :], *self._body[len(said) :]]
        text = b"".join(map(self._tokenizer.piece, said))
        if not self._instance.startswith(text) or set(said) & set(self._tokenizer.eos_ids):
            return None
        rest = self._instance[len(text) :].decode()
        return [*self._tokenizer.encode_continuation(rest), self._body[-1]]


class _Answer:
    """One instance on its way, in a slot."""

    def __init__(
        self, slot: int, chance: random.Random, script: Script, prompt: list[int], sampling: TokenSampling
    ) -> None:
        self.slot, self.chance, self.script, self.sampling = slot, chance, script, sampling
        self.prompt_len, self.tokens = len(prompt), list(prompt)
        self.accepted: bool | None = None

    @property
    def rest(self) -> list[int]:
        rest = self.script.rest(self.tokens[self.prompt_len :])
        assert rest, "a finished answer is continued"
        return rest

    def drafts(self, most: int, vocab_size: int, end: int) -> np.ndarray:
        """int32[k]"""
        drafts = self.rest[:most]
        # Whoever drafts the end of an answer may draft on: what comes of it is nobody's.
        drafts += [
            self.chance.randrange(vocab_size) for _ in range(self.chance.randint(0, most - len(drafts)))
        ]
        if drafts and self.chance.random() < WRONG:
            place = self.chance.randrange(len(drafts))
            drafts[place] = self.chance.choice([end, drafts[0], self.chance.randrange(vocab_size)])
        return np.array(drafts, np.int32)

    def take(self, drawn: Sequence[int], ends: Sequence[int]) -> None:
        """Tokens of a round; those behind the end of the answer are not its own."""
        for token in drawn:
            if token == BROKEN:
                raise AssertionError("the grammar could not be followed")
            self.tokens.append(token)
            if (rest := self.script.rest(self.tokens[self.prompt_len :])) is None:
                self.accepted = False
                return
            if token in ends:
                assert not rest
                self.accepted = True
                return


class SchemaAnswers:
    """Schemas with their grammars, which all modes share."""

    def __init__(self, tokenizer: Tokenizer, backend: GrammarBackend, most_drafts: int = 8) -> None:
        self.timed = TimedBackend(backend)
        self._tokenizer = tokenizer
        vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size)
        # The first compilation also imports the library, from a disk that may be cold.
        self._store = GrammarStore(
            self.timed, lambda: vocabulary, entries=1024, compile_s=120.0, wait_s=600.0
        )
        self._markers = ThinkingMarkers(tokenizer)
        self._sampler = NativeSampler(MOST_TESTS, tokenizer.vocab_size, self._store)
        self._rows = 1 + most_drafts
        self._logits = np.zeros((MOST_TESTS * self._rows, tokenizer.vocab_size), np.float32)
        self._prompt = tokenizer.encode(PROMPT)

    def verdict(self, schema: Schema, mode: Mode) -> Verdict:
        try:
            grammar = self._store.compiled(schema.spec)
        except PenstockError as refusal:
            return Verdict("refused", refusal.message)
        try:
            accepted = self._accepted(schema, grammar, mode)
        except Exception as error:  # noqa: BLE001  whatever it is, it is counted
            return Verdict("crash", repr(error))
        wrong = [test for test, taken in zip(schema.tests, accepted, strict=True) if taken != test[1]]
        if not wrong:
            return Verdict("pass", "")
        all_valid = all(valid for _, valid in wrong)
        return Verdict("false reject" if all_valid else "false accept", "; ".join(text for text, _ in wrong))

    def _accepted(self, schema: Schema, grammar: CompiledGrammar, mode: Mode) -> list[bool]:
        if mode.drafts is None:
            return [self._follow(grammar, text) for text, _ in schema.tests]
        found: list[bool] = []
        for first in range(0, len(schema.tests), MOST_TESTS):
            found += self._write(schema, mode, first, mode.drafts)
        return found

    def _follow(self, grammar: CompiledGrammar, text: str) -> bool:
        """By the matcher's masks alone."""
        matcher, mask = grammar.matcher(), np.zeros(mask_words(self._tokenizer.vocab_size), np.int32)
        end = self._tokenizer.eos_ids[0]
        for token in [*self._tokenizer.encode_continuation(text), end]:
            matcher.fill(mask)
            if not mask[token // 32] >> (token % 32) & 1:
                return False
            if token != end and not matcher.consume(token):
                raise AssertionError("a token that the mask allows was refused")
        return True

    def _write(self, schema: Schema, mode: Mode, first: int, most: int) -> list[bool]:
        answers = []
        for slot, (text, _) in enumerate(schema.tests[first : first + MOST_TESTS]):
            chance = random.Random(f"{schema.id} {first + slot} {mode}")
            answers.append(self._begin(slot, chance, schema.spec, text, mode.thinking))
            self._admit(answers[-1])
        going = answers
        while going := [answer for answer in going if answer.accepted is None]:
            for answer in going:
                if answer.chance.random() < PREEMPTED:
                    self._admit(answer)
            self._round(going, most)
        return [bool(answer.accepted) for answer in answers]

    def _begin(self, slot: int, chance: random.Random, spec: GrammarSpec, text: str, thinks: bool) -> _Answer:
        prompt, head, thinking = self._prompt, [], None
        if thinks:
            prompt, head, thinking = self._reasoning(chance, text)
        script = Script(self._tokenizer, head, text)
        max_tokens = 2 * len(script.rest([]) or ()) + 64  # forced texts may be spelled in more tokens
        if thinking is not None:
            thinking = bounded(thinking, thinking.budget, max_tokens, True, thinking.lead_in)
        sampling = TokenSampling(
            max_tokens=max_tokens,
            seed=chance.getrandbits(32),
            temperature=chance.choice([0.0, 1.0]),
            stop_token_ids=self._tokenizer.eos_ids,
            grammar=spec,
            thinking=thinking,
        )
        return _Answer(slot, chance, script, prompt, sampling)

    def _admit(self, answer: _Answer) -> None:
        """At its beginning, or back from a preemption."""
        known = np.array(answer.tokens, np.int32)
        self._sampler.admit(answer.slot, known, answer.prompt_len, answer.sampling)

    def _round(self, answers: list[_Answer], most: int) -> None:
        """One step of the engine, with drafts of every answer."""
        ends, vocab_size = self._tokenizer.eos_ids, self._tokenizer.vocab_size
        drafts = [answer.drafts(answer.chance.randint(0, most), vocab_size, ends[0]) for answer in answers]
        places = np.arange(len(answers), dtype=np.int32) * self._rows
        peaks: list[tuple[int, int]] = []
        for answer, place, drafted in zip(answers, places.tolist(), drafts, strict=True):
            wanted = answer.rest
            for row in range(len(drafted) + 1):
                right = drafted[:row].tolist() == wanted[:row] and row < len(wanted)
                peaks.append((place + row, wanted[row] if right else answer.chance.randrange(vocab_size)))
        rows, tokens = zip(*peaks, strict=True)
        self._logits[rows, tokens] = PEAK
        slots = np.array([answer.slot for answer in answers], np.int32)
        positions = np.array([len(answer.tokens) for answer in answers], np.int32)
        self._sampler.begin(slots)
        try:
            drawn = verify(self._sampler, self._logits, places, slots, positions, drafts)
        finally:
            self._logits[rows, tokens] = 0.0
        for answer, row in zip(answers, drawn.tokens.tolist(), strict=True):
            answer.take([token for token in row if token != -1], ends)

    def _reasoning(self, chance: random.Random, text: str) -> tuple[list[int], list[int], ThinkingSpec]:
        """A prompt, how its answer begins, and what the engine is told of it: reasoning that the prompt
        opened, that the answer opens or has none of; that ends by itself, or by its budget."""
        begin, ends = self._markers.spellings("<think>"), self._markers.spellings("</think>")
        thoughts = self._tokenizer.encode_continuation(
            f'Let me see. {{"a": [1]}}? Or {text[:60]}'.replace("<", "")
        )
        thoughts = thoughts[: chance.randint(2, 40)]
        lead_in = self._markers.ids(chance.choice(["", LEAD_IN]))
        budget = chance.choice([None, chance.randrange(len(thoughts)), 2 * len(thoughts)])
        spec = ThinkingSpec(starts=begin, ends=ends, budget=budget, lead_in=lead_in)
        written = thoughts[:budget]
        kind = chance.choice(["opened before", "begun", "none"])
        if kind == "none":
            return self._prompt, [], spec
        closed = [*written, *ends[0], *lead_in]
        if kind == "begun":
            return self._prompt, [*begin[0], *closed], spec
        used = chance.randint(0, len(written))
        opened = ThinkingSpec(starts=begin, ends=ends, budget=budget, lead_in=lead_in, open=True, used=used)
        return [*self._prompt, *begin[0], *written[:used]], closed[used:], opened
