"""From an engine's token deltas to the events of one choice.

Invariants: cutting the same tokens into other deltas changes how events are cut, never the joined text,
token ids, logprobs or the finish; the tokens of a choice end with the one that completed a stop
string, and everything after it is ignored; exactly one Finish, as the last event.

The text of the token that ended the choice (end of sequence, stop token) is left out, unless
`include_stop_str_in_output` asks for it; its id and logprob are there, because it counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from penstock.call import Event, Finish, PromptEcho, SamplingParams, TextDelta, TokenLogprob, TopLogprob
from penstock.text.detokenizer import Detokenizer
from penstock.text.stop import StopScanner
from penstock.text.tokenizer import Tokenizer

TopPairs = Sequence[tuple[int, float]]  # (token id, natural-log probability), best first


class StopHit(Struct, frozen=True):
    """A stop string ended the choice: abort the request with `keep` generated tokens counting."""

    keep: int
    stop: str


class ChoiceAssembler:
    """One choice. `index` is Event.index. `keep`: special ids that are text to whoever parses it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        index: int,
        keep: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._index = index
        self._detokenizer = Detokenizer(tokenizer, sampling.skip_special_tokens, continuation=True, keep=keep)
        self._scanner = StopScanner(sampling.stop, sampling.include_stop_str_in_output)
        self.num_tokens = 0
        self.finished = False

    def feed(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[tuple[float, TopPairs]] | None = None,
        finish: str | None = None,
        stop_token: int | None = None,
    ) -> tuple[list[Event], StopHit | None]:
        """Events for `tokens`, which the engine has added to this choice.

        `logprobs`: one (chosen, top) per token, natural log. `finish`: the engine's reason ("stop", "length";
        "abort" and "error" flush the text but make no Finish). `stop_token`: the last of `tokens`, if
        one ended the choice. A StopHit asks the caller to abort the request.
        """
        if self.finished:
            return [], None
        text: list[str] = []
        stop: str | None = None
        used = 0
        for token in tokens:
            used += 1
            ends = finish == "stop" and stop_token is not None and used == len(tokens)
            piece, stop = self._text_of(token, ends)
            text.append(piece)
            if stop is not None:
                break
        if finish is not None and stop is None:
            piece, stop = self._rest()
            text.append(piece)
        events: list[Event] = []
        joined = "".join(text)
        if used or joined:
            entries = None if logprobs is None else self._entries(tokens, logprobs)[:used]
            events.append(TextDelta(self._index, joined, tuple(tokens[:used]), entries))
        self.finished = stop is not None or finish is not None
        if stop is not None:
            events.append(Finish(self._index, "stop", stop))
            return events, StopHit(self.num_tokens, stop)
        if finish == "stop":
            events.append(Finish(self._index, "stop", self._named(stop_token)))
        elif finish == "length":
            events.append(Finish(self._index, "length"))
        return events, None

    def _text_of(self, token: int, ends: bool) -> tuple[str, str | None]:
        self.num_tokens += 1
        if ends and not self._sampling.include_stop_str_in_output:
            return "", None
        piece = self._detokenizer.feed(token)
        if ends or self.num_tokens <= self._sampling.min_tokens:
            return self._scanner.flush() + piece, None
        return self._scanner.feed(piece)

    def _rest(self) -> tuple[str, str | None]:
        """What was held back, at the end."""
        piece, stop = self._scanner.feed(self._detokenizer.flush())
        return (piece, stop) if stop is not None else (piece + self._scanner.flush(), None)

    def _named(self, stop_token: int | None) -> int | None:
        """The stop token as the caller should see it: None for the model's own end of sequence."""
        own = stop_token in self._tokenizer.eos_ids and stop_token not in self._sampling.stop_token_ids
        return None if own else stop_token

    def _entries(
        self, tokens: Sequence[int], logprobs: Sequence[tuple[float, TopPairs]]
    ) -> tuple[TokenLogprob, ...]:
        pairs = zip(tokens, logprobs, strict=True)
        return tuple(token_logprob(self._tokenizer, token, *logprob) for token, logprob in pairs)


def token_logprob(tokenizer: Tokenizer, token: int, logprob: float | None, top: TopPairs) -> TokenLogprob:
    """One entry of a logprobs list, with the exact bytes of each token."""
    alternatives = [TopLogprob(_shown(tokenizer, i), float(p), tokenizer.piece(i), int(i)) for i, p in top]
    chosen = None if logprob is None else float(logprob)
    return TokenLogprob(
        _shown(tokenizer, token), chosen, tokenizer.piece(token), int(token), tuple(alternatives)
    )


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """token_text, "" for the padding rows of a model's head, which no vocabulary entry stands behind."""
    return tokenizer.token_text(token) if token < tokenizer.vocab_size else ""


def prompt_echo(
    tokenizer: Tokenizer,
    index: int,
    tokens: Sequence[int],
    logprobs: Sequence[tuple[float, TopPairs]] | None,
    skip_special: bool = True,
) -> PromptEcho:
    """The prompt as an event. `logprobs` are those of tokens[1:]: nothing predicts the first token."""
    entries = None
    if logprobs is not None:
        rest = zip(tokens[1:], logprobs, strict=True)
        first = [token_logprob(tokenizer, tokens[0], None, ())] if tokens else []
        entries = (*first, *(token_logprob(tokenizer, token, *pair) for token, pair in rest))
    return PromptEcho(index, tokenizer.decode(tokens, skip_special), tuple(int(t) for t in tokens), entries)
