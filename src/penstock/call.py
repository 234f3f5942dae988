"""Call and Event: the one language that every layer of Penstock speaks.

A `Call` is a normalized request, whatever wire format it arrived in. An `Event` is one item of its
answer's stream; a non-streaming body is the fold of the events. Both are plain immutable data:
text lives here, token ids of a running request live in `penstock.engine.messages`.

Choice numbering: `Event.index` is `prompt_index * n + sample_index`, as in the completions API.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from penstock.sampling_params import SamplingParams

# --------------------------------------------------------------------------- message parts


class TextPart(Struct, frozen=True, tag="text"):
    text: str


class ImagePart(Struct, frozen=True, tag="image"):
    """An image by URL (may be a data: URL) or by bytes."""

    url: str | None = None
    data: bytes | None = None
    media_type: str | None = None
    detail: str | None = None


class ToolCallPart(Struct, frozen=True, tag="tool_call"):
    """`arguments` is the JSON text exactly as the model wrote it."""

    id: str
    name: str
    arguments: str


class ToolResultPart(Struct, frozen=True, tag="tool_result"):
    id: str
    content: tuple[TextPart | ImagePart, ...] = ()
    is_error: bool = False


class ReasoningPart(Struct, frozen=True, tag="reasoning"):
    """`signature` is set where somebody else wrote this: only they can check it. `redacted`: the text is
    theirs too, encrypted in the signature."""

    text: str
    signature: str | None = None
    redacted: bool = False


Part = TextPart | ImagePart | ToolCallPart | ToolResultPart | ReasoningPart

Role = Literal["system", "developer", "user", "assistant", "tool"]


class Message(Struct, frozen=True):
    role: Role
    parts: tuple[Part, ...] = ()
    name: str | None = None

    @property
    def text(self) -> str:
        """All text parts joined, without separator."""
        return "".join(p.text for p in self.parts if isinstance(p, TextPart))


class CustomFormat(Struct, frozen=True):
    """What the input of a custom tool looks like: any text, or text of a grammar."""

    syntax: Literal["text", "lark", "regex"] = "text"
    definition: str = ""


class ToolNamespace(Struct, frozen=True):
    """A group of tools, as the Responses API has them for MCP servers."""

    name: str
    description: str = ""


class ToolSpec(Struct, frozen=True):
    """`name` is what the model writes, a namespace's prefix included. A tool with `custom` takes plain text:
    the model writes it as the one argument `input`, which `parameters` describes."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False
    custom: CustomFormat | None = None
    namespace: ToolNamespace | None = None


class ResponseFormat(Struct, frozen=True):
    """`schema` is set for kind "json_schema" only."""

    kind: Literal["text", "json_object", "json_schema"] = "text"
    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool = False


# --------------------------------------------------------------------------- the call

BATCH_PRIORITY = 3  # of a batch's line: behind every call that somebody waits for, however long it waits


class CachePolicy(Struct, frozen=True):
    """What the prefix cache may do for this call."""

    read: bool = True
    store: bool = True
    salt: str = ""  # calls with different salts never share a block
    key: str | None = None  # affinity hint, not isolation
    ttl_s: int | None = None  # how long the prompt is worth keeping, a hint; None: as long as there is room


class Session(Struct, frozen=True, kw_only=True):
    """Stored turns that a call goes on from, and whether it becomes one.

    `items` are the call's own input as the Responses format writes it, which is how turns are stored.
    `messages` of the call hold them alone until `penstock.gateway.sessions` has put the turns before them.
    `response_id`: what the call becomes. `last_tokens`: of the prompt of the turn before, 0 if nobody knows.
    """

    items: tuple[dict[str, Any], ...] = ()
    previous_response_id: str | None = None
    conversation: str | None = None
    store: bool = True
    response_id: str | None = None
    last_tokens: int = 0


class Call(Struct, frozen=True, kw_only=True):
    """One normalized request.

    kind "chat" uses `messages`; kind "completion" uses `prompts`, each a string or token ids. `suffix`: the
    answer is what stands between a prompt and this text.
    `extra` keeps unknown fields: an upstream of the same format gets them back untouched.
    """

    kind: Literal["chat", "completion"]
    model: str
    messages: tuple[Message, ...] = ()
    prompts: tuple[str | tuple[int, ...], ...] = ()
    suffix: str = ""
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str | None = None  # "none", "auto", "required" or a tool's name as "tool:NAME"
    parallel_tool_calls: bool | None = None
    continue_final: bool = False  # the last message, an assistant's, is how the answer begins
    fit_context: bool = False  # max_tokens beyond the context's end is cut there, not refused
    response_format: ResponseFormat | None = None
    sampling: SamplingParams = msgspec.field(default_factory=SamplingParams)
    stream: bool = False
    stream_usage: bool = False
    echo: bool = False
    template_args: dict[str, Any] = {}
    cache: CachePolicy = CachePolicy()
    tenant: str = ""
    priority: int = 0  # lower runs earlier; classes -2 .. 2, and BATCH_PRIORITY
    deadline_s: float | None = None  # seconds from arrival
    user: str | None = None
    metadata: dict[str, str] = {}
    session: Session | None = None  # None: the call stands alone and is not stored
    extra: dict[str, Any] = {}


# --------------------------------------------------------------------------- events


class TopLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: bytes
    token_id: int


class TokenLogprob(Struct, frozen=True):
    """Natural-log probability of one token under the model's raw distribution.

    `logprob` is None for the first prompt token, which nothing predicts.
    """

    token: str
    logprob: float | None
    bytes: bytes
    token_id: int
    top: tuple[TopLogprob, ...] = ()


class SpeculationUsage(Struct, frozen=True):
    """Steps that verified drafts, the drafts, and how many were right. Each step gave one token more.

    synthetic: they counted by chance (`SpeculationSettings.synthetic_acceptance`), and the answer is not the
    model's.
    """

    steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    synthetic: bool = False

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens of a step, the one behind the last right draft included."""
        return 1 + self.accepted_tokens / self.steps if self.steps else 1.0


class PrefixMiss(Struct, frozen=True):
    """Where a prompt leaves that of the turn before. token: index of the first one that differs. field: of
    the request, as `messages[0].content`. before, after: the text around that token in both. lost_tokens:
    of the earlier prompt, from there."""

    token: int
    field: str
    before: str
    after: str
    lost_tokens: int


class Usage(Struct, frozen=True):
    """Counts of tokens. `cached_tokens` is the part of prompt_tokens whose KV was reused, `evicted_tokens`
    what the turn before left in the cache and was not there any more."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    speculation: SpeculationUsage | None = None  # None: no draft was verified
    evicted_tokens: int = 0
    prefix_miss: PrefixMiss | None = None  # asked for, and there is one

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class PromptEcho(Struct, frozen=True, tag="prompt"):
    """The prompt itself, sent before any delta when echo or prompt_logprobs was asked for."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None


class TextDelta(Struct, frozen=True, tag="text"):
    """`text` may be empty while a character or a possible stop string is held back."""

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None


class ReasoningDelta(Struct, frozen=True, tag="reasoning"):
    """`signature` and `redacted` as in ReasoningPart; with a signature a section of reasoning ends."""

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    signature: str | None = None
    redacted: bool = False


class ToolCallDelta(Struct, frozen=True, tag="tool_call"):
    """id and name are set on the first delta of a call only; `arguments` accumulates."""

    index: int
    call_index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Finish(Struct, frozen=True, tag="finish"):
    """`stop` is the stop string or stop token id that ended the choice, None for end of sequence."""

    index: int
    reason: FinishReason
    stop: str | int | None = None


class Timings(Struct, frozen=True):
    """Seconds. `queue_s` until admission, `ttft_s` until the first token, `total_s` until the end."""

    queue_s: float = 0.0
    ttft_s: float = 0.0
    total_s: float = 0.0


class Done(Struct, frozen=True, tag="done"):
    """The last event of every stream that did not fail."""

    usage: Usage
    timings: Timings = Timings()


class Failure(Struct, frozen=True, tag="error"):
    """The last event of a stream that failed: `kind` and `status` as in penstock.errors."""

    kind: str
    message: str
    status: int
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None


Event = PromptEcho | TextDelta | ReasoningDelta | ToolCallDelta | Finish | Done | Failure


# --------------------------------------------------------------------------- what answers calls


class ModelCard(Struct, frozen=True):
    id: str
    created: int  # Unix seconds
    max_context: int
    owned_by: str = "penstock"


class Health(Struct, frozen=True):
    """Three answers, all tied to completed steps.

    alive: the engine answers, and if it has work then steps complete.
    ready: requests are accepted now (model loaded, not draining).
    """

    alive: bool
    ready: bool
    detail: str
    steps: int = 0
    running: int = 0
    waiting: int = 0
    restarts: int = 0
