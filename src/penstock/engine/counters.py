"""Counters: what an engine core did since its start, as `Progress` reports it."""

from __future__ import annotations

from msgspec import Struct

from penstock.engine.messages import Progress
from penstock.engine.plan import StepResult
from penstock.engine.scheduler import Scheduler
from penstock.engine.window import InFlight
from penstock.kv.resource import KVStats


class Counters(Struct):
    """Seconds are those of the core's clock; tokens and steps count from the start. `device_free_s`: when the
    device finished its last known step; `worked_until_s`: as far as `work_s` counts."""

    last_step_s: float
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    forced_tokens: int = 0
    finished: int = 0
    busy_s: float = 0.0
    work_s: float = 0.0
    device_s: float = 0.0
    host_s: float = 0.0
    device_free_s: float = 0.0
    worked_until_s: float = 0.0

    def count(self, first: InFlight, results: list[StepResult], now: float, scheduler: Scheduler) -> None:
        """`results`, of consecutive steps from `first` on, have come. The scheduler hears what they cost."""
        self.busy_s += now - max(first.launched_s, self.device_free_s)
        self.device_free_s = self.last_step_s = now
        # For the host, since requests are open; none if it was launched ahead, or let requests in.
        waited_s = -1.0 if first.plan.admissions else first.launched_s - self.worked_until_s
        self.work_s += now - self.worked_until_s
        self.worked_until_s = now
        self.steps += len(results)
        drafts, has_drafts = scheduler.drafts, first.plan.draft_counts is not None
        for step, result in enumerate(results, first.index):
            self.device_s += result.device_s
            counts = first.plan.counts_of(step)
            if not has_drafts:
                scheduler.budget.observe(counts, result.device_s)
            if drafts is not None:
                drafts.observe(int(counts.sum()), result.device_s, waited_s if waited_s > 0.0 else None)

    def retry_after(self, queue: int) -> float:
        """Seconds until about a tenth of a queue of so many has drained at the present rate, 1 … 60."""
        if not self.finished or not self.busy_s:
            return 1.0
        return float(min(60.0, max(1.0, round(self.busy_s / self.finished * queue / 10))))

    def progress(
        self, now: float, scheduler: Scheduler, open_requests: int, stats: KVStats, grammar_fallbacks: int
    ) -> Progress:
        drafts, running = scheduler.draft_stats, len(scheduler.running)
        return Progress(
            steps=self.steps,
            last_step_s=now - self.last_step_s,
            running=running,
            waiting=open_requests - running,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            generated_tokens=self.generated_tokens,
            preemptions=scheduler.preemptions,
            finished=self.finished,
            kv_blocks_total=stats.total,
            kv_blocks_owned=stats.owned,
            kv_blocks_reusable=stats.reusable,
            kv_blocks_pinned=stats.pinned,
            busy_s=self.busy_s,
            work_s=self.work_s,
            device_s=self.device_s,
            host_s=self.host_s,
            draft_steps=drafts.steps,
            draft_tokens=drafts.drafted,
            accepted_tokens=tuple(drafts.accepted),
            saved_s=drafts.saved_s,
            draft_missing=drafts.missing,
            forced_tokens=self.forced_tokens,
            grammar_fallbacks=grammar_fallbacks,
        )
