"""StepPlan and StepResult: what the scheduler decides and what the device answers.

Both are values: arrays in them are read-only, nobody edits a plan after `schedule()` returned it,
and (plan, result) pairs can be logged, replayed and simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np
from msgspec import Struct

from penstock.decoding.params import RowLogprobs, TokenSampling
from penstock.resource import TableUpdate


def frozen_array(values: Any, dtype: Any) -> np.ndarray:
    """A read-only array; copies only if `values` is not already such an array."""
    array = np.asarray(values, dtype=dtype)
    if array.flags.writeable:
        if array.base is not None or array is values:
            array = array.copy()
        array.flags.writeable = False
    return array


class Admission(Struct, frozen=True):
    """A request enters `slot`: the device's table row is written anew.

    tokens: int32[known], prompt followed by what was generated before a preemption.
    """

    slot: int
    generation: int
    tokens: np.ndarray
    prompt_len: int
    sampling: TokenSampling


class StepPlan(Struct, frozen=True, kw_only=True):
    """One step: decided by the scheduler, executed by the device, edited by nobody.

    Rows are in attention order. R rows; row r computes positions
    [starts[r], starts[r] + counts[r]) of the request in slots[r].

    slots, generations, starts, counts: int32[R]; sum(counts) <= token_budget.
    samples: bool[R], the row reaches the end of its known tokens, so a token is drawn after it.
    prompt_logits: bool[R], log-probabilities of every computed prompt position are wanted.
    draft_counts: int32[R] or None; the last draft_counts[r] tokens that row r computes are drafts, whose
    ids are in `drafts` (int32, row after row). Such a row samples after its last known token and after
    each draft as long as the drafts before it were what was drawn.
    admissions and updates apply before the rows.

    With `window` above 1 it is that many steps, numbered from `step` on, which the device runs by itself:
    row r takes part in the first counts[r] of them, computes one token in each and draws after every
    one. A stop token, which the device knows, ends its row's part early.
    """

    step: int
    slots: np.ndarray
    generations: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    samples: np.ndarray
    prompt_logits: np.ndarray
    admissions: tuple[Admission, ...] = ()
    updates: tuple[TableUpdate, ...] = ()
    window: int = 1
    draft_counts: np.ndarray | None = None
    drafts: np.ndarray | None = None

    @property
    def num_rows(self) -> int:
        return len(self.slots)

    def counts_of(self, index: int) -> np.ndarray:
        """int32[n]: tokens that step `index` of the window computes, of the rows that take part."""
        return self.counts if self.window == 1 else np.minimum(self.counts[self.counts > index], 1)

    @property
    def num_tokens(self) -> int:
        return int(self.counts.sum())

    def drafts_of(self, row: int) -> np.ndarray:
        """int32[draft_counts[row]]"""
        if self.draft_counts is None or self.drafts is None:
            return _NO_DRAFTS
        first = int(self.draft_counts[:row].sum())
        return self.drafts[first : first + int(self.draft_counts[row])]

    def accepted(self, tokens: np.ndarray) -> np.ndarray:
        """int32[R]: how many leading drafts of each row are what was drawn, by the result's `tokens`."""
        accepted = np.zeros(self.num_rows, np.int32)
        if self.draft_counts is not None:
            for row in np.flatnonzero(self.draft_counts).tolist():
                drafts = self.drafts_of(row)[: tokens.shape[1]]
                differs = np.flatnonzero(drafts != tokens[row, : len(drafts)])
                accepted[row] = differs[0] if len(differs) else len(drafts)
        return accepted


_NO_DRAFTS = np.empty(0, np.int32)


class StepResult(Struct, frozen=True, kw_only=True):
    """The device's answer to one step, rows in the plan's order.

    tokens: int32[R], the drawn token, -1 where the row did not sample; or int32[R, S] if a row may have
    several, filled up with -1: of drafts those accepted and the one after them, then what a grammar forces.
    logprobs, prompt_logprobs: row index -> RowLogprobs, only for rows that asked.
    prompt_logprobs of a row cover the plan's positions that predict a prompt token.
    broken: rows whose logits were NaN, +inf or -inf everywhere; their requests can't go on.
    device_s: seconds that the step kept the device busy; 0 if it does not say.
    features: row index -> float32[n, w], hidden states of the row's n tokens of this step; of a model that
    captures some (`penstock.models.forward.Model`), else empty.
    """

    step: int
    tokens: np.ndarray
    logprobs: dict[int, RowLogprobs] = {}
    prompt_logprobs: dict[int, RowLogprobs] = {}
    broken: tuple[int, ...] = ()
    device_s: float = 0.0
    features: dict[int, np.ndarray] = {}


class DraftStats(Struct):
    """Drafts since the start. `steps` of one request each; accepted[i]: those in place i that were right;
    `saved_s`: seconds that plain decoding would have taken longer, by the measured cost of its steps;
    `missing`: tokens whose context the drafter lacked when it was asked, over all steps and requests."""

    steps: int = 0
    drafted: int = 0
    accepted: list[int] = []
    saved_s: float = 0.0
    missing: int = 0


class Pending(Protocol):
    """A launched step."""

    def wait(self) -> StepResult | None:
        """Block until the step is done. Raises what the step raised. None for a step of a window that
        was cut, or that no row was left for."""
        ...


class Device(Protocol):
    """Executes plans in launch order. `launch` never blocks on the step itself."""

    def launch(self, plan: StepPlan) -> Pending: ...

    def close(self) -> None:
        """Finish what was launched, whatever comes of it, and stop."""
        ...


@runtime_checkable
class WindowDevice(Device, Protocol):
    """A device that runs windows by itself."""

    def launch_window(self, plan: StepPlan) -> Sequence[Pending]:
        """One `Pending` per step of the plan."""
        ...

    def cut(self) -> int:
        """End the youngest launch after the step that runs, after its first if none does yet.

        Returns how many of its steps run; those after them answer None.
        """
        ...

    def ready(self, steps: Sequence[Pending], seconds: float) -> int:
        """How many of `steps`, which follow each other in one launch, have a result.

        Blocks until all have, `seconds` passed, `interrupt` was called, or the window came to its end.
        """
        ...

    def interrupt(self) -> None:
        """End the `ready` that blocks, or the next one. From any thread."""
        ...


def _enc(obj: Any) -> Any:
    if isinstance(obj, np.ndarray):
        return {"dtype": obj.dtype.str, "shape": obj.shape, "data": obj.tobytes()}
    raise NotImplementedError(type(obj))


def _dec(kind: type, obj: Any) -> Any:
    if kind is np.ndarray:
        return np.frombuffer(obj["data"], dtype=obj["dtype"]).reshape(obj["shape"])
    raise NotImplementedError(kind)


def encode_plan(plan: StepPlan) -> bytes:
    """MessagePack bytes, for the step log."""
    return msgspec.msgpack.encode(plan, enc_hook=_enc)


def decode_plan(data: bytes) -> StepPlan:
    """Inverse of `encode_plan`."""
    return msgspec.msgpack.decode(data, type=StepPlan, dec_hook=_dec)
