"""HashDevice: a device whose "KV" is checkable and whose tokens depend on every KV entry it reads.

Each KV entry is the chained hash of all tokens up to its position. A row reads, through its block
tables, everything that attention would read, and raises if one entry is not the hash that its
request's own history gives: a block shared wrongly, reused too early, freed out of a window, or
published before it was written is an error at the step that would have read garbage. The drawn
token is a function of that hash, so `expected_tokens` is an oracle that knows no scheduler.

Steps execute at `wait`, as late as possible: a plan changed after its launch is caught too.
"""

from __future__ import annotations

import numpy as np

from penstock.engine.plan import StepPlan, StepResult
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


class HashStep:
    def __init__(self, device: HashDevice, plan: StepPlan) -> None:
        self._device, self._plan = device, plan

    def wait(self) -> StepResult:
        return self._device.execute(self._plan)


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
        self._executed = 0
        self.plans: list[StepPlan] = []
        self.computed_tokens = 0

    def launch(self, plan: StepPlan) -> HashStep:
        self.plans.append(plan)
        return HashStep(self, plan)

    def close(self) -> None:
        pass

    def execute(self, plan: StepPlan) -> StepResult:
        assert plan.step == self._executed + 1, "steps ran out of order"
        self._executed = plan.step
        assert len(set(plan.slots.tolist())) == plan.num_rows, "a slot twice in one plan"
        assert plan.num_tokens <= self._budget, "over the token budget"
        assert (plan.counts > 0).all(), "an empty row"
        self.computed_tokens += plan.num_tokens
        for admission in plan.admissions:
            self._tokens[admission.slot] = -1
            self._tokens[admission.slot, : len(admission.tokens)] = admission.tokens
        for update in plan.updates:
            blocks = np.asarray(update.blocks)
            assert ((blocks >= 0) & (blocks < self._num_blocks)).all()
            self._tables[update.group][update.slot, update.first : update.first + len(blocks)] = blocks
        # All rows write before any reads across rows could matter; a row reads only its own tables.
        drawn = [self._row(plan, row) for row in range(plan.num_rows)]
        return StepResult(step=plan.step, tokens=np.array(drawn, np.int32))

    def _row(self, plan: StepPlan, row: int) -> int:
        slot, start, count = int(plan.slots[row]), int(plan.starts[row]), int(plan.counts[row])
        end = start + count
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
        if not plan.samples[row]:
            return -1
        token = hashes[-1] % VOCAB
        self._tokens[slot, end] = token
        return token
