"""Host drafters against their brute-force twins and transformers' prompt lookup."""

from __future__ import annotations

import inspect
import math
import re
import textwrap
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from naive_drafters import common_suffix, frequent_path, ngram_proposal, suffix_proposal

from penstock.decoding.drafting import contexts
from penstock.decoding.drafting.drafter import NOTHING, HostDrafter
from penstock.decoding.drafting.ngram import NgramDrafter
from penstock.decoding.drafting.suffix import SuffixDrafter
from penstock.errors import PenstockError

LONGEST, SHORTEST = 3, 1
DEPTH, FACTOR, LEAST = 4, 1.5, 0.3
SLOTS = 4
TENANTS = 2
# Two tokens that all tenants use, so that their contexts are the same, and one that tells whose text it is.
TOKEN = st.integers(0, 2)
# Often periodic, as real text is: matches are long, and the latest runs off the end.
TEXT = st.builds(list.__mul__, st.lists(TOKEN, max_size=6), st.integers(1, 3))
MARK = 2


def int32(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int32)


def ngram(**changed: int) -> NgramDrafter:
    return NgramDrafter(**{"longest": LONGEST, "shortest": SHORTEST, **changed})


def suffix(**changed: float) -> SuffixDrafter:
    """One that counts every occurrence and forgets nothing, unless told otherwise."""
    defaults = {"sampled": 10**6, "kept_tokens": 10**6}
    return SuffixDrafter(
        depth=DEPTH, max_spec_factor=FACTOR, least_probability=LEAST, **{**defaults, **changed}
    )


# ---------------------------------------------------------------- many requests over few slots


@dataclass
class Request:
    tenant: int
    prompt: list[int]
    output: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.output


class Drafting(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ngram = ngram()
        self.suffix = suffix()
        self.drafters: list[HostDrafter] = [self.ngram, self.suffix]
        self.held: dict[int, Request] = {}
        self.waiting: list[Request] = []
        self.finished: dict[int, list[tuple[list[int], int]]] = defaultdict(list)  # latest first

    def place(self, slot: int, request: Request) -> None:
        self.held[slot] = request
        for drafter in self.drafters:
            drafter.admit(slot, int32(request.tokens), str(request.tenant), len(request.prompt))

    def mine(self, tenant: int, tokens: list[int]) -> list[int]:
        return [10 + tenant if token == MARK else token for token in tokens]

    def any_slot(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.held)))

    @precondition(lambda self: len(self.held) < SLOTS)
    @rule(data=st.data(), tenant=st.integers(0, TENANTS - 1), prompt=TEXT)
    def admit(self, data: st.DataObject, tenant: int, prompt: list[int]) -> None:
        slot = data.draw(st.sampled_from(sorted(set(range(SLOTS)) - set(self.held))))
        self.place(slot, Request(tenant, self.mine(tenant, prompt)))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), tokens=TEXT)
    def extend(self, data: st.DataObject, tokens: list[int]) -> None:
        slot = self.any_slot(data)
        tokens = self.mine(self.held[slot].tenant, tokens)
        self.held[slot].output += tokens
        for drafter in self.drafters:
            drafter.extend(slot, tokens)

    @rule(most=st.integers(0, 9))
    def propose(self, most: int) -> None:
        for slot, request in self.held.items():
            proposal = self.ngram.propose(slot, most)
            assert proposal.tokens == ngram_proposal(request.tokens, LONGEST, SHORTEST, most)
            proposal = self.suffix.propose(slot, most)
            settings = (DEPTH, FACTOR, LEAST, most)
            own = suffix_proposal(request.tokens, [(request.tokens, 0)], *settings)
            shared = suffix_proposal(request.tokens, self.finished[request.tenant], *settings)
            expected = shared if sum(shared[1]) > sum(own[1]) else own
            assert (proposal.tokens, proposal.survival, proposal.support) == expected
            assert all(token < 10 or token == 10 + request.tenant for token in proposal.tokens)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        slot = self.any_slot(data)
        request = self.held.pop(slot)
        if request.output:
            start = min(DEPTH, len(request.prompt))
            kept = request.prompt[len(request.prompt) - start :] + request.output
            self.finished[request.tenant].insert(0, (kept, start))
        for drafter in self.drafters:
            drafter.release(slot, finished=True)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), comes_back=st.booleans())
    def leave(self, data: st.DataObject, comes_back: bool) -> None:
        slot = self.any_slot(data)
        request = self.held.pop(slot)
        if comes_back:
            self.waiting.append(request)
        for drafter in self.drafters:
            drafter.release(slot)

    @precondition(lambda self: self.waiting and len(self.held) < SLOTS)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(set(range(SLOTS)) - set(self.held))))
        self.place(slot, self.waiting.pop(0))

    def teardown(self) -> None:
        for slot in range(SLOTS):
            for drafter in self.drafters:
                drafter.release(slot)
                with pytest.raises(PenstockError, match=f"slot {slot} holds no request"):
                    drafter.propose(slot, 1)
        assert not self.ngram._requests and not self.suffix._requests
        kept = sum(1 + len(text) for texts in self.finished.values() for text, _ in texts)
        assert self.suffix.outputs.num_tokens == kept


@pytest.mark.parametrize("max_run", [contexts.MAX_RUN, 3])
def test_requests_over_few_slots(max_run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a proposal differs from a scan of the request's tokens and its tenant's outputs: by a slot's
    former text, another tenant's, a preemption, a tie decided otherwise, a match over the border of two runs
    or texts; or if a released request leaves anything behind."""
    monkeypatch.setattr(contexts, "MAX_RUN", max_run)
    run_state_machine_as_test(Drafting, settings=settings(stateful_step_count=40))


# ---------------------------------------------------------------- n-grams


def transformers_proposal(tokens: list[int], longest: int, most: int) -> list[int]:
    import torch
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    generator = PromptLookupCandidateGenerator(
        num_output_tokens=most, max_matching_ngram_size=longest, max_length=10**9
    )
    candidates, _ = generator.get_candidates(torch.tensor([tokens]))
    return candidates[0, len(tokens) :].tolist()


@given(
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    output=st.lists(st.integers(0, 3), max_size=10),
    longest=st.integers(1, 6),
    most=st.integers(1, 12),
)
def test_ngram_proposes_what_transformers_does(
    prompt: list[int], output: list[int], longest: int, most: int
) -> None:
    """Red if another length of n-gram, occurrence or number of tokens is chosen than by prompt lookup."""
    drafter = ngram(longest=longest)
    drafter.admit(0, int32(prompt), "")
    for known in range(len(output) + 1):
        tokens = prompt + output[:known]
        assert drafter.propose(0, most).tokens == transformers_proposal(tokens, longest, most)
        drafter.extend(0, output[known : known + 1])


def real_tokens() -> list[int]:
    """A module of the standard library; a token is a word, a sign or a run of blanks."""
    pieces = re.findall(r"\w+|[^\w\s]|\s+", inspect.getsource(textwrap))
    ids: dict[str, int] = {}
    return [ids.setdefault(piece, len(ids)) for piece in pieces]


def test_ngram_proposes_what_transformers_does_in_real_text() -> None:
    """Red as above, where n-grams of all lengths and the prompt's border occur as in use."""
    tokens = real_tokens()
    drafter = ngram(longest=5)
    drafter.admit(0, int32(tokens[:1000]), "")
    for known in range(1000, len(tokens), 7):
        assert drafter.propose(0, 8).tokens == transformers_proposal(tokens[:known], 5, 8)
        drafter.extend(0, tokens[known : known + 7])


@given(tokens=st.lists(st.integers(0, 2), max_size=90), shortest=st.integers(1, 3))
def test_ngram_support_is_the_whole_match(tokens: list[int], shortest: int) -> None:
    """Red if support is not how far the text before the copied tokens and the text's end agree, up to 32."""
    drafter = ngram(longest=3, shortest=shortest)
    drafter.admit(0, int32(tokens), "")
    proposal = drafter.propose(0, len(tokens) + 1)
    assert proposal.tokens == ngram_proposal(tokens, 3, shortest, len(tokens) + 1)
    copied_from = len(tokens) - len(proposal.tokens)
    expected = common_suffix(tokens[:copied_from], tokens, 32) if proposal.tokens else 0
    assert proposal.support == expected
    assert proposal.survival == [1.0] * len(proposal.tokens)


# ---------------------------------------------------------------- suffixes


@given(tokens=st.lists(st.integers(0, 2), max_size=60), sampled=st.integers(1, 5), most=st.integers(1, 6))
def test_suffix_counts_a_sample_of_the_occurrences(tokens: list[int], sampled: int, most: int) -> None:
    """Red if more than `sampled` occurrences are counted, or others than every n-th in context order."""

    def context(place: int) -> list[int]:
        nearest_first = tokens[max(0, place - DEPTH) : place][::-1]
        return nearest_first + [2**32 - 1] * (DEPTH - len(nearest_first))

    drafter = suffix(sampled=sampled)
    drafter.admit(0, int32(tokens), "")
    proposal = drafter.propose(0, most)
    lengths = [common_suffix(tokens[:place], tokens, DEPTH) for place in range(len(tokens))]
    support = max(lengths, default=0)
    places = sorted((p for p, n in enumerate(lengths) if n == support), key=lambda p: (context(p), p))
    step = max(1, math.ceil(len(places) / sampled))
    paths = [tokens[place:] for place in sorted(places[::step], reverse=True)]
    assert len(paths) <= sampled
    limit = min(most, int(FACTOR * support))
    assert (proposal.tokens, proposal.survival) == frequent_path(paths, limit, LEAST)


def test_suffix_stops_at_what_is_unlikely() -> None:
    """Red if the product of frequencies is not compared with the least probability, or support is wrong."""
    drafter = SuffixDrafter(depth=4, max_spec_factor=10, least_probability=0.5)
    # After 1 2: three times 3, once 9; after that 4 twice and 5 once: 3/4, then 2/4, then 1/4.
    drafter.admit(0, int32([1, 2, 3, 4, 6, 1, 2, 3, 4, 7, 1, 2, 3, 5, 8, 1, 2, 9, 1, 2]), "")
    proposal = drafter.propose(0, 8)
    assert (proposal.tokens, proposal.survival, proposal.support) == ([3, 4], [0.75, 0.5], 2)


@pytest.mark.parametrize(
    ("factor", "offset", "proposed"), [(1, 0, 3), (0.5, 0, 1), (1, 2, 5), (0, 1, 1), (0, 0, 0)]
)
def test_suffix_proposes_in_proportion_to_the_match(factor: float, offset: float, proposed: int) -> None:
    """Red if a match of length 3 allows another number of tokens than factor * 3 + offset."""
    drafter = SuffixDrafter(max_spec_factor=factor, max_spec_offset=offset)
    drafter.admit(0, int32([1, 2, 3, 11, 12, 13, 14, 15, 16, 1, 2, 3]), "")
    assert drafter.propose(0, 8).tokens == [11, 12, 13, 14, 15, 16][:proposed]


def test_suffix_draws_on_finished_outputs() -> None:
    """Red if an output that finished is not proposed from its first token on, or if one that only left is."""
    drafter = SuffixDrafter()
    prompt, output = [1, 2, 3, 4], [5, 6, 7]
    for finished, expected in ((False, []), (True, output)):
        drafter.admit(0, int32(prompt), "a", len(prompt))
        drafter.extend(0, output)
        drafter.release(0, finished)
        drafter.admit(1, int32(prompt), "a", len(prompt))
        proposal = drafter.propose(1, 8)
        assert (proposal.tokens, proposal.support) == (expected, len(prompt) if finished else 0)
        drafter.admit(2, int32(prompt), "b", len(prompt))
        assert drafter.propose(2, 8) == NOTHING


def test_suffix_goes_on_where_most_outputs_end() -> None:
    """Red if the end of a text counts as what follows: two outputs end where the third goes on."""
    drafter = SuffixDrafter(max_spec_factor=8)
    for output in ([1, 2], [1, 2], [1, 2, 3]):
        drafter.admit(0, int32([5]), "", 1)
        drafter.extend(0, output)
        drafter.release(0, finished=True)
    drafter.admit(0, int32([1]), "")
    assert drafter.propose(0, 8).tokens == [2, 3]


def test_copying_is_accepted() -> None:
    """Red if a text that repeats the prompt is not drafted almost entirely."""
    tokens = real_tokens()[:1500]
    for drafter in (NgramDrafter(), SuffixDrafter()):
        drafter.admit(0, int32(tokens), "")
        done = steps = 0
        while done < len(tokens):
            right = common_suffix(drafter.propose(0, 8).tokens[::-1], tokens[done : done + 8][::-1], 8)
            drafter.extend(0, tokens[done : done + right + 1])
            done += right + 1
            steps += 1
        assert done / steps > 6, drafter.name


def test_settings_that_make_no_sense() -> None:
    """Red if they are taken and fail later."""
    for lengths in ({"shortest": 0}, {"longest": 1, "shortest": 2}):
        with pytest.raises(ValueError, match="shortest <= longest"):
            NgramDrafter(**lengths)
    for numbers in ({"depth": 0}, {"sampled": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            SuffixDrafter(**numbers)
