"""`penstock bench offline`: a workload on an engine in this process, no HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from penstock.bench.drive import drive
from penstock.bench.metrics import Drafts, Record
from penstock.bench.workloads import Item, prompt_tokens
from penstock.call import Done, Failure, SamplingParams, TextDelta
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.llm import AsyncLLM


async def run_offline(
    llm: AsyncLLM,
    items: list[Item],
    *,
    vocab_size: int,
    concurrency: int | None = None,
    on_done: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Records of `items` on a started engine. Prompts are made before the clock starts."""
    prompts = {item.index: prompt_tokens(item, vocab_size).tolist() for item in items}

    async def send(item: Item) -> Record:
        return await complete(llm, item, prompts[item.index])

    return await drive(items, send, concurrency=concurrency, on_done=on_done)


async def complete(llm: AsyncLLM, item: Item, tokens: list[int]) -> Record:
    """Generate exactly `output_len` greedy tokens and time them. A refusal lands in `error`."""
    params = SamplingParams(
        temperature=0.0, max_tokens=item.output_len, min_tokens=item.output_len, ignore_eos=True
    )
    record = Record(index=item.index, sent_s=time.monotonic(), input_tokens=len(tokens))
    try:
        async for event in llm.generate(tokens, params):
            _take(record, event)
    except PenstockError as error:
        record.error = error.message
    record.end_s = record.arrivals_s[-1] if record.arrivals_s else time.monotonic()
    return record


def _take(record: Record, event: Any) -> None:
    if isinstance(event, TextDelta) and event.token_ids:
        record.arrivals_s.append(time.monotonic())
        record.output_tokens += len(event.token_ids)
    elif isinstance(event, Done):
        record.cached_tokens = event.usage.cached_tokens
        record.output_tokens = event.usage.completion_tokens
        if (drafts := event.usage.speculation) is not None:
            record.drafts = Drafts(drafts.steps, drafts.drafted_tokens, drafts.accepted_tokens)
    elif isinstance(event, Failure):
        record.error = event.message
