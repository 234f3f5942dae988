"""From a Call to the requests that an engine runs: the caller's half of the work, text in, ids out.

Numbering: choice `prompt_index * n + sample_index`; request id `{key}/{choice}`, where the key is
unique per call and attempt. Sample 0 of each prompt is the leader: its siblings wait for its prefill
and share it through the prefix cache. Where the policy keeps the call out of the cache, they share
under a private salt that nobody else can have.

Seeds: sample i of every prompt uses `seed + i` modulo 2^64; a call without a seed draws one. So n=4
with seed 7 gives what four calls with seeds 7, 8, 9, 10 give.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct

from penstock.call import Call, Message, PrefixMiss, SamplingParams, ToolSpec
from penstock.decoding.grammar.spec import GrammarSpec
from penstock.decoding.params import TokenSampling
from penstock.decoding.thinking import ThinkingSpec
from penstock.engine.constrain import grammar_of
from penstock.engine.messages import Submit, pack_tokens
from penstock.engine.supported import check_supported
from penstock.engine.thinking import ThinkingMarkers, ThinkingWish, bounded, read_wish
from penstock.engine.tools.grammar import forced_calls, strict_calls
from penstock.engine.tools.lark import Specials
from penstock.engine.turns import Turn, TurnPrompts, turn_after
from penstock.errors import ContextOverflow, InvalidRequest
from penstock.text.infill import needed_markers
from penstock.text.nonces import without_nonces
from penstock.text.tool_prompt import knows_tools, with_tool_prompt
from penstock.thinking import SWITCHES

if TYPE_CHECKING:
    from penstock.text.output.answer import AnswerParser
    from penstock.text.output.format import OutputFormat
    from penstock.text.template import ChatTemplate
    from penstock.text.tokenizer import Tokenizer
    from penstock.text.transcript import Transcriber

MAX_CHOICES = 1024  # prompts times n of one call: more than any queue default takes at once
SEED_RANGE = 2**64
PROMPT_END_CHARS = 256  # of a prompt that a reader of the answer needs: whether it ends inside reasoning


class OutputReading(Struct, frozen=True):
    """`prompt`: the end of the rendered prompt. `keep`: special tokens that the parser reads. `thinking`: how
    the answer reasons, in ids; None if it does not."""

    form: OutputFormat
    tools: tuple[ToolSpec, ...]
    prompt: str
    keep: frozenset[int]
    thinking: ThinkingSpec | None = None

    @property
    def may_begin_thinking(self) -> bool:
        """Unless the template wrote an empty section, which says that there shall be none."""
        marks = self.form.reasoning
        return marks is not None and not marks.closed_at_end(self.prompt)

    def parser(self) -> AnswerParser:
        from penstock.text.output.answer import AnswerParser

        return AnswerParser(self.form, self.tools, self.prompt)


class Prompt(Struct, frozen=True):
    """One prompt of a call and the requests of its samples, leader first. tokens: int32[n], or a list."""

    tokens: Sequence[int] | np.ndarray
    submits: tuple[Submit, ...]
    output: OutputReading | None = None  # how the answers are read; None: they are text
    thinking: ThinkingSpec | None = None  # how they reason; None: nobody counts it
    turn: Turn | None = None  # of a conversation
    block_size: int = 1  # tokens of a KV block


class Preparer:
    """Everything that depends on the loaded model. Stateless per call; may run in any thread."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        model: str,
        max_context: int,
        vocab_size: int,
        prefix_cache: bool,
        thinking_stop_sentence: str = "",
        transcript_bytes: int = 0,
        block_size: int = 16,
    ) -> None:
        """`vocab_size` is the model's head: ids up to it may be generated, some without text.

        transcript_bytes: what may be kept of the prompts of conversations, from which their next are made.
        block_size: tokens of a KV block.
        """
        self.tokenizer = tokenizer
        self.max_context = max_context
        self.vocab_size = vocab_size
        self._model = model
        self._prefix_cache = prefix_cache
        self._block_size = block_size
        self.turns = TurnPrompts(transcript_bytes, self._transcriber)
        self._template: ChatTemplate | None = None
        self._thinking = ThinkingMarkers(tokenizer, thinking_stop_sentence)
        self._special_tokens: Specials | None = None
        self._longest_token = max((len(tokenizer.piece(i)) for i in range(tokenizer.vocab_size)), default=1)

    # ------------------------------------------------------------------ text

    def chat_text(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        /,
        **template_args: object,
    ) -> str:
        """The rendered conversation. Raises InvalidRequest where the template can't."""
        template = self._chat_template()
        messages = without_nonces(messages)
        if tools and not knows_tools(template.tool_source):
            messages, tools = with_tool_prompt(messages, tools), ()
        return template.render(messages, tools, add_generation_prompt, **template_args)

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            from penstock.text.template import ChatTemplate

            self._template = ChatTemplate.for_tokenizer(self.tokenizer, self._model)
        return self._template

    def chat_tokens(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        template_args: dict[str, Any] | None = None,
    ) -> list[int]:
        """The prompt of a conversation, as a call with these would have it."""
        variables = self._chat_template().variables(bool(tools))
        args = read_wish(None, template_args or {}, variables).template_args
        return self.tokenizer.encode(self.chat_text(messages, tools, add_generation_prompt, **args))

    def _chat_prompt(self, call: Call) -> tuple[Turn, OutputReading | None, int | None]:
        """The prompt of a conversation, how its answer is read, and its thinking budget. A template writes
        its own BOS, so its text gets no second one."""
        tools, variables, wish = self._template_inputs(call)
        turn = self.turns.turn(
            call, tools, wish.template_args, lambda text: self._check_length(text, "messages")
        )
        text, ids = turn.transcript.encoded.text, turn.transcript.encoded.ids
        reading = self._reading(tools, text, ids)
        thinks_on = reading is not None and reading.thinking is not None and reading.thinking.open
        ignored = thinks_on or variables.isdisjoint(SWITCHES)
        return turn, reading, 0 if wish.off and ignored else wish.budget

    def _template_inputs(self, call: Call) -> tuple[tuple[ToolSpec, ...], frozenset[str], ThinkingWish]:
        """(tools, what the template reads, thinking with the template arguments)."""
        tools = () if call.tool_choice == "none" else call.tools
        variables = self._chat_template().variables(bool(tools))
        return tools, variables, read_wish(call.sampling.thinking_budget, call.template_args, variables)

    def explain_miss(self, before: Call, after: Call) -> PrefixMiss | None:
        """Where the prompt of `after` leaves that of `before`; None if it begins with all of its turns."""
        made = []
        for call in (before, after):
            check_supported(call)
            tools, _, wish = self._template_inputs(call)
            made.append(self.turns.transcribe(call, tools, wish.template_args))
        return self.turns.explain(after, *made)

    def _transcriber(self) -> Transcriber:
        from penstock.text.transcript import Transcriber

        return Transcriber(self.tokenizer, self._chat_template())

    def _reading(
        self, tools: tuple[ToolSpec, ...], text: str, ids: Sequence[int] | np.ndarray
    ) -> OutputReading | None:
        """None where an answer can be nothing but text: no tools, and a template that shows no reasoning."""
        from penstock.text.output.choose import format_for_template

        template = self._chat_template()
        source = template.tool_source if tools else template.source
        form = format_for_template(source)
        marks = form.reasoning
        if marks is not None and not any(begin in source for begin, _ in marks.pairs):
            form, marks = msgspec.structs.replace(form, reasoning=None), None
        if not tools and marks is None:
            return None
        special = (self.tokenizer.token_id(marker) for marker in form.special_markers)
        keep = frozenset(token for token in special if token is not None)
        thinking = None if marks is None else self._thinking.of_chat(marks, source, text, ids, bool(tools))
        return OutputReading(form, tools, text[-PROMPT_END_CHARS:], keep, thinking)

    def _tokens(self, call: Call) -> list[list[int]]:
        """Token ids of each prompt of a completion."""
        if not call.prompts:
            raise InvalidRequest("prompt: empty; send at least one", param="prompt")
        found = []
        for prompt in call.prompts:
            if isinstance(prompt, str):
                self._check_length(prompt + call.suffix, "prompt")
                plain = not call.suffix
                found.append(self.tokenizer.encode(prompt, add_special=plain, parse_special=plain))
            else:
                self._check_ids(prompt, "prompt")
                found.append(list(prompt))
        if call.suffix:
            markers = needed_markers(self.tokenizer, self._model)
            return [markers.prompt(self.tokenizer, beginning, call.suffix) for beginning in found]
        return found

    def _check_length(self, text: str, param: str) -> None:
        """Refuse what can't fit before spending seconds on tokenizing it."""
        least = -(-len(text.encode("utf-8", "replace")) // self._longest_token)
        if least > self.max_context:
            raise ContextOverflow(
                f"the prompt has at least {least} tokens, the context of this model is {self.max_context}",
                param=param,
                code="context_length_exceeded",
            )

    def _check_ids(self, ids: Iterable[int], param: str) -> None:
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise InvalidRequest(
                    f"{param}: token id {token} is outside the vocabulary [0, {self.vocab_size - 1}]",
                    param=param,
                )

    # ------------------------------------------------------------------ requests

    def prepare(self, call: Call, key: str) -> list[Prompt]:
        """The requests of `call`. Raises InvalidRequest and ContextOverflow (400)."""
        call.sampling.validate()
        check_supported(call, self.turns.num_known(call))
        reading: OutputReading | None = None
        turn: Turn | None = None
        tokens: Sequence[Sequence[int] | np.ndarray]
        if call.kind == "chat":
            turn, reading, budget = self._chat_prompt(call)
            tokens = [turn.transcript.encoded.ids]
        else:
            tokens = self._tokens(call)
            budget = read_wish(call.sampling.thinking_budget, {}, frozenset()).budget
        choices = len(tokens) * call.sampling.n
        if choices > MAX_CHOICES:
            raise InvalidRequest(
                f"n: {len(tokens)} prompts times {call.sampling.n} are {choices} choices, "
                f"at most {MAX_CHOICES} are possible in one request",
                param="n",
            )
        shared = self._resolve(call, self._grammar(call, reading))
        prompts = [
            self._prompt(call, key, index, ids, shared, reading, budget) for index, ids in enumerate(tokens)
        ]
        if turn is not None:
            prompts[0] = msgspec.structs.replace(prompts[0], turn=turn, block_size=self._block_size)
        return prompts

    def _prompt(
        self,
        call: Call,
        key: str,
        index: int,
        ids: Sequence[int] | np.ndarray,
        shared: TokenSampling,
        reading: OutputReading | None,
        budget: int | None,
    ) -> Prompt:
        if not len(ids):
            raise InvalidRequest("prompt: it has no tokens; at least one is needed", param="prompt")
        n = call.sampling.n
        param = "messages" if call.kind == "chat" else "prompt"
        max_tokens = self._max_tokens(call.sampling, len(ids), param, call.fit_context)
        thinking = reading.thinking if reading is not None else None
        if reading is None and (budget is not None or shared.grammar is not None):
            thinking = self._thinking.of_completion(ids)
        shared = self._with_thinking(call, shared, thinking, reading, budget, max_tokens)
        packed = pack_tokens(np.asarray(ids))
        salt, read, store = self._cache_policy(call, f"{key}/{index * n}")
        submits: list[Submit] = []
        for sample in range(n):
            sampling = _for_sample(shared, sample, max_tokens)
            submits.append(
                Submit(
                    id=f"{key}/{index * n + sample}",
                    tokens=packed,
                    sampling=sampling,
                    tenant=call.tenant,
                    priority=call.priority,
                    deadline_s=call.deadline_s,
                    # A stop string is found out here: the sooner, the less is computed beyond it.
                    stream=call.stream or bool(call.sampling.stop),
                    cache_salt=salt,
                    cache_read=read,
                    cache_store=store,
                    leader=None if sample == 0 else submits[0].id,
                    pin=turn_after(call) or "",
                    pin_s=float(call.cache.ttl_s or 0) if sample == 0 else 0.0,
                )
            )
        return Prompt(ids, tuple(submits), reading, thinking)

    def _with_thinking(
        self,
        call: Call,
        shared: TokenSampling,
        thinking: ThinkingSpec | None,
        reading: OutputReading | None,
        budget: int | None,
        max_tokens: int,
    ) -> TokenSampling:
        """`shared`, told of a budget, or of the reasoning that comes before a grammar."""
        if thinking is None:
            return shared
        has_grammar, lead_in = shared.grammar is not None, ""
        if shared.grammar is not None and shared.grammar.loops is not None and not _must_call(call):
            # Text in which strict calls may begin. Where messages have channels it describes those of
            # reasoning as well.
            if reading is not None and (reading.form.loop is not None or not reading.may_begin_thinking):
                return shared
        elif has_grammar:
            if not thinking.open and (reading is None or not reading.may_begin_thinking):
                return shared
            marks = reading.form.reasoning if reading is not None else None
            if marks is not None:
                lead_in = marks.before_calls if _must_call(call) else marks.before_answer
        spec = bounded(thinking, budget, max_tokens, has_grammar, self._thinking.ids(lead_in))
        return msgspec.structs.replace(shared, thinking=spec)

    def _max_tokens(self, sampling: SamplingParams, prompt_len: int, param: str, fits: bool) -> int:
        left = self.max_context - prompt_len
        if left < 1:
            raise ContextOverflow(
                f"the prompt has {prompt_len} tokens, the context of this model is {self.max_context} "
                "and must hold at least one more; shorten the prompt",
                param=param,
                code="context_length_exceeded",
            )
        if sampling.max_tokens is None or (fits and sampling.max_tokens > left):
            return left
        if sampling.max_tokens > left:
            raise ContextOverflow(
                f"{prompt_len} prompt tokens and max_tokens {sampling.max_tokens} are "
                f"{prompt_len + sampling.max_tokens}, the context of this model is {self.max_context}; "
                f"ask for at most {left} or leave max_tokens out",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return sampling.max_tokens

    def _cache_policy(self, call: Call, leader: str) -> tuple[str, bool, bool]:
        """(salt, read, store). The salt begins with a digit, or is private, or empty: no overlap."""
        read = call.cache.read and self._prefix_cache
        store = call.cache.store and self._prefix_cache
        if call.sampling.n > 1 and not (read and store):
            return f"\x00private:{leader}", True, True
        shared = bool(call.tenant or call.cache.salt)
        return (f"{len(call.tenant)}:{call.tenant}:{call.cache.salt}" if shared else ""), read, store

    def _grammar(self, call: Call, reading: OutputReading | None) -> GrammarSpec | None:
        grammar, choice = grammar_of(call), call.tool_choice
        parallel = call.parallel_tool_calls is not False
        if choice is None or not _must_call(call):
            if grammar is not None or reading is None:
                return grammar
            gated = reading.thinking is not None
            return strict_calls(
                reading.form, reading.tools, parallel, self._specials(), reading.prompt, gated
            )
        if grammar is not None:
            raise InvalidRequest(
                f"tool_choice: {choice!r} and a form of the answer exclude each other", param="tool_choice"
            )
        if reading is None or not reading.tools:
            raise InvalidRequest(f"tool_choice: {choice!r} needs tools", param="tool_choice")
        if call.sampling.min_tokens:
            raise InvalidRequest(
                f"min_tokens: tool_choice {choice!r} decides when the answer ends; leave min_tokens out",
                param="min_tokens",
            )
        return forced_calls(reading.form, reading.tools, choice, parallel, self._specials())

    def _specials(self) -> Specials:
        if self._special_tokens is None:
            pieces = {token: self.tokenizer.piece(token) for token in self.tokenizer.special_ids}
            texts = {piece.decode("utf-8", "replace"): token for token, piece in pieces.items() if piece}
            self._special_tokens = Specials(texts, frozenset(self.tokenizer.eos_ids))
        return self._special_tokens

    def _resolve(self, call: Call, grammar: GrammarSpec | None) -> TokenSampling:
        """Ids instead of strings; `max_tokens` and the samples' seeds come later."""
        from penstock.text.bad_words import bad_word_ids

        params = call.sampling
        bias = params.logit_bias or {}
        allowed = params.allowed_token_ids or ()
        self._check_ids(bias, "logit_bias")
        self._check_ids(params.stop_token_ids, "stop_token_ids")
        self._check_ids(allowed, "allowed_token_ids")
        # Nothing can follow a complete answer but the end.
        own_stops = () if params.ignore_eos and grammar is None else self.tokenizer.eos_ids
        if call.suffix and own_stops:
            own_stops += needed_markers(self.tokenizer, self._model).ends
        prompt_logprobs = params.prompt_logprobs
        if prompt_logprobs is None and call.echo:
            prompt_logprobs = params.logprobs  # echoed tokens carry the same report as generated ones
        return TokenSampling(
            max_tokens=1,
            seed=(secrets.randbits(64) if params.seed is None else params.seed) % SEED_RANGE,
            min_tokens=params.min_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=max(0, params.top_k),
            min_p=params.min_p,
            typical_p=params.typical_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            logit_bias=tuple(sorted((int(token), float(value)) for token, value in bias.items())),
            allowed_token_ids=tuple(sorted(set(allowed))),
            bad_words=bad_word_ids(self.tokenizer, params.bad_words) if params.bad_words else (),
            stop_token_ids=tuple(dict.fromkeys((*own_stops, *params.stop_token_ids))),
            logprobs=-1 if params.logprobs is None else params.logprobs,
            prompt_logprobs=-1 if prompt_logprobs is None else prompt_logprobs,
            grammar=grammar,
        )


def _must_call(call: Call) -> bool:
    return call.tool_choice not in (None, "none", "auto")


def _for_sample(shared: TokenSampling, sample: int, max_tokens: int) -> TokenSampling:
    from msgspec.structs import replace

    return replace(
        shared,
        seed=(shared.seed + sample) % SEED_RANGE,
        max_tokens=max_tokens,
        prompt_logprobs=shared.prompt_logprobs if sample == 0 else -1,
    )
