"""Replay a trace in virtual time through the real scheduler, KV and policies.

    penstock's EngineCore ── StepPlan ──> SimDevice ── seconds ──> VirtualClock

Nothing here decides anything: what is measured is what the engine would do on a device with the
stated step time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from penstock.config import SpeculationSettings
from penstock.decoding.drafting.drafter import HostDrafter
from penstock.decoding.params import TokenSampling
from penstock.engine.build import assemble_core
from penstock.engine.drafts.make import host_drafter, synthetic_acceptance
from penstock.engine.loop import EngineCore
from penstock.engine.messages import Delta, Submit, pack_tokens
from penstock.engine.shape import CoreShape
from penstock.kv.groups import LayerKV, plan_layout
from penstock.kv.resource import KVResource
from penstock.simulate.clock import VirtualClock
from penstock.simulate.device import SimDevice, StepTime
from penstock.simulate.trace import TraceRequest, prompt_tokens

VOCAB_SIZE = 32_000


class ReplaySettings(Struct, frozen=True, kw_only=True):
    num_blocks: int
    block_size: int = 16
    max_running: int = 256
    token_budget: int = 8192
    max_context: int = 131072
    async_depth: int = 1
    prefix_cache: bool = True
    windows: tuple[int | None, ...] = (None,)  # one layer each: full attention or a sliding window
    speculation: SpeculationSettings | None = None  # of a method that needs no model


class ReplayReport(Struct, frozen=True, kw_only=True):
    """Virtual seconds unless said otherwise. Rates are of the whole replay."""

    requests: int
    failed: int
    steps: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int
    virtual_s: float
    wall_s: float  # real seconds the replay took
    device_busy_rate: float
    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float
    itl_p99_s: float
    draft_steps: int = 0  # of one request each
    draft_tokens: int = 0
    accepted_tokens: tuple[int, ...] = ()  # by place in the draft

    @property
    def speedup(self) -> float:
        """Virtual seconds per real second."""
        return self.virtual_s / self.wall_s


class _Recorder:
    """Times of first tokens and gaps, as a caller would see them."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.arrived: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self.ttft: list[float] = []
        self.gaps: list[float] = []
        self.failed = 0

    def sink(self, client: str, deltas: list[Delta]) -> None:
        now = self._clock()
        for delta in deltas:
            if delta.error is not None:
                self.failed += 1
            elif delta.tokens:
                before = self._last.get(delta.id)
                if before is None:
                    self.ttft.append(now - self.arrived[delta.id])
                else:
                    self.gaps.append(now - before)
                self._last[delta.id] = now
            if delta.finish is not None:
                self._last.pop(delta.id, None)


def build_sim_core(
    settings: ReplaySettings, clock: VirtualClock, step_time: StepTime, sink: object
) -> EngineCore:
    """An EngineCore over a SimDevice: the test bench of scheduler, KV and policies."""
    layers = [LayerKV(kv_heads=1, head_dim=1, window=window) for window in settings.windows]
    shape = CoreShape(
        layout=plan_layout(layers, settings.block_size, itemsize=1),
        num_blocks=settings.num_blocks,
        num_slots=settings.max_running,
        max_context=settings.max_context,
        token_budget=settings.token_budget,
        async_depth=settings.async_depth,
        max_queue=2**31,
        prefix_cache=settings.prefix_cache,
        namespace=b"simulated",
        speculation=settings.speculation,
    )
    speculation = settings.speculation
    device = SimDevice(clock, step_time, synthetic_acceptance(speculation))

    def drafter(kv: KVResource) -> HostDrafter:
        assert speculation is not None
        return host_drafter(speculation, VOCAB_SIZE)

    return assemble_core(shape, device, sink, clock, make_drafter=drafter)  # type: ignore[arg-type]


def replay(trace: Sequence[TraceRequest], settings: ReplaySettings, step_time: StepTime) -> ReplayReport:
    """Submit every request at its time, run until all are done."""
    clock = VirtualClock()
    recorder = _Recorder(clock)
    core = build_sim_core(settings, clock, step_time, recorder.sink)
    submits = [_submit(request, serial) for serial, request in enumerate(trace)]
    # Prefix tree nodes are freed by reference counts; full collections only walk over millions of them.
    gc.collect()
    gc.disable()
    try:
        wall = _run(core, clock, trace, submits, recorder)
    finally:
        gc.enable()
    core.check_idle()
    progress = core.progress()
    return ReplayReport(
        requests=len(trace),
        failed=recorder.failed,
        steps=progress.steps,
        prompt_tokens=progress.prompt_tokens,
        cached_tokens=progress.cached_tokens,
        generated_tokens=progress.generated_tokens,
        preemptions=progress.preemptions,
        virtual_s=clock(),
        wall_s=wall,
        device_busy_rate=progress.busy_s / clock() if clock() else 0.0,
        ttft_p50_s=_percentile(recorder.ttft, 50),
        ttft_p99_s=_percentile(recorder.ttft, 99),
        itl_p50_s=_percentile(recorder.gaps, 50),
        itl_p99_s=_percentile(recorder.gaps, 99),
        draft_steps=progress.draft_steps,
        draft_tokens=progress.draft_tokens,
        accepted_tokens=progress.accepted_tokens,
    )


def _run(
    core: EngineCore,
    clock: VirtualClock,
    trace: Sequence[TraceRequest],
    submits: list[Submit],
    recorder: _Recorder,
) -> float:
    """Real seconds that the replay took."""
    began = time.perf_counter()
    upcoming = 0
    while upcoming < len(trace) or core.has_work:
        if not core.has_work:
            clock.advance_to(trace[upcoming].arrival_s)
        while upcoming < len(trace) and trace[upcoming].arrival_s <= clock():
            recorder.arrived[submits[upcoming].id] = trace[upcoming].arrival_s
            core.submit("replay", submits[upcoming])
            upcoming += 1
        core.step()
    return time.perf_counter() - began


def _submit(request: TraceRequest, serial: int) -> Submit:
    tokens = prompt_tokens(request, serial, VOCAB_SIZE)
    sampling = TokenSampling(max_tokens=max(1, request.output_len), seed=serial)
    return Submit(id=str(serial), tokens=pack_tokens(tokens), sampling=sampling)


def _percentile(values: list[float], q: float) -> float:
    return float(np.percentile(values, q)) if values else 0.0
