"""Building an engine: settings → memory plan → model → EngineCore.

The memory plan is made and checked before anything is allocated: weights + step workspace + KV.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from penstock.config import EngineSettings
from penstock.engine.drafts.speculation import STEP_DRAFTS, Speculation
from penstock.engine.loop import Clock, EngineCore, Sink
from penstock.engine.messages import Loading, Ready
from penstock.engine.plan import Device, WindowDevice
from penstock.engine.policy import OrderPolicy
from penstock.engine.requests import RequestTable
from penstock.engine.scheduler import Scheduler
from penstock.engine.shape import KV_BYTES, CoreShape
from penstock.errors import ModelRefused
from penstock.kv.groups import KVLayout, LayerKV, plan_layout
from penstock.kv.resource import KVResource
from penstock.resource import Resource

if TYPE_CHECKING:
    from penstock.decoding.drafting.drafter import HostDrafter
    from penstock.decoding.grammar.store import GrammarStore
    from penstock.kernels.backend import Backend
    from penstock.models.forward import Model
    from penstock.models.load import ModelInfo
    from penstock.models.lowered import LoweredModel

log = logging.getLogger("penstock.engine")

SYNTHETIC = "acceptance is synthetic: answers are not the model's, use it for load tests only"
# A pool that holds fewer tokens than this serves nobody; refusing says more than crawling.
MIN_POOL_TOKENS = 64


def assemble_core(
    shape: CoreShape,
    device: Device,
    sink: Sink,
    clock: Clock,
    grammars: GrammarStore | None = None,
    make_drafter: Callable[[KVResource], HostDrafter] | None = None,
) -> EngineCore:
    """Wire table, policy, KV, scheduler and loop over `device`. make_drafter: of `shape.speculation`."""
    table = RequestTable(shape.num_slots, shape.max_context)
    kv = KVResource(
        layout=shape.layout,
        num_blocks=shape.num_blocks,
        num_slots=shape.num_slots,
        max_context=shape.max_context,
        namespace=shape.namespace,
        prefix_cache=shape.prefix_cache,
        pin_share=shape.pin_share,
    )
    policy = OrderPolicy(shape.tenant_weights, shape.aging_s)
    longest_window = shape.window if isinstance(device, WindowDevice) else 1
    resources: list[Resource] = [kv]
    drafts = None
    if shape.speculation is not None and make_drafter is not None:
        speculation = shape.speculation
        drafts = Speculation(table, make_drafter(kv), speculation.k, speculation.is_adaptive, clock)
        resources.append(drafts)
    scheduler = Scheduler(
        table, policy, resources, shape.token_budget, longest_window, drafts, shape.batch_step_s
    )
    return EngineCore(
        scheduler,
        kv,
        device,
        sink,
        clock,
        depth=shape.async_depth,
        max_queue=shape.max_queue,
        deadline_s=shape.deadline_s,
        grammars=grammars,
    )


class MemoryPlan(Struct, frozen=True, kw_only=True):
    """Bytes. `available` is what machine and cgroup have free before anything is taken."""

    available: int
    weights: int
    workspace: int
    kv: int

    @property
    def total(self) -> int:
        return self.weights + self.workspace + self.kv


def plan_memory(
    settings: EngineSettings, layout: KVLayout, available: int, weights: int, workspace: int
) -> MemoryPlan:
    """Choose the KV bytes. ModelRefused with the numbers if the model does not fit."""
    need = weights + workspace
    least = layout.blocks_for(MIN_POOL_TOKENS, settings.token_budget) * layout.block_bytes
    if need + least > available:
        raise ModelRefused(
            f"{settings.model}: needs {_gib(weights)} for weights and {_gib(workspace)} for a step of "
            f"{settings.token_budget} tokens, {_gib(least)} for the least KV; {_gib(available)} are free. "
            "Free memory, lower token_budget or take a smaller model"
        )
    kv = settings.kv_bytes
    if kv is None:
        kv = max(least, min(int(available * settings.kv_share), available - need))
    elif need + kv > available:
        raise ModelRefused(
            f"kv_bytes: {_gib(kv)} beside {_gib(need)} for the model exceed the "
            f"{_gib(available)} that are free"
        )
    elif kv < least:
        raise ModelRefused(f"kv_bytes: {kv} is below the least useful pool of {least} bytes for this model")
    return MemoryPlan(available=available, weights=weights, workspace=workspace, kv=kv)


def longest_context(layout: KVLayout, num_blocks: int, declared: int, chunk: int) -> int:
    """Tokens of the longest request that fits alone in the pool, at most `declared`.

    Since no request may be longer, a request alone in the pool always gets its blocks.
    """
    if layout.blocks_for(declared, chunk) <= num_blocks:
        return declared
    low, high = 0, declared
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if layout.blocks_for(middle, chunk) <= num_blocks else (low, middle)
    return low


class EnginePlan(Struct, frozen=True, kw_only=True):
    """What an engine will take of this machine, decided from the model's headers alone."""

    backend: Backend
    layout: KVLayout
    memory: MemoryPlan
    num_blocks: int
    max_context: int

    def as_dict(self) -> dict[str, int]:
        """Bytes by purpose, and `kv_tokens`: the tokens that the pool holds."""
        return {
            "available": self.memory.available,
            "weights": self.memory.weights,
            "workspace": self.memory.workspace,
            "kv": self.num_blocks * self.layout.block_bytes,
            "kv_tokens": self.num_blocks * self.layout.block_size // len(self.layout.groups),
        }


def plan_engine(settings: EngineSettings, info: ModelInfo) -> EnginePlan:
    """The plan for an inspected model; takes no memory. ModelRefused if it does not fit."""
    from penstock.engine.request_rows import PROMPT_LOGIT_ROWS
    from penstock.kernels.backend import BackendOptions, open_backend
    from penstock.models.spec import kv_layers, workspace_bytes
    from penstock.observe.machine import available_memory

    spec = info.spec
    options = BackendOptions(
        weights=settings.weights,
        kv=settings.kv_dtype,
        instruction_set=settings.instruction_set,
        threads=settings.threads,
    )
    backend = open_backend(settings.backend, options)
    logit_rows = max(settings.max_running, PROMPT_LOGIT_ROWS)
    layout = plan_layout(
        [LayerKV(*layer) for layer in kv_layers(spec)], settings.block_size, KV_BYTES[backend.kv_form]
    )
    memory = plan_memory(
        settings,
        layout,
        available_memory(),
        weights=info.weight_bytes(backend),
        workspace=workspace_bytes(spec, settings.token_budget, logit_rows, backend.attention_workspace_bytes),
    )
    num_blocks = memory.kv // layout.block_bytes
    declared = min(spec.max_context, settings.max_context or spec.max_context)
    # With a step in flight, the window behind both chunks is still held.
    chunk = (1 + settings.async_depth) * settings.token_budget
    max_context = longest_context(layout, num_blocks, declared, chunk)
    return EnginePlan(
        backend=backend, layout=layout, memory=memory, num_blocks=num_blocks, max_context=max_context
    )


def build_engine(
    settings: EngineSettings, sink: Sink, on_loading: Callable[[Loading], None]
) -> tuple[EngineCore, Ready]:
    """Load the model and make its engine. ModelRefused or ConfigError before memory is taken."""
    from penstock.engine.drafts.make import captured_layers, make_drafter, synthetic_acceptance
    from penstock.kv.identity import namespace_digest
    from penstock.models.load import inspect_model, load_model
    from penstock.models.sources import public_name, resolve

    timer = _Timer()
    path = Path(resolve(settings.model))
    on_loading(Loading("inspect", 0.0))
    info = inspect_model(path)
    timer.lap("inspect_s")
    spec = info.spec
    plan = plan_engine(settings, info)
    backend, layout, num_blocks, max_context = plan.backend, plan.layout, plan.num_blocks, plan.max_context
    model = load_model(
        info,
        backend,
        lambda phase, share: on_loading(Loading(phase, share)),
        context=max_context,
        capture=captured_layers(settings.speculation, spec),
    )
    timer.lap("weights_s")
    shape = CoreShape(
        layout=layout,
        num_blocks=num_blocks,
        num_slots=settings.max_running,
        max_context=max_context,
        token_budget=settings.token_budget,
        async_depth=settings.async_depth,
        window=settings.window,
        max_queue=settings.max_queue,
        prefix_cache=settings.prefix_cache,
        pin_share=settings.pin_share,
        namespace=namespace_digest(_namespace(info, backend, layout, max_context)),
        deadline_s=settings.deadline_s,
        aging_s=settings.aging_s,
        batch_step_s=settings.batch_step_s,
        tenant_weights=settings.tenant_weights,
        speculation=settings.speculation,
    )
    grammars = _grammars(path, spec.vocab_size, settings.grammar_backend)
    pool = model.allocate_kv(layout, num_blocks)
    runner = _runner(model, pool, layout, shape, grammars)
    drafter = partial(make_drafter, settings, model, pool, shape)
    core = assemble_core(shape, runner, sink, time.monotonic, grammars, drafter)
    timer.lap("engine_s")
    ready = Ready(
        model_id=public_name(settings.model),
        model_path=str(path),
        max_context=max_context,
        vocab_size=spec.vocab_size,
        backend=backend.name,
        plan=plan.as_dict(),
        timings=timer.laps,
        block_size=layout.block_size,
        synthetic_acceptance=synthetic_acceptance(settings.speculation) is not None,
    )
    return core, ready


def _grammars(path: Path, vocab_size: int, backend: str) -> GrammarStore:
    """The tokenizer is loaded with the first grammar."""
    from penstock.decoding.grammar.backend import Vocabulary
    from penstock.decoding.grammar.backends import make_backend
    from penstock.decoding.grammar.store import GrammarStore
    from penstock.text.tokenizer import Tokenizer

    @cache
    def vocabulary() -> Vocabulary:
        return Vocabulary(Tokenizer.load(path), vocab_size)

    return GrammarStore(make_backend(backend, vocabulary), vocabulary)


def _runner(
    model: Model | LoweredModel, pool: Any, layout: KVLayout, shape: CoreShape, grammars: GrammarStore
) -> Device:
    """The device that fits the model: native steps that draw their tokens, or operation by operation."""
    from penstock.decoding.native import NativeSampler
    from penstock.decoding.sampling import Sampler
    from penstock.engine.drafts.make import synthetic_acceptance
    from penstock.engine.native_runner import NativeRunner
    from penstock.engine.runner import ModelRunner
    from penstock.models.lowered import LoweredModel

    sizes = {
        "num_slots": shape.num_slots,
        "max_context": shape.max_context,
        "num_groups": len(layout.groups),
        "block_size": layout.block_size,
    }
    vocab_size = model.spec.vocab_size
    acceptance = synthetic_acceptance(shape.speculation)
    if acceptance is not None:
        log.warning("speculation: %s", SYNTHETIC)
    if isinstance(model, LoweredModel):
        executable = model.executable
        sampler = NativeSampler(
            shape.num_slots,
            vocab_size,
            grammars,
            instruction_set=executable.instruction_set,
            pool=executable.pool,
        )
        step_drafts = 0 if shape.speculation is None else STEP_DRAFTS
        return NativeRunner(model, sampler, **sizes, step_drafts=step_drafts, acceptance=acceptance)
    width = len(model.capture) * model.spec.hidden_size
    drawn = Sampler(shape.num_slots, vocab_size, grammars)
    return ModelRunner(model, pool, drawn, **sizes, features_width=width, acceptance=acceptance)


def _namespace(info: ModelInfo, backend: Backend, layout: KVLayout, max_context: int) -> dict[str, object]:
    """What must be equal for two engines to share a block."""
    from penstock.models.spec import LongRopeScaling

    ropes = [layer.attention.rope for layer in info.spec.layers]
    # LongRoPE turns keys by a set of frequencies that the served context picks.
    by_context = any(rope is not None and isinstance(rope.scaling, LongRopeScaling) for rope in ropes)
    return {
        "format": 1,
        "weights": info.revision,
        "rope_context": max_context if by_context else 0,
        "numerics": backend.numerics,
        "kv_dtype": backend.kv_form,
        "block_size": layout.block_size,
        "groups": [[group.window or 0, list(group.layers)] for group in layout.groups],
        "kv_heads": layout.kv_heads,
        "head_dim": layout.head_dim,
    }


class _Timer:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 3)
        self._last = now


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
