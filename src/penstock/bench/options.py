"""What a benchmark command takes, as a record: flags come from it. Free of numpy, so `--help` is fast."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from penstock.config import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from penstock.bench.workloads import Item


class WorkloadOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A workload as the command line describes it."""

    num_requests: Annotated[int, Meta(ge=1, description="requests of a fixed shape")] = 32
    input_len: Annotated[int, Meta(ge=1, description="prompt tokens of a fixed shape")] = 128
    output_len: Annotated[int, Meta(ge=1, description="generated tokens of a fixed shape")] = 128
    trace: Annotated[
        str | None, Meta(description="replay FILE: Azure LLM trace .csv, Mooncake trace .jsonl")
    ] = None
    time_scale: Annotated[
        float,
        Meta(ge=0, description="factor on the trace's arrival times; 0.1 is ten times faster, 0 all at once"),
    ] = 1.0
    max_requests: Annotated[PositiveInt | None, Meta(description="first requests of the trace only")] = None
    max_input: Annotated[PositiveInt | None, Meta(description="cut longer prompts of the trace, tokens")] = (
        None
    )
    max_output: Annotated[PositiveInt | None, Meta(description="cut longer outputs of the trace, tokens")] = (
        None
    )
    rate: Annotated[
        PositiveFloat | None, Meta(description="requests per second, Poisson, instead of own times")
    ] = None
    seed: Annotated[int, Meta(ge=0, description="of the Poisson arrivals")] = 0

    def items(self) -> list[Item]:
        """The workload itself."""
        from penstock.bench.workloads import fixed, load_trace, with_rate

        if self.trace is None:
            items = fixed(self.num_requests, self.input_len, self.output_len)
        else:
            items = load_trace(
                Path(self.trace),
                time_scale=self.time_scale,
                max_requests=self.max_requests,
                max_input=self.max_input,
                max_output=self.max_output,
            )
        return items if self.rate is None else with_rate(items, self.rate, self.seed)
