"""HashDevice: a device whose "KV" is checkable and whose tokens depend on every KV entry it reads.

Each KV entry is the chained hash of all tokens up to its position. A row reads, through its block
tables, everything that attention would read, and raises if one entry is not the hash that its
request's own history gives: a block shared wrongly, reused too early, freed out of a window, or
published before it was written is an error at the step that would have read garbage. The drawn
token is a function of that hash, so `expected_tokens` is an oracle that knows no scheduler.

Steps execute at `wait`, as late as possible: a plan changed after its launch is caught too. Windows of
decode steps, stop tokens in them and cuts are those of `penstock.engine.plan.WindowDevice`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from msgspec import Struct

from penstock.decoding.drafting.drafter import Proposal
from penstock.engine.plan import Pending, StepPlan, StepResult
from penstock.kv.groups import KVLayout

_MASK = (1 << 61) - 1
VOCAB = 97


def chain(tokens: list[int]) -> list[int]:
    """Hash after each token."""
    out, value = [], 17
    for position, token in enumerate(tokens):
        value = (value * 1_000_003 + token * 7919 + position) & _MASK
        out.append(value)
    return out


def expected_tokens(
    prompt: list[int], max_tokens: int, stop: tuple[int, ...] = (), min_tokens: int = 0
) -> list[int]:
    """What any correct engine returns for this request over a HashDevice."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(chain(tokens)[-1] % VOCAB)
        if tokens[-1] in stop and len(tokens) - len(prompt) > min_tokens:
            break
    return tokens[len(prompt) :]


class HashDrafter:
    """Proposes what the device will draw, with a wrong token after every `right` ones; how many changes."""

    name = "hash"

    def __init__(self, right: int) -> None:
        self._right = right
        self._tokens: dict[int, list[int]] = {}
        self._asked = 0

    def admit(self, slot: int, tokens: np.ndarray, tenant: str, prompt_len: int | None = None) -> None:
        self._tokens[slot] = tokens.tolist()

    def extend(self, slot: int, tokens: Sequence[int]) -> None:
        self._tokens[slot].extend(tokens)

    def propose(self, slot: int, most: int) -> Proposal:
        self._asked += 1
        tokens = list(self._tokens[slot])
        for place in range(self._asked % (most + 1)):
            wrong = (place + self._asked) % (self._right + 1) == self._right
            tokens.append((chain(tokens)[-1] + wrong) % VOCAB)
        drafts = tokens[len(self._tokens[slot]) :]
        return Proposal(drafts, [1.0] * len(drafts), 1)

    def release(self, slot: int, finished: bool = False) -> None:
        del self._tokens[slot]

    def check_idle(self) -> None:
        assert not self._tokens, f"slots {sorted(self._tokens)} were not released"


class HashStep:
    """A step of a launch, executed when it is waited for."""

    def __init__(self, device: HashDevice, plan: StepPlan, index: int, window: Window) -> None:
        self._device, self._plan, self._index, self._window = device, plan, index, window
        self._done: list[StepResult | Exception | None] = []

    def wait(self) -> StepResult | None:
        if not self._done:
            self._done.append(self._run())
        if isinstance(self._done[0], Exception):
            raise self._done[0]
        return self._done[0]

    def has_result(self) -> bool:
        if not self._done:
            self._done.append(self._run())
        return isinstance(self._done[0], StepResult)

    def _run(self) -> StepResult | Exception | None:
        if self._index >= self._window.limit:
            return None
        self._window.begun = self._index + 1
        try:
            return self._device.execute(self._plan, self._index, self._window)
        except RuntimeError as error:
            return error


class Window(Struct):
    """Of one launch: steps that run at most, and steps begun."""

    limit: int
    begun: int = 0


class HashDevice:
    def __init__(
        self, layout: KVLayout, num_blocks: int, num_slots: int, max_context: int, token_budget: int
    ) -> None:
        self._layout = layout
        self._budget = token_budget
        self._tokens = np.full((num_slots, max_context + 1), -1, np.int64)
        self._tables = [np.full((num_slots, -(-max_context // layout.block_size)), -1) for _ in layout.groups]
        self._content: dict[tuple[int, int], tuple[int, int]] = {}  # (block, offset) -> (group, hash)
        self._num_blocks = num_blocks
        self._launched = self._executed = 0
        self._stops: dict[int, tuple[tuple[int, ...], int]] = {}  # slot -> (ids, tokens before they count)
        self._ended: set[int] = set()
        self._youngest = Window(1)
        self.plans: list[StepPlan] = []
        self.verified_drafts = self.accepted_drafts = 0
        self.computed_tokens = 0
        self.cuts = self._waits = 0
        self.together = 0  # most steps that were ready at once
        self.steps: list[int] = []  # numbers of the steps that ran

    def launch(self, plan: StepPlan) -> HashStep:
        return self.launch_window(plan)[0]

    def launch_window(self, plan: StepPlan) -> list[HashStep]:
        assert plan.step == self._launched + 1, "plans are not numbered by the steps that they cover"
        self._launched += plan.window
        self.plans.append(plan)
        self._youngest = Window(plan.window)
        return [HashStep(self, plan, index, self._youngest) for index in range(plan.window)]

    def cut(self) -> int:
        """Every second time a step is running that nobody waited for yet."""
        window = self._youngest
        self.cuts += 1
        window.limit = min(window.limit, max(1, window.begun + self.cuts % 2))
        return window.limit

    def ready(self, steps: Sequence[Pending], seconds: float) -> int:
        """Every third time it is interrupted in the middle."""
        self._waits += 1
        most = len(steps) // 2 if self._waits % 3 == 0 else len(steps)
        done = 0
        while done < most and cast(HashStep, steps[done]).has_result():
            done += 1
        self.together = max(self.together, done)
        return done

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass

    def execute(self, plan: StepPlan, index: int, window: Window) -> StepResult | None:
        assert plan.step + index > self._executed, "steps ran out of order"
        self._executed = plan.step + index
        assert len(set(plan.slots.tolist())) == plan.num_rows, "a slot twice in one plan"
        assert (plan.counts > 0).all(), "an empty row"
        if index == 0:
            self._enter(plan)
        single = plan.window == 1
        assert (plan.num_tokens if single else plan.num_rows) <= self._budget, "over the token budget"
        assert single or (plan.samples.all() and plan.counts.max() == plan.window), "no window of decode rows"
        rows = [row for row in range(plan.num_rows) if single or index < plan.counts[row]]
        rows = [row for row in rows if int(plan.slots[row]) not in self._ended]
        if not rows and not single:
            window.limit = index
            return None
        # All rows write before any reads across rows could matter; a row reads only its own tables.
        self.steps.append(self._executed)
        drawn = np.full(plan.num_rows, -1, np.int32)
        for row in rows:
            start = int(plan.starts[row]) + index
            drawn[row] = self._row(plan, row, start, int(plan.counts[row]) if single else 1)
        if plan.draft_counts is not None:
            return StepResult(step=plan.step + index, tokens=self._verify(plan, drawn))
        return StepResult(step=plan.step + index, tokens=drawn)

    def _verify(self, plan: StepPlan, first: np.ndarray) -> np.ndarray:
        """The tokens of rows with drafts: each is what the hash of those before it gives."""
        tokens = np.full((plan.num_rows, int(plan.draft_counts.max()) + 1), -1, np.int32)
        tokens[:, 0] = first
        for row in np.flatnonzero(plan.draft_counts).tolist():
            slot, drafts = int(plan.slots[row]), plan.drafts_of(row).tolist()
            self.verified_drafts += len(drafts)
            position = int(plan.starts[row] + plan.counts[row]) - len(drafts)
            ids, least = self._stops[slot]
            for column in range(len(drafts) + 1):
                token = chain(self._tokens[slot, : position + column].tolist())[-1] % VOCAB
                tokens[row, column] = self._tokens[slot, position + column] = token
                if token in ids and position + column + 1 > least:
                    self._ended.add(slot)
                    break
                if column < len(drafts) and token != drafts[column]:
                    break
                self.accepted_drafts += column < len(drafts)
        return tokens

    def _enter(self, plan: StepPlan) -> None:
        for admission in plan.admissions:
            self._tokens[admission.slot] = -1
            self._tokens[admission.slot, : len(admission.tokens)] = admission.tokens
            sampling = admission.sampling
            self._stops[admission.slot] = (
                sampling.stop_token_ids,
                admission.prompt_len + sampling.min_tokens,
            )
            self._ended.discard(admission.slot)
        for update in plan.updates:
            blocks = np.asarray(update.blocks)
            assert ((blocks >= 0) & (blocks < self._num_blocks)).all()
            self._tables[update.group][update.slot, update.first : update.first + len(blocks)] = blocks

    def _row(self, plan: StepPlan, row: int, start: int, count: int) -> int:
        slot, end = int(plan.slots[row]), start + count
        self.computed_tokens += count
        drafts = plan.drafts_of(row)
        if len(drafts):
            self._tokens[slot, end - len(drafts) : end] = drafts
        tokens = self._tokens[slot, :end].tolist()
        assert min(tokens) >= 0, f"slot {slot}: a token below {end} is not known to the device"
        hashes = chain(tokens)
        size = self._layout.block_size
        for group, spec in enumerate(self._layout.groups):
            table = self._tables[group][slot]
            for position in range(start, end):
                self._content[int(table[position // size]), position % size] = (group, hashes[position])
            first = 0 if spec.window is None else max(0, start - spec.window + 1)
            for position in range(first, end):
                found = self._content.get((int(table[position // size]), position % size))
                assert found == (group, hashes[position]), (
                    f"step {plan.step}, slot {slot}, group {group}, position {position} of {end}: wrong KV"
                )
        if not plan.samples[row] or len(drafts):
            return -1
        token = hashes[-1] % VOCAB
        self._tokens[slot, end] = token
        ids, least = self._stops[slot]
        if token in ids and end + 1 > least:
            self._ended.add(slot)
        return token
