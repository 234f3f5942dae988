"""An EngineCore over a HashDevice, with a collecting sink: the test bench of the scheduler."""

from __future__ import annotations

from hash_device import HashDevice, HashDrafter, expected_tokens

from penstock.config import SpeculationSettings
from penstock.decoding.params import TokenSampling
from penstock.engine.build import assemble_core
from penstock.engine.messages import Delta, Submit, pack_tokens
from penstock.engine.shape import CoreShape
from penstock.kv.groups import LayerKV, plan_layout
from penstock.simulate.clock import VirtualClock


class CoreBench:
    """Small pool, few slots: everything that can go wrong goes wrong soon."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        num_slots: int = 4,
        token_budget: int = 16,
        depth: int = 1,
        window: int = 1,
        windows: tuple[int | None, ...] = (None,),
        prefix_cache: bool = True,
        max_context: int = 64,
        max_queue: int = 1000,
        weights: dict[str, float] | None = None,
        aging_s: float = 30.0,
        stream: bool = True,
        drafts: int = 0,
        right_drafts: int = 3,
    ) -> None:
        """`stream`: of the requests, unless they say it themselves. `drafts`: of a request in a step, each
        wrong after `right_drafts` right ones."""
        layout = plan_layout([LayerKV(1, 1, window) for window in windows], block_size, itemsize=1)
        self.clock = VirtualClock()
        self.device = HashDevice(layout, num_blocks, num_slots, max_context, token_budget)
        self.deltas: dict[str, list[Delta]] = {}
        shape = CoreShape(
            layout=layout,
            num_blocks=num_blocks,
            num_slots=num_slots,
            max_context=max_context,
            token_budget=token_budget,
            async_depth=depth,
            window=window,
            max_queue=max_queue,
            prefix_cache=prefix_cache,
            namespace=b"test",
            aging_s=aging_s,
            tenant_weights=weights or {},
            speculation=SpeculationSettings(method="ngram", k=drafts, adaptive=False) if drafts else None,
        )
        self.drafter = HashDrafter(right_drafts) if drafts else None
        self.core = assemble_core(
            shape, self.device, self._sink, self.clock, make_drafter=lambda kv: self.drafter
        )
        self._stream = stream
        self._serial = 0

    def _sink(self, client: str, deltas: list[Delta]) -> None:
        for delta in deltas:
            self.deltas.setdefault(delta.id, []).append(delta)

    def submit(self, prompt: list[int], max_tokens: int, client: str = "c", **fields: object) -> str:
        """Submit and return the request's id. `stop` and `min_tokens` go to the sampling."""
        self._serial += 1
        request_id = str(fields.pop("id", f"r{self._serial}"))
        sampling = TokenSampling(
            max_tokens=max_tokens,
            seed=0,
            stop_token_ids=tuple(fields.pop("stop", ())),  # type: ignore[call-overload]
            min_tokens=int(fields.pop("min_tokens", 0)),  # type: ignore[call-overload]
            prompt_logprobs=int(fields.pop("prompt_logprobs", -1)),  # type: ignore[call-overload]
        )
        fields.setdefault("stream", self._stream)
        submit = Submit(id=request_id, tokens=pack_tokens(prompt), sampling=sampling, **fields)  # type: ignore[arg-type]
        self.core.submit(client, submit)
        return request_id

    def run(self, most_steps: int = 10_000) -> None:
        """Step until idle, then check that nothing leaked."""
        for _ in range(most_steps):
            if not self.core.has_work:
                self.core.check_idle()
                if self.drafter is not None:
                    self.drafter.check_idle()
                return
            self.core.step()
        raise AssertionError(f"still busy after {most_steps} steps")

    def tokens(self, request_id: str) -> list[int]:
        return [token for delta in self.deltas.get(request_id, []) for token in delta.tokens]

    def finish(self, request_id: str) -> str | None:
        deltas = self.deltas.get(request_id)
        return deltas[-1].finish if deltas else None

    def error(self, request_id: str) -> tuple[str, str, float | None] | None:
        return self.deltas[request_id][-1].error


__all__ = ["CoreBench", "expected_tokens"]
