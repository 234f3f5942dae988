"""EngineCore: submit → schedule → launch → apply → deltas.

Asynchrony is a number. With `depth` 0 a step is launched and waited for; with depth 1 step n+1 is
planned and launched before step n's tokens are known, so the device never waits for the host:

    depth 0   host    plan 1 |--wait--| apply 1, plan 2 |--wait--| apply 2 …
              device         [ step 1 ]       idle      [ step 2 ]

    depth 1   host    plan 1, plan 2 |wait| apply 1, plan 3 |wait| apply 2, plan 4 …
              device         [ step 1 ][       step 2       ][       step 3 …

A row's input token lives in the device's own table, so planning needs only lengths. An end of
sequence that the host learns of one step late wastes that one row: its result names an old
generation and is dropped.

Single-threaded: one thread calls every method. Deltas leave through `sink` grouped by caller.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np

from penstock.engine.counters import Counters
from penstock.engine.messages import Delta, Finish, Progress, Submit
from penstock.engine.outputs import OutputBuilder
from penstock.engine.plan import Device, StepPlan, StepResult
from penstock.engine.preparing import Preparing
from penstock.engine.requests import Request, check_lengths
from penstock.engine.scheduler import Scheduler
from penstock.engine.window import Flight, InFlight
from penstock.errors import DeadlineExceeded, EngineUnavailable, InvalidRequest, Overloaded, PenstockError

if TYPE_CHECKING:
    from penstock.decoding.grammar.store import GrammarStore
    from penstock.kv.resource import KVResource

log = logging.getLogger("penstock.engine")

MAX_ENDED_DEADLINES = 64  # entries of ended requests that may stand in the heap beside the open ones

_BROKEN = (
    "the model's output for this request can't be used: NaN or infinite (damaged weights, an overflow), or "
    "its grammar came to a limit; the engine's log says which"
)

Sink = Callable[[str, list[Delta]], None]
Clock = Callable[[], float]


class EngineCore:
    def __init__(
        self,
        scheduler: Scheduler,
        kv: KVResource,
        device: Device,
        sink: Sink,
        clock: Clock,
        depth: int,
        max_queue: int,
        deadline_s: float | None = None,
        step_log: Callable[[StepPlan, StepResult], None] | None = None,
        grammars: GrammarStore | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.table = scheduler.table
        self.kv = kv
        self._sink = sink
        self._clock = clock
        self._depth = depth
        self._max_queue = max_queue
        self._deadline_s = deadline_s
        self._step_log = step_log
        self._flight = Flight(device)
        self._requests: dict[tuple[str, str], Request] = {}
        self._siblings: dict[tuple[str, str], list[Request]] = {}  # leader -> requests that wait for it
        self._preparing = Preparing(grammars)
        self._deadlines: list[tuple[float, int, Request]] = []
        self._outputs = OutputBuilder(self.table)
        self._arrivals = 0
        self._counters = Counters(last_step_s=clock())
        scheduler.on_impossible = self._fail_impossible

    # ------------------------------------------------------------------ requests

    def submit(self, client: str, request: Submit) -> None:
        """Queue a request. A refusal is a delta with an error, like everything a caller hears."""
        now = self._clock()
        try:
            self._check(client, request)
        except PenstockError as error:
            self._refuse(client, request.id, error)
            return
        if not self.has_work:
            self._counters.worked_until_s = now
        record = Request(client, request, self._arrivals, now)
        self._arrivals += 1
        if record.expires_s is None and self._deadline_s is not None:
            record.expires_s = now + self._deadline_s
        if record.expires_s is not None:
            heapq.heappush(self._deadlines, (record.expires_s, record.arrival, record))
        self._requests[client, request.id] = record
        self.scheduler.policy.tenants.arrive(record.tenant)
        leader = self._requests.get((client, request.leader)) if request.leader else None
        if leader is not None and not leader.announced:
            self._siblings.setdefault((client, leader.id), []).append(record)
        else:
            self._enqueue(record)

    def _enqueue(self, request: Request) -> None:
        if request.sampling.grammar is not None:
            self._preparing.add(request)
        else:
            self.scheduler.policy.push(request)

    def abort(self, client: str, request_id: str, keep: int | None = None) -> None:
        """End a request now; unknown ids are ignored (it may have just finished). `keep` is the
        caller's count of generated tokens that stand; what came after it is not counted."""
        request = self._requests.get((client, request_id))
        if request is None:
            return
        if request.slot >= 0:
            self._cut()
        generated = len(request.known) - request.prompt_len
        if keep is not None:
            if 0 <= keep < generated:
                self._counters.generated_tokens -= generated - keep
            self._pin(request)
        self._end(request)

    def unpin(self, name: str) -> None:
        """Nobody goes on from what a request pinned as `name`."""
        self.kv.unpin(name)

    def _pin(self, request: Request) -> None:
        submit = request.submit
        if submit.pin_s > 0 and request.slot >= 0 and submit.leader is None:
            self.kv.pin(request.slot, submit.pin or request.id, self._clock() + submit.pin_s)

    def drop_client(self, client: str) -> None:
        """Abort all requests of a caller that went away."""
        for owner, request_id in [key for key in self._requests if key[0] == client]:
            self.abort(owner, request_id)

    # ------------------------------------------------------------------ the loop

    @property
    def has_work(self) -> bool:
        """A call of `step` would do something."""
        return bool(len(self._flight) or self.scheduler.has_work or self._preparing.num_ready)

    def on_ready(self, wake: Callable[[], None]) -> None:
        """Call `wake`, from any thread, when a request that was not ready is: `has_work` may be true then."""
        self._preparing.wake = wake

    def step(self) -> None:
        """Plan and launch unless more than `depth` steps are in flight; then apply the oldest."""
        now = self._clock()
        self._expire(now)
        self.kv.expire_pins(now)
        for request, refusal in self._preparing.ready():
            if refusal is None:
                self._preparing.take(request)
                self.scheduler.policy.push(request)
            else:
                self._fail(request, refusal)
        drafts = self.scheduler.drafts
        if self.scheduler.policy.num_waiting or (drafts is not None and drafts.takes_over()):
            self._cut()
        plan = None
        depth = self._depth_now()
        if len(self._flight) <= depth:
            plan = self.scheduler.schedule(now)
            if plan is not None:
                self._flight.launch(plan, self._clock())
            self._counters.host_s += self._clock() - now
        keep = 0 if plan is None else depth
        if len(self._flight) > keep:
            self._take(keep)

    def _depth_now(self) -> int:
        """One step at a time while a request can't be planned ahead: it shall not be in every second step."""
        table = self.table
        return 0 if self._depth and table.alone[self.scheduler.running].any() else self._depth

    def interrupt(self) -> None:
        """Something came that `step` should see: it waits for one step at most. From any thread."""
        self._flight.interrupt()

    def _take(self, keep: int) -> None:
        """Wait for the oldest step and apply it, together with those after it whose tokens nobody reads one
        by one; but leave `keep` in flight."""
        plan = self._flight.oldest.plan
        ready = 1
        if plan.window > 1 and not self.table.stepwise[plan.slots].any():
            # What is planned next is planned while the youngest runs.
            ready = self._flight.ready(max(keep, self._depth))
        done = self._flight.pop()
        try:
            result = done.pending.wait()
        except Exception as error:  # noqa: BLE001  # whatever a device raises fails the requests of its step
            self._fail_step(plan, error)
            return
        if result is None:
            self._cancel(done)
            return
        results = [result]
        for _ in range(ready - 1):
            further = self._flight.pop().pending.wait()
            assert further is not None, "a step that was ready has no result"
            results.append(further)
        self._apply(done, results)

    def _cut(self) -> None:
        """Whatever is planned next should not wait for a window in flight."""
        for step in self._flight.cut():
            self._cancel(step)

    def _cancel(self, step: InFlight) -> None:
        self._requeue_preempted(self.scheduler.cancel(step))

    def _apply(self, first: InFlight, results: list[StepResult]) -> None:
        """Account for `results`, of consecutive steps of one plan from `first` on."""
        plan, table = first.plan, self.table
        now = self._clock()
        self._counters.count(first, results, now, self.scheduler)
        for result in results:
            if result.broken:
                self._fail_rows(plan, result.broken)
            if self._step_log is not None:
                self._step_log(plan, result)
        steps = first.steps_of_rows(len(results))
        live = (table.generation[plan.slots] == plan.generations) & (steps > 0)
        slots = plan.slots[live]
        table.in_flight[slots] -= steps[live]
        drew = live & plan.samples
        if results[0].tokens.ndim == 2:
            drew &= results[0].tokens[:, 0] >= 0  # not where the token was forced with the one before it
        drawn = plan.slots[drew]
        table.pending[drawn] -= steps[drew]
        if results[0].tokens.ndim == 1:
            tokens = np.stack([result.tokens[drew] for result in results], axis=1)
            kept, ended = self._extend(drawn, tokens, steps[drew])
            # Of a window all rows drew, and what was computed after a stop token is not theirs.
            computed = plan.counts[live] if plan.window == 1 else kept
        else:
            tokens = results[0].tokens[drew]
            kept, ended = self._extend(drawn, tokens, np.count_nonzero(tokens >= 0, axis=1))
            # What a step in flight was to draw may be known by now.
            table.pending[drawn] -= np.minimum(table.pending[drawn], kept - 1)
            computed = self._verified(first, results[0], live, drew, kept)
        if self.scheduler.drafts is not None:
            self.scheduler.drafts.computed(plan, first.index, results, live, computed)
        self._commit(slots, computed)
        self._counters.generated_tokens += int(kept.sum())
        self._emit(plan, results[0], drew, tokens, kept, ended)
        self._requeue_preempted(slots)
        self._counters.host_s += self._clock() - now

    def _extend(
        self, slots: np.ndarray, tokens: np.ndarray, steps: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Append drawn tokens int32[R, S], of which row r drew the first `steps[r]`, to what is known.

        int32[R]: how many of them count, none after a request's end; bool[R]: whether it may have ended.
        """
        table = self.table
        ordinals = np.arange(1, tokens.shape[1] + 1, dtype=np.int32)
        known = table.known[slots][:, None] + ordinals  # after each token
        valid = ordinals <= steps[:, None]
        # What lies beyond a request's last token is never read.
        table.tokens[slots[:, None], np.minimum(known, table.tokens.shape[1]) - 1] = tokens
        stops = (table.stop_ids[slots][:, :, None] == tokens[:, None, :]).any(axis=1)
        ends = (stops & (known > table.min_known[slots][:, None])) | (known >= table.limit[slots][:, None])
        for row in np.flatnonzero(table.many_stops[slots]).tolist():
            stop_set = cast(Request, table.occupant[slots[row]]).stop_set
            counts = known[row] > table.min_known[slots[row]]
            ends[row] |= [token in stop_set for token in tokens[row].tolist()] & counts
        ends &= valid
        ended = ends.any(axis=1)
        kept = np.where(ended, ends.argmax(axis=1) + 1, steps)
        table.known[slots] += kept
        return kept, ended

    def _verified(
        self, step: InFlight, result: StepResult, live: np.ndarray, drew: np.ndarray, kept: np.ndarray
    ) -> np.ndarray:
        """int32[n]: tokens of each living row whose KV is right: not those of drafts that were not drawn.

        `kept`: int32, tokens that count of the rows that drew; some are drafts, some a grammar forced.
        """
        plan = step.plan
        accepted = plan.accepted(result.tokens)
        accepted[drew] = np.minimum(accepted[drew], kept - 1)
        self._counters.forced_tokens += int((kept - 1 - accepted[drew]).sum())
        if plan.draft_counts is None:
            return plan.counts[live]
        if self.scheduler.drafts is not None:
            self.scheduler.drafts.verified(plan, live, accepted, result.device_s)
        rejected = plan.draft_counts - accepted
        self.table.planned[plan.slots[live]] -= rejected[live]
        return np.asarray((plan.counts - rejected)[live])

    def _commit(self, slots: np.ndarray, counts: np.ndarray) -> None:
        """The step's KV is written: count it, publish it. Preempted rows have given theirs back."""
        table = self.table
        active = table.active[slots]
        slots, counts = slots[active], counts[active]
        computed = table.computed[slots] + counts
        table.computed[slots] = computed
        for resource in self.scheduler.resources:
            resource.commit(slots, computed)

    def _emit(
        self,
        plan: StepPlan,
        result: StepResult,
        drew: np.ndarray,
        tokens: np.ndarray,
        kept: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """Send every row's tokens, the first `kept` of each row of `tokens`, and end the requests whose
        last they were. `result` has the log-probabilities, where only one step is applied."""
        batches: dict[str, list[Delta]] = {}
        finished: list[Request] = []
        if plan.prompt_logits.any():
            self._outputs.prompt_logprobs(plan, result, batches)
        occupant, logprobs, deltas_of = self.table.occupant, result.logprobs, batches.setdefault
        rows = np.flatnonzero(drew)
        several = tokens.shape[1] > 1
        drawn = zip(
            rows.tolist(),
            plan.slots[rows].tolist(),
            tokens.tolist(),
            kept.tolist(),
            ended.tolist(),
            strict=True,
        )
        # The hot loop: a microsecond here is one per request.
        for row, slot, new, count, maybe_last in drawn:
            request = cast(Request, occupant[slot])
            if not request.announced:
                self._announce(request)
            if several:
                del new[count:]
            finish = self._finish_reason(request, new[-1]) if maybe_last else None
            delta = self._outputs.delta(request, new, finish, logprobs.get(row) if logprobs else None)
            deltas_of(request.client, []).append(delta)
            if finish is not None:
                finished.append(request)
        for request in finished:
            request.is_finished = True
            self._pin(request)
            self._end(request)
        for client, deltas in batches.items():
            self._sink(client, deltas)

    def _finish_reason(self, request: Request, token: int) -> Finish | None:
        known = int(self.table.known[request.slot])
        if token in request.stop_set and known - request.prompt_len > request.sampling.min_tokens:
            return "stop"
        return "length" if known >= request.limit else None

    def _announce(self, request: Request) -> None:
        """The first token of a request: its prefill is done, so siblings can share it."""
        self._counters.prompt_tokens += request.prompt_len
        self._counters.cached_tokens += request.cached_tokens or 0
        for sibling in self._siblings.pop((request.client, request.id), ()):
            self._enqueue(sibling)

    def _requeue_preempted(self, slots: np.ndarray) -> None:
        table = self.table
        drained = slots[~table.active[slots] & (table.in_flight[slots] == 0)]
        for slot in drained.tolist():
            request = table.occupant[slot]
            if request is not None:  # else it ended with this very step
                self.scheduler.requeue(request)

    # ------------------------------------------------------------------ endings

    def _end(self, request: Request) -> None:
        """Forget a request wherever it is. Siblings that waited for it go on without it."""
        key = (request.client, request.id)
        if self._requests.pop(key, None) is None:
            return
        self._counters.finished += 1
        if not (self._leave_siblings(request) or self._preparing.discard(request)):
            self.scheduler.release(request)
        for sibling in self._siblings.pop(key, ()):
            self._enqueue(sibling)
        self.scheduler.policy.tenants.depart(request.tenant)
        # An hour's deadline must not keep the tokens of what ended in a second.
        if len(self._deadlines) > 2 * len(self._requests) + MAX_ENDED_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if self._is_open(entry[2])]
            heapq.heapify(self._deadlines)

    def _is_open(self, request: Request) -> bool:
        return self._requests.get((request.client, request.id)) is request

    def _leave_siblings(self, request: Request) -> bool:
        leader = request.submit.leader
        waiting = self._siblings.get((request.client, leader)) if leader else None
        if waiting is None or request not in waiting:
            return False
        waiting.remove(request)
        return True

    def _fail(self, request: Request, error: PenstockError) -> None:
        self._end(request)
        self._refuse(request.client, request.id, error)

    def _refuse(self, client: str, request_id: str, error: PenstockError) -> None:
        report = (error.kind, error.message, error.retry_after_s)
        self._sink(client, [Delta(id=request_id, finish="error", error=report)])

    def _fail_step(self, plan: StepPlan, error: Exception) -> None:
        """A step raised: its requests end with the error, the others go on.

        On the device its rows are undefined now, so a younger step, which has them too, may fail for
        that alone: nothing of it counts, and what it computed for others is computed again.
        """
        log.error("step %d of %d requests failed", plan.step, plan.num_rows, exc_info=error)
        live = self.table.generation[plan.slots] == plan.generations
        for slot in plan.slots[live].tolist():
            request = self.table.occupant[slot]
            if request is not None:
                self._fail(request, PenstockError(f"the step that computed this request failed: {error}"))
        self._cut()
        while len(self._flight):
            younger = self._flight.pop()
            try:
                younger.pending.wait()
            except Exception as consequence:  # noqa: BLE001  # its requests are computed again
                log.info("step %d failed after it: %s", younger.plan.step, consequence)
            self.scheduler.take_back(younger)

    def _fail_rows(self, plan: StepPlan, rows: tuple[int, ...]) -> None:
        for row in rows:
            slot = int(plan.slots[row])
            request = self.table.occupant[slot]
            if request is not None and self.table.generation[slot] == plan.generations[row]:
                self._fail(request, PenstockError(_BROKEN))

    def _fail_impossible(self, request: Request) -> None:
        held = self.kv.layout.blocks_for(len(request.known) + 1)
        self._fail(
            request,
            EngineUnavailable(
                f"the KV pool has {self.kv.pool.num_blocks} blocks, this request needs {held}; raise kv_bytes"
            ),
        )

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, request = heapq.heappop(self._deadlines)
            if self._is_open(request):
                if request.slot >= 0:
                    self._cut()
                waited = now - request.arrival_s
                self._fail(request, DeadlineExceeded(f"deadline: not finished {waited:.1f} s after arrival"))

    def _check(self, client: str, request: Submit) -> None:
        if (client, request.id) in self._requests:
            raise InvalidRequest(f"id: {request.id!r} is already running; use a new id")
        check_lengths(request, room=self.table.tokens.shape[1] - 1)
        # All without a slot, siblings included; a leader was let in together with its siblings.
        waiting = len(self._requests) - (len(self.table.occupant) - self.table.num_free)
        if waiting >= self._max_queue and (client, request.leader) not in self._requests:
            raise Overloaded(
                f"max_queue: {waiting} requests are waiting already; retry later",
                retry_after_s=self._counters.retry_after(self._max_queue),
            )

    # ------------------------------------------------------------------ state

    def progress(self) -> Progress:
        counters, scheduler = self._counters, self.scheduler
        fallbacks = self._preparing.grammar_fallbacks
        return counters.progress(self._clock(), scheduler, len(self._requests), self.kv.stats(), fallbacks)

    def check_idle(self) -> None:
        """With nothing to do every slot, block and counter is back. Raises AssertionError."""
        assert not self.has_work, "not idle"
        table = self.table
        assert table.num_free == len(table.occupant), f"{len(table.occupant) - table.num_free} slots leaked"
        assert not self._siblings, f"{len(self._siblings)} sibling lists leaked"
        assert self.scheduler.policy.num_waiting == 0, "waiting requests leaked"
        self.kv.check()
        assert self.kv.stats().owned == 0, f"{self.kv.stats().owned} KV blocks leaked"

    def close(self) -> None:
        """Drop everything and stop the device."""
        for request in list(self._requests.values()):
            self._end(request)
        for _ in self._flight.cut():
            pass
        self._flight.clear()
        self._flight.device.close()
        self._preparing.close()
