"""OutputBuilder: from a step's arrays to the deltas that callers receive."""

from __future__ import annotations

import numpy as np

from penstock.decoding.params import RowLogprobs
from penstock.engine.messages import Delta, Finish, Logprobs
from penstock.engine.plan import StepPlan, StepResult
from penstock.engine.requests import Request, RequestTable


class OutputBuilder:
    def __init__(self, table: RequestTable) -> None:
        self._table = table

    def delta(
        self, request: Request, tokens: list[int], finish: Finish | None, logprobs: RowLogprobs | None
    ) -> Delta:
        """Drawn tokens. The first delta of a request says what was cached and how long it queued."""
        if request.announced and finish is None and logprobs is None and request.drafts is None:
            return Delta(request.id, tokens)
        if logprobs is not None and len(logprobs.chosen) > len(tokens):  # drafts behind a stop token
            count = len(tokens)
            logprobs = RowLogprobs(
                chosen=logprobs.chosen[:count], top_ids=logprobs.top_ids[:count], top=logprobs.top[:count]
            )
        packed = None if logprobs is None else pack_logprobs(logprobs)
        stop_token = tokens[-1] if finish == "stop" else None
        drafts, request.drafts = request.drafts, None
        if request.announced:
            return Delta(request.id, tokens, finish, stop_token, None, None, packed, drafts=drafts)
        request.announced = True
        cached, queued = request.cached_tokens, request.queue_s
        return Delta(request.id, tokens, finish, stop_token, cached, queued, packed, drafts=drafts)

    def prompt_logprobs(self, plan: StepPlan, result: StepResult, batches: dict[str, list[Delta]]) -> None:
        """Deltas for the rows that computed prompt positions whose predictions are wanted.

        A preempted request computes its prompt again; what it already sent is not sent twice.
        """
        for row, logprobs in result.prompt_logprobs.items():
            slot = plan.slots[row]
            if self._table.generation[slot] != plan.generations[row]:
                continue
            request = self._table.occupant[slot]
            assert request is not None
            first = int(plan.starts[row]) + 1  # position 0 of the chunk predicts the token after it
            fresh = request.prompt_logprobs_sent - first
            if fresh >= len(logprobs.chosen):
                continue
            request.prompt_logprobs_sent = first + len(logprobs.chosen)
            part = RowLogprobs(logprobs.chosen[fresh:], logprobs.top_ids[fresh:], logprobs.top[fresh:])
            delta = Delta(request.id, prompt_logprobs=pack_logprobs(part))
            batches.setdefault(request.client, []).append(delta)


def pack_logprobs(rows: RowLogprobs) -> Logprobs:
    n, k = rows.top_ids.shape
    return Logprobs(
        n=n,
        k=k,
        chosen=rows.chosen.astype("<f4").tobytes(),
        top_ids=rows.top_ids.astype("<i4").tobytes(),
        top=rows.top.astype("<f4").tobytes(),
    )


def unpack_logprobs(packed: Logprobs) -> RowLogprobs:
    """Inverse of `pack_logprobs`: chosen float32[n], top_ids int32[n, k], top float32[n, k]."""
    shape = (packed.n, packed.k)
    return RowLogprobs(
        chosen=np.frombuffer(packed.chosen, "<f4"),
        top_ids=np.frombuffer(packed.top_ids, "<i4").reshape(shape),
        top=np.frombuffer(packed.top, "<f4").reshape(shape),
    )
