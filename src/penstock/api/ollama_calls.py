"""What stands between Ollama's generating routes and the service: names, `num_ctx`, `think`, loading.

A request without anything to answer loads its model in Ollama; here the model is loaded already, so it asks
whether that is ready. The served model is never unloaded: a request for that alone is refused, and the
`keep_alive` of any other is about the time after its answer, in which the model stays whatever it says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import msgspec

from penstock.call import Call, Done, Event, Finish, Usage
from penstock.errors import ContextOverflow, EngineUnavailable, InvalidRequest, NotFound
from penstock.gateway.service import ModelCard, ModelLibrary, ModelService
from penstock.wire.ollama_common import asks_to_think, is_load, is_unload

LATEST = ":latest"


def plain_name(name: str) -> str:
    """Without the tag that Ollama adds to names that have none."""
    return name.removesuffix(LATEST)


def tagged_name(name: str) -> str:
    """As Ollama lists it: with a tag."""
    return name if ":" in name.rpartition("/")[2] else name + LATEST


class OllamaCalls:
    """`stream` as `ModelService.stream`, for calls of Ollama's format."""

    def __init__(self, service: ModelService, library: ModelLibrary | None) -> None:
        self._service = service
        self._library = library
        self._thinks: dict[str, bool] = {}  # by model

    async def stream(self, call: Call, request_id: str) -> AsyncIterator[Event]:
        """Raises NotFound, InvalidRequest, ContextOverflow and what the service raises."""
        card = find_card(self._service, call.model)
        _check_context(call, card)
        if is_load(call):
            self._check_load(call, card)
            yield Finish(0, "stop")
            yield Done(Usage())
            return
        if asks_to_think(call) and not await self._can_think(card.id):
            raise InvalidRequest(
                f'"{call.model}" does not support thinking; leave `think` out', param="think"
            )
        call = msgspec.structs.replace(call, model=card.id)
        events = self._service.stream(call, request_id)
        async with aclosing(cast(Any, events)):
            async for event in events:
                yield event

    def _check_load(self, call: Call, card: ModelCard) -> None:
        if is_unload(call):
            raise InvalidRequest(
                f"keep_alive: 0 would unload {card.id!r}, the model that this server was started with; "
                "stop the server to free its memory",
                param="keep_alive",
                code="unsupported_parameter",
            )
        health = self._service.health()
        if not health.ready:
            raise EngineUnavailable(f"{card.id} is not loaded: {health.detail}", retry_after_s=1.0)

    async def _can_think(self, model: str) -> bool:
        if self._library is None:
            return True
        if model not in self._thinks:
            sheet = await asyncio.to_thread(self._library.show, model)
            self._thinks[model] = "thinking" in sheet.capabilities
        return self._thinks[model]


def find_card(service: ModelService, name: str) -> ModelCard:
    """The card of the served model that `name` means, with or without `:latest`. Raises NotFound."""
    return find_among(service.models(), name)


def find_among(models: list[ModelCard], name: str) -> ModelCard:
    cards = {card.id: card for card in models}
    for known in (name, plain_name(name), name + LATEST):
        if known in cards:
            return cards[known]
    raise NotFound(
        f"model '{name}' not found; served here: {', '.join(cards)}", param="model", code="model_not_found"
    )


def _check_context(call: Call, card: ModelCard) -> None:
    """`num_ctx` up to the served context asks for nothing that is not there."""
    asked = call.extra.get("options", {}).get("num_ctx")
    if asked is not None and card.max_context and asked > card.max_context:
        raise ContextOverflow(
            f"options.num_ctx: {asked}; {card.id} is served with a context of {card.max_context} tokens; "
            "leave num_ctx out, or serve it with a larger --max-context",
            param="options.num_ctx",
        )
