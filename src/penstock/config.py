"""Every setting of Penstock: typed, frozen, one source of defaults, units in the names.

Flags (`--token-budget`), keyword arguments (`LLM(token_budget=…)`) and the reference page
`docs/settings.md` come from these records. Each field carries its reason in `Meta(description=…)`.
Unknown keys are refused with the nearest right one.
"""

from __future__ import annotations

import difflib
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from penstock.errors import ConfigError

S = TypeVar("S", bound=Struct)

PositiveInt = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Index = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(ge=0, le=1)]


FEATURE_METHODS = ("dflash", "eagle", "mtp")  # drafters that read the model's hidden states
LOADED_METHODS = ("draft", *FEATURE_METHODS)


class SpeculationSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who drafts tokens for the model to verify, and how many."""

    method: Annotated[
        Literal["ngram", "suffix", "draft", "self", "dflash", "eagle", "mtp", "synthetic"],
        Meta(
            description="ngram: what followed the last tokens before; suffix: also in answers of the tenant; "
            "draft: a smaller model; self: some of the model's own layers; "
            "dflash, eagle (EAGLE-3), mtp: a network made for the model, which reads its hidden states; "
            "synthetic: arbitrary tokens, for load tests with synthetic_acceptance"
        ),
    ]
    k: Annotated[int, Meta(ge=1, le=32, description="drafts of a request in one step at most")] = 7
    adaptive: Annotated[
        bool | None,
        Meta(
            description="fewer drafts, or none, where by the measured costs they do not pay; "
            "None: unless acceptance is synthetic"
        ),
    ] = None
    model: Annotated[
        str | None,
        Meta(
            description="of method draft: catalogue name, GGUF file or folder; "
            "of dflash, eagle, mtp: the folder of the network"
        ),
    ] = None
    backend: Annotated[
        Literal["auto", "cpu", "reference"], Meta(description="of the draft model, as the engine's")
    ] = "auto"
    weights: Annotated[
        Literal["file", "float32", "bf16", "int8", "int4"], Meta(description="of the draft model")
    ] = "file"
    threads: Annotated[PositiveInt | None, Meta(description="of the draft model; None: as the engine")] = None
    kv_bytes: Annotated[
        PositiveInt | None,
        Meta(description="bytes of the drafter's own KV or context; None: a quarter of the engine's KV"),
    ] = None
    layers: Annotated[
        PositiveInt | tuple[Index, ...] | None,
        Meta(
            description="of method self: layers that draft. A number: the first ones; a list: these, counted "
            "from 0 (`penstock tune self-draft` finds the best); None: the first third"
        ),
    ] = None

    synthetic_acceptance: Annotated[
        Rate | tuple[Rate, ...] | None,
        Meta(
            description="for load tests: drafts count by chance, and answers are not the model's. A number: "
            "the chance of a draft where those before it count; a list: by place in the draft, the share of "
            "steps in which the drafts up to it count"
        ),
    ] = None

    def __post_init__(self) -> None:
        self._check_acceptance()
        if self.layers is not None and self.method != "self":
            raise ConfigError(f"speculation.layers: of method self; method {self.method} takes none")
        if isinstance(self.layers, tuple) and list(self.layers) != sorted({*self.layers} or {-1}):
            raise ConfigError(
                f"speculation.layers: {list(self.layers)}; name one layer or more, ascending, each once"
            )
        if (self.method in LOADED_METHODS) != (self.model is not None):
            raise ConfigError(
                f"speculation.model: {self.model}; methods {', '.join(LOADED_METHODS)} need one, the others "
                "take none"
            )
        plain = self.backend in ("auto", "reference") and self.weights in ("file", "float32")
        if self.method in FEATURE_METHODS and not (plain and self.threads is None):
            raise ConfigError(
                f"speculation: backend {self.backend}, weights {self.weights}, threads {self.threads}; "
                f"method {self.method} runs on the reference ops in float32, leave them out"
            )

    def _check_acceptance(self) -> None:
        rates = self.synthetic_acceptance
        if rates is None:
            if self.method == "synthetic":
                raise ConfigError(
                    "speculation.synthetic_acceptance: method synthetic proposes arbitrary tokens; say how "
                    "likely each shall count, such as 0.7"
                )
            return
        if self.adaptive:
            raise ConfigError(
                "speculation.adaptive: true; what drafts are worth can't be learned where their acceptance "
                "is synthetic, leave it out"
            )
        if isinstance(rates, tuple):
            if len(rates) != self.k:
                raise ConfigError(
                    f"speculation.synthetic_acceptance: {len(rates)} rates for k = {self.k} drafts; give one "
                    "for each"
                )
            for place, (rate, before) in enumerate(zip(rates[1:], rates, strict=False), start=2):
                if rate > before:
                    raise ConfigError(
                        f"speculation.synthetic_acceptance: {rate} in place {place} is above {before} before "
                        "it; a draft counts only where those before it do, so the rates can't rise"
                    )

    @property
    def is_adaptive(self) -> bool:
        return self.synthetic_acceptance is None if self.adaptive is None else self.adaptive


class EngineSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One loaded model and how it is run."""

    model: Annotated[
        str, Meta(description="catalogue name, GGUF file, safetensors folder; serve: scripted:FILE")
    ] = "smollm2"
    backend: Annotated[
        Literal["auto", "cpu", "reference"],
        Meta(description="kernel backend; auto takes the fastest that serves the model"),
    ] = "auto"
    weights: Annotated[
        Literal["file", "float32", "bf16", "int8", "int4"],
        Meta(description="form of the weights; file: the file's precision, float32: the exact path"),
    ] = "file"
    kv_dtype: Annotated[
        Literal["auto", "float32", "bf16", "int8"],
        Meta(description="form of the KV; auto: bf16, or float32 with float32 weights"),
    ] = "auto"
    threads: Annotated[
        PositiveInt | None, Meta(description="threads that compute; None: the cores this process may use")
    ] = None
    instruction_set: Annotated[
        str, Meta(description="of the cpu backend, see `penstock doctor`; auto: the best present")
    ] = "auto"
    max_context: Annotated[
        PositiveInt | None, Meta(description="tokens; None: what the model declares and the KV pool can hold")
    ] = None
    kv_bytes: Annotated[
        PositiveInt | None,
        Meta(description="bytes of KV memory; None: kv_share of what machine or cgroup has free"),
    ] = None
    kv_share: Annotated[
        float,
        Meta(
            gt=0, le=0.95, description="share of free memory for KV; the rest is for weights, steps, others"
        ),
    ] = 0.25
    block_size: Annotated[int, Meta(ge=1, description="tokens per KV block; a power of two")] = 16
    prefix_cache: Annotated[bool, Meta(description="reuse KV of equal prefixes across requests")] = True
    pin_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="of the KV blocks, that pinned prompts (stored turns, cache_control) keep at most; "
            "beyond it those that end soonest are let go. A request that needs their room gets it",
        ),
    ] = 0.5
    transcript_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="bytes of prompts kept, from which the next turns of their conversations are made; "
            "beyond it a turn renders and tokenizes its whole conversation",
        ),
    ] = 128 * 2**20
    max_running: Annotated[int, Meta(ge=1, le=4096, description="requests in one step at most")] = 256
    token_budget: Annotated[
        int,
        Meta(
            ge=1,
            description="tokens computed in one step at most; prompts get fewer where streams would stall",
        ),
    ] = 512
    batch_step_s: Annotated[
        float,
        Meta(
            gt=0,
            description="seconds that a step with lines of batches may take, by the measured costs: between "
            "tokens beside a batch, and, twice at most, until a request that comes is in a step",
        ),
    ] = 0.05
    max_queue: Annotated[int, Meta(ge=1, description="requests waiting at most; beyond it 429")] = 1024
    deadline_s: Annotated[
        PositiveFloat | None,
        Meta(description="seconds from arrival until a request is given up; None: no limit"),
    ] = None
    async_depth: Annotated[
        int, Meta(ge=0, le=1, description="steps launched before the previous one's tokens are known")
    ] = 1
    window: Annotated[
        int,
        Meta(ge=1, le=64, description="decode steps planned at once while nobody waits; 1: always one"),
    ] = 32
    aging_s: Annotated[
        float, Meta(gt=0, description="seconds of waiting that lift a request by one priority class")
    ] = 30.0
    tenant_weights: Annotated[
        dict[str, float], Meta(description="share of tokens per tenant under contention; 1 where absent")
    ] = {}
    thinking_stop_sentence: Annotated[
        str,
        Meta(description="last words of reasoning that a thinking budget ends; part of the budget"),
    ] = ""
    grammar_backend: Annotated[
        Literal["auto", "llguidance", "xgrammar"],
        Meta(
            description="compiles structured answers; auto: llguidance, and xgrammar for what it refuses, "
            "where that is installed; xgrammar is an extra: quicker masks, grammars that are slower to make"
        ),
    ] = "auto"
    speculation: Annotated[
        SpeculationSettings | None,
        Meta(description='drafter, such as {"method": "suffix", "k": 8}; None: off'),
    ] = None

    def __post_init__(self) -> None:
        if self.block_size & (self.block_size - 1):
            raise ConfigError(f"block_size: {self.block_size} is not a power of two; use 16 or 32")
        for tenant, weight in self.tenant_weights.items():
            if not weight > 0:
                raise ConfigError(f"tenant_weights.{tenant}: {weight} must be above 0")


class ServerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP side."""

    host: Annotated[str, Meta(description="address to listen on; any but loopback needs an API key")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(ge=0, le=65535, description="0 takes a free one and prints it")] = 8000
    api_key: Annotated[
        str | None, Meta(description="bearer key; None on loopback: none needed; else one is made")
    ] = None
    served_model_name: Annotated[
        str | None, Meta(description="model id in the API; None: the model's own")
    ] = None
    engine: Annotated[
        str | None, Meta(description="ipc address of an engine started by `penstock engine`; None: start one")
    ] = None
    embedding_models: Annotated[
        tuple[str, ...],
        Meta(
            description="names or folders of models for embeddings, rerank and score beside the served one, "
            'loaded when first asked for; "" for none'
        ),
    ] = ("minilm",)
    embedding_threads: Annotated[
        PositiveInt | None, Meta(description="threads that embed; None: the cores this process may use")
    ] = None
    embedding_keep_alive_s: Annotated[
        float,
        Meta(description="an embedding model that nobody asks for so long gives its memory back; -1: never"),
    ] = 300.0
    embedding_queue: Annotated[
        int, Meta(ge=1, description="texts waiting to be embedded at most, per model; beyond it 429")
    ] = 16384
    database_url: Annotated[
        str | None,
        Meta(
            description="stored responses, conversations, files, batches: sqlite:///FILE or "
            "postgresql://USER@HOST/NAME; None: SQLite in the data folder"
        ),
    ] = None
    session_pin_s: Annotated[
        int,
        Meta(
            ge=0, description="seconds that a stored turn's prompt stays pinned in the prefix cache; 0: none"
        ),
    ] = 3600
    session_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="bytes of stored turns kept in memory; beyond it a turn reads its whole conversation "
            "from the database",
        ),
    ] = 128 * 2**20
    max_body_bytes: Annotated[int, Meta(ge=1024, description="request bodies above it get 413 unread")] = (
        32 * 2**20
    )
    max_file_bytes: Annotated[
        int, Meta(ge=1024, description="uploaded files and message batches above it get 413 unread")
    ] = 200 * 2**20
    batch_in_flight: Annotated[
        int,
        Meta(
            ge=1,
            description="lines of batches in the engine at most; fewer where they would wait there, so more "
            "than max_running are of no use",
        ),
    ] = 256
    batch_lease_s: Annotated[
        float,
        Meta(
            ge=0.1,
            description="seconds without a sign of life after which another server goes on with a batch, or "
            "this one after its restart",
        ),
    ] = 10.0
    allowed_hosts: Annotated[
        tuple[str, ...], Meta(description="further names accepted in the Host header (DNS rebinding)")
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...], Meta(description="origins allowed by CORS; none by default")
    ] = ()
    drain_s: Annotated[float, Meta(ge=0, description="seconds that running streams get after SIGTERM")] = 30.0
    keepalive_s: Annotated[
        float, Meta(gt=0, description="seconds of silence after which a stream gets a comment or ping")
    ] = 15.0
    slow_reader_s: Annotated[
        float, Meta(gt=0, description="seconds that one write may block before the stream is cancelled")
    ] = 60.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="of penstock's own log")
    ] = "info"

    def __post_init__(self) -> None:
        scheme = (self.database_url or "sqlite:").partition(":")[0]
        if scheme not in ("sqlite", "postgresql"):
            raise ConfigError(f"database_url: {scheme!r}; use sqlite:///FILE or postgresql://USER@HOST/NAME")


def build(cls: type[S], **values: Any) -> S:
    """Make a settings record from keyword arguments, None meaning "left alone" only where None is legal.

    Raises ConfigError naming the path, the given value, and the nearest right key for an unknown one.
    """
    known = cls.__struct_fields__
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(known)}"
            raise ConfigError(f"{key}: no such setting{hint}")
    try:
        return msgspec.convert(values, cls, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None


def describe(cls: type[Struct]) -> list[tuple[str, str, Any, str]]:
    """(name, type, default, description) per field: the source of flags and of docs/settings.md.

    The default of a field that must be given is None.
    """
    hints = get_type_hints(cls, include_extras=True)
    rows = []
    for info in msgspec.structs.fields(cls):
        hint = hints[info.name]
        meta = next(m for m in hint.__metadata__ if isinstance(m, Meta))
        default = info.default
        if default is msgspec.NODEFAULT:
            default = None if info.required else info.default_factory()
        kind = hint.__origin__
        rows.append((info.name, _type_name(kind), default, meta.description or ""))
    return rows


def _type_name(kind: Any) -> str:
    """`Literal["a", "b"] -> a|b`, `Annotated[int, …] | None -> int|None`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "|".join(str(a) for a in args)
    if origin is Annotated:
        return _type_name(args[0])
    if origin in (Union, UnionType):
        return "|".join(_type_name(a) for a in args)
    return "None" if kind is type(None) else getattr(kind, "__name__", str(kind))
