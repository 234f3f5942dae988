"""Drafters that take time, in virtual time: what they cost where they are wrong, and bring otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest

from penstock.config import SpeculationSettings
from penstock.decoding.drafting.drafter import NOTHING, Proposal
from penstock.decoding.params import TokenSampling
from penstock.engine.build import assemble_core
from penstock.engine.messages import Submit, pack_tokens
from penstock.engine.plan import StepPlan
from penstock.engine.shape import CoreShape
from penstock.kv.groups import LayerKV, plan_layout
from penstock.simulate.clock import VirtualClock
from penstock.simulate.device import SimDevice, SimStep, StepTime

STEP_S, TOKEN_S, HOST_S = 0.010, 0.0002, 0.001
PROMPT = 20

IsRight = Callable[[int], bool]  # of a position: the draft for it


class TimedDevice(SimDevice):
    """Says what a step took; the host takes time to launch one."""

    def launch(self, plan: StepPlan) -> SimStep:
        self.clock.advance_to(self.clock() + HOST_S)
        step = super().launch(plan)
        step._result = msgspec.structs.replace(step._result, device_s=self._step_time(plan))
        return step


class SlowDrafter:
    """Takes `draft_s` for each draft, of all requests at once. A right one is what the device will say."""

    name = "slow"

    def __init__(self, clock: VirtualClock, draft_s: float, is_right: IsRight) -> None:
        self._clock, self._draft_s, self._is_right = clock, draft_s, is_right
        self._known: dict[int, int] = {}
        self.drafting_s = 0.0

    def admit(self, slot: int, tokens: np.ndarray, tenant: str, prompt_len: int | None = None) -> None:
        self._known[slot] = len(tokens)

    def extend(self, slot: int, tokens: Sequence[int]) -> None:
        self._known[slot] += len(tokens)

    def release(self, slot: int, finished: bool = False) -> None:
        self._known.pop(slot, None)

    def propose(self, slot: int, most: int) -> Proposal:
        return self.propose_all([slot], [most])[0]

    def propose_all(self, slots: Sequence[int], most: Sequence[int]) -> list[Proposal]:
        taken = self._draft_s * max(most)
        self.drafting_s += taken
        self._clock.advance_to(self._clock() + taken)
        found = []
        for slot, count in zip(slots, most, strict=True):
            positions = range(self._known[slot], self._known[slot] + count)
            tokens = [100 + at % 1000 if self._is_right(at) else 7 for at in positions]
            found.append(Proposal(tokens, [1.0] * count, 1) if count else NOTHING)
        return found


def _run(
    tokens: int, requests: int = 1, at_once: int = 1, draft_s: float = 0.004, is_right: IsRight | None = None
) -> tuple[float, float]:
    """Virtual seconds of all requests, and of their drafts. is_right: None for plain decoding."""
    clock = VirtualClock()
    speculation = None if is_right is None else SpeculationSettings(method="self", k=5)
    shape = CoreShape(
        layout=plan_layout([LayerKV(1, 1)], 16, itemsize=1),
        num_blocks=8000,
        num_slots=16,
        max_context=16_384,
        token_budget=512,
        async_depth=1,
        max_queue=10**6,
        prefix_cache=False,
        namespace=b"test",
        speculation=speculation,
    )
    device = TimedDevice(clock, StepTime(fixed_s=STEP_S, per_token_s=TOKEN_S))
    drafter = SlowDrafter(clock, draft_s, is_right or (lambda at: False))
    core = assemble_core(shape, device, lambda client, deltas: None, clock, make_drafter=lambda kv: drafter)
    waiting = list(range(requests))
    while waiting or core.has_work:
        while waiting and len(core._requests) < at_once:
            sampling = TokenSampling(max_tokens=tokens, seed=0)
            core.submit(
                "c", Submit(id=str(waiting.pop()), tokens=pack_tokens([5] * PROMPT), sampling=sampling)
            )
        core.step()
    core.check_idle()
    return clock(), drafter.drafting_s


@pytest.mark.parametrize(("requests", "at_once"), [(1, 1), (40, 1), (64, 8)])
@pytest.mark.parametrize("right", [0, 3], ids=["never right", "seldom right"])
def test_a_drafter_that_does_not_pay_costs_less_than_a_hundredth(
    requests: int, at_once: int, right: int
) -> None:
    """Red if it is tried anew with every request, or for longer than its credit lasts."""
    tokens = 8000 // requests if requests < 64 else 400
    plain_s, _ = _run(tokens, requests, at_once)
    taken_s, drafting_s = _run(tokens, requests, at_once, is_right=lambda at: right > 0 and at % 10 < right)
    assert 0 < drafting_s < 0.01 * plain_s
    assert taken_s < 1.01 * plain_s


def test_a_dear_drafter_that_is_always_right_is_not_taken() -> None:
    """Red if the price of drafts does not count: a step verifies all of them almost for free."""
    plain_s, _ = _run(3000)
    taken_s, _ = _run(3000, draft_s=0.02, is_right=lambda at: True)
    assert taken_s < 1.01 * plain_s


@pytest.mark.parametrize(("requests", "at_once"), [(1, 1), (20, 1), (32, 8)])
def test_a_drafter_that_pays_is_taken_from_the_start(requests: int, at_once: int) -> None:
    """Red if what is right has to wait for credit, or is paid for with too few drafts. Five drafts bring six
    tokens for 31 ms and more, where plain steps take 60."""
    plain_s, _ = _run(200, requests, at_once)
    taken_s, _ = _run(200, requests, at_once, draft_s=0.003, is_right=lambda at: True)
    assert taken_s < plain_s / 1.5


def test_a_drafter_that_becomes_right_is_found_out() -> None:
    """Red if a drafter that once did not pay is never asked again."""
    turned = 4000
    plain_s, _ = _run(2 * turned)
    taken_s, _ = _run(2 * turned, draft_s=0.003, is_right=lambda at: at > turned)
    assert taken_s < 0.9 * plain_s


def test_a_drafter_that_turns_wrong_is_left_within_a_few_steps() -> None:
    """Red if what a drafter once gained lets it lose for long."""
    turned = 2000
    plain_s, _ = _run(turned)
    both_s, _ = _run(2 * turned, draft_s=0.003, is_right=lambda at: at < turned)
    right_s, _ = _run(turned, draft_s=0.003, is_right=lambda at: True)
    assert both_s - right_s < 1.03 * plain_s
