"""What an engine core is made of, as numbers."""

from __future__ import annotations

from msgspec import Struct

from penstock.config import SpeculationSettings
from penstock.kv.groups import KVLayout

KV_BYTES = {"float32": 4, "bf16": 2, "int8": 1}  # of one element


class CoreShape(Struct, frozen=True, kw_only=True):
    """Everything about an engine core but its device."""

    layout: KVLayout
    num_blocks: int
    num_slots: int
    max_context: int
    token_budget: int
    async_depth: int
    window: int = 1
    max_queue: int
    prefix_cache: bool
    pin_share: float = 0.5
    namespace: bytes
    deadline_s: float | None = None
    aging_s: float = 30.0
    batch_step_s: float = 0.05
    tenant_weights: dict[str, float] = {}
    speculation: SpeculationSettings | None = None
