"""Preparing calls: ids, seeds, limits, cache policy."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from penstock.call import CachePolicy, Call, Message, ResponseFormat, SamplingParams, TextPart
from penstock.engine.messages import unpack_tokens
from penstock.engine.prepare import Preparer
from penstock.errors import ContextOverflow, InvalidRequest
from penstock.text.tokenizer import Tokenizer
from support.tiny_models import CHAT_TEMPLATE, VOCAB_SIZE, write_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def preparer(folder: Path, *, max_context: int = 1000, prefix_cache: bool = True) -> Preparer:
    return Preparer(
        Tokenizer.load(folder),
        model="tiny",
        max_context=max_context,
        vocab_size=VOCAB_SIZE,
        prefix_cache=prefix_cache,
    )


def completion(*prompts: str | tuple[int, ...], **fields: object) -> Call:
    return Call(kind="completion", model="tiny", prompts=prompts or ("hello",), **fields)  # type: ignore[arg-type]


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", (TextPart(text),)),)


def test_chat_tokens_equal_transformers(folder: Path) -> None:
    """Red if the template's text is tokenized otherwise than transformers does, a second BOS included."""
    transformers = pytest.importorskip("transformers")
    settings = msgspec.json.decode((folder / "tokenizer_config.json").read_bytes())
    settings["chat_template"] = "{{ bos_token }}" + CHAT_TEMPLATE
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(settings))
    oracle = transformers.AutoTokenizer.from_pretrained(folder)
    call = Call(kind="chat", model="tiny", messages=user("What is tea?"))
    prompt = preparer(folder).prepare(call, "k")[0]
    expected = oracle.apply_chat_template(
        [{"role": "user", "content": "What is tea?"}], add_generation_prompt=True, tokenize=True
    )
    expected = expected["input_ids"] if hasattr(expected, "keys") else expected
    assert list(prompt.tokens) == list(expected)
    assert unpack_tokens(prompt.submits[0].tokens).tolist() == list(prompt.tokens)


def test_samples_get_consecutive_seeds_and_one_leader(folder: Path) -> None:
    """Red if choices of a seeded call stop being those of calls with seeds s, s+1, …, or siblings
    lose their leader."""
    call = completion("a", "b", sampling=SamplingParams(n=3, seed=2**64 - 2))
    prompts = preparer(folder).prepare(call, "k")
    for prompt in prompts:
        assert [s.sampling.seed for s in prompt.submits] == [2**64 - 2, 2**64 - 1, 0]
        assert [s.leader for s in prompt.submits] == [None, prompt.submits[0].id, prompt.submits[0].id]
    assert [s.id for p in prompts for s in p.submits] == [f"k/{i}" for i in range(6)]
    negative = preparer(folder).prepare(completion(sampling=SamplingParams(seed=-1)), "k")
    assert negative[0].submits[0].sampling.seed == 2**64 - 1


def test_calls_without_a_seed_differ(folder: Path) -> None:
    """Red if unseeded calls all draw the same tokens."""
    seeds = {preparer(folder).prepare(completion(), "k")[0].submits[0].sampling.seed for _ in range(8)}
    assert len(seeds) == 8


def test_end_of_sequence_ids_stop_unless_ignored(folder: Path) -> None:
    """Red if the model's own end is not among the stops, or ignore_eos also drops the caller's."""
    made = preparer(folder)
    eos = made.tokenizer.eos_ids
    assert eos
    plain = made.prepare(completion(sampling=SamplingParams(stop_token_ids=(7,))), "k")
    ignoring = made.prepare(completion(sampling=SamplingParams(stop_token_ids=(7,), ignore_eos=True)), "k")
    assert set(plain[0].submits[0].sampling.stop_token_ids) == {*eos, 7}
    assert ignoring[0].submits[0].sampling.stop_token_ids == (7,)


def test_max_tokens_fits_the_context_where_the_api_has_it_so(folder: Path) -> None:
    """Red if an API whose clients ask for more than a context has gets a 400, or others get less unasked."""
    params = SamplingParams(max_tokens=1000)
    call = completion((1,) * 60, sampling=params, fit_context=True)
    prompt = preparer(folder, max_context=100).prepare(call, "k")[0]
    assert prompt.submits[0].sampling.max_tokens == 40
    with pytest.raises(ContextOverflow):
        preparer(folder, max_context=100).prepare(completion((1,) * 60, sampling=params), "k")
    with pytest.raises(ContextOverflow):
        preparer(folder, max_context=60).prepare(call, "k")


def test_a_begun_answer_is_refused(folder: Path) -> None:
    """Red if the beginning of an answer is rendered as a finished turn."""
    call = Call(kind="chat", model="tiny", messages=user("x"), continue_final=True)
    with pytest.raises(InvalidRequest, match="prefill"):
        preparer(folder).prepare(call, "k")


def test_a_count_is_that_of_the_prompt(folder: Path) -> None:
    """Red if counting renders a conversation otherwise than answering it: other arguments, or a nonce."""
    settings = msgspec.json.decode((folder / "tokenizer_config.json").read_bytes())
    settings["chat_template"] = (
        CHAT_TEMPLATE + "{% if enable_thinking is false %}no thinking at all{% endif %}"
    )
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(settings))
    system = Message("system", (TextPart("x-anthropic-billing-header: cch=1;"), TextPart("be brief")))
    messages, made = (system, *user("x")), preparer(folder)
    for args in ({}, {"enable_thinking": False}):
        call = Call(kind="chat", model="tiny", messages=messages, template_args=args)
        assert made.chat_tokens(messages, (), True, args) == list(made.prepare(call, "k")[0].tokens)
    assert made.chat_tokens(messages) == made.chat_tokens((Message("system", system.parts[1:]), *user("x")))
    assert made.chat_tokens(messages) != made.chat_tokens(messages, (), True, {"enable_thinking": False})


def test_max_tokens_defaults_to_the_rest_of_the_context(folder: Path) -> None:
    """Red if an open-ended call is cut early or asks for more than fits."""
    prompt = preparer(folder, max_context=100).prepare(completion((1,) * 60), "k")[0]
    assert prompt.submits[0].sampling.max_tokens == 40
    with pytest.raises(ContextOverflow, match=r"100 tokens.*100"):
        preparer(folder, max_context=100).prepare(completion((1,) * 100), "k")


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_cache_policy(folder: Path, prefix_cache: bool, read: bool, store: bool, n: int) -> None:
    """Red if a call that may not use the cache reads or stores shared blocks, or if its siblings
    lose their common prefill."""
    call = completion(cache=CachePolicy(read=read, store=store), sampling=SamplingParams(n=n))
    first = preparer(folder, prefix_cache=prefix_cache).prepare(call, "k")[0].submits[0]
    again = preparer(folder, prefix_cache=prefix_cache).prepare(call, "k2")[0].submits[0]
    if prefix_cache and read and store:
        assert (first.cache_salt, first.cache_read, first.cache_store) == ("", True, True)
    elif n > 1:
        assert first.cache_salt.startswith("\x00private:")
        assert first.cache_salt != again.cache_salt
        assert (first.cache_read, first.cache_store) == (True, True)
    else:
        assert first.cache_salt == ""
        assert (first.cache_read, first.cache_store) == (read and prefix_cache, store and prefix_cache)


def test_salts_of_tenants_never_meet(folder: Path) -> None:
    """Red if two tenants can share blocks, by whatever salt one of them sends."""
    made = preparer(folder)

    def salt(tenant: str, own: str) -> str:
        call = completion(tenant=tenant, cache=CachePolicy(salt=own))
        return made.prepare(call, "k")[0].submits[0].cache_salt

    pairs = [("", ""), ("a", ""), ("", "a"), ("a", "b"), ("a:b", ""), ("", "a:b"), ("", "1:a:b")]
    pairs += [("", "\x00private:k/0"), ("a", "\x00private:k/0")]
    salts = [salt(*pair) for pair in pairs]
    assert len(set(salts)) == len(salts)
    assert not any(value.startswith("\x00") for value in salts)


def test_prompt_logprobs_only_on_the_leader(folder: Path) -> None:
    """Red if every sibling computes its prompt anew because of a report that one of them makes."""
    sampling = SamplingParams(n=3, prompt_logprobs=2)
    submits = preparer(folder).prepare(completion(sampling=sampling), "k")[0].submits
    assert [s.sampling.prompt_logprobs for s in submits] == [2, -1, -1]


def test_echo_with_logprobs_reports_on_the_prompt(folder: Path) -> None:
    """Red if echoed tokens come without the logprobs that the completions API gives them."""
    call = completion(echo=True, sampling=SamplingParams(logprobs=1))
    assert preparer(folder).prepare(call, "k")[0].submits[0].sampling.prompt_logprobs == 1


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (completion((VOCAB_SIZE,)), "prompt"),
        (completion((-1,)), "prompt"),
        (completion(()), "no tokens"),
        (completion(sampling=SamplingParams(stop_token_ids=(VOCAB_SIZE,))), "stop_token_ids"),
        (completion(sampling=SamplingParams(allowed_token_ids=(VOCAB_SIZE,))), "allowed_token_ids"),
        (completion(sampling=SamplingParams(logit_bias={-1: 1.0})), "logit_bias"),
        (completion(sampling=SamplingParams(n=0)), "n"),
        (completion(*["x"] * 1025), "1025"),
        (Call(kind="completion", model="tiny"), "prompt"),
        (Call(kind="chat", model="tiny"), "messages"),
        (Call(kind="chat", model="tiny", messages=user("x"), template_args={"messages": 1}), "template_args"),
        (completion(sampling=SamplingParams(regex="a", choice=("b",))), "one form only"),
        (completion(sampling=SamplingParams(regex="a", min_tokens=3, max_tokens=9)), "min_tokens"),
        (completion(sampling=SamplingParams(json_schema="{")), "json_schema: not JSON"),
        (completion(sampling=SamplingParams(json_schema=[1])), "json_schema"),  # type: ignore[arg-type]
        (completion(sampling=SamplingParams(choice=())), "choice"),
        (
            completion(
                response_format=ResponseFormat(kind="json_schema", schema={}),
                sampling=SamplingParams(regex="a"),
            ),
            "response_format",
        ),
        (completion(tool_choice="required"), "tool_choice"),
    ],
)
def test_bad_calls_name_the_field(folder: Path, call: Call, names: str) -> None:
    """Red if a call that can't be honoured is accepted, crashes, or is refused without saying why."""
    with pytest.raises(InvalidRequest, match=names):
        preparer(folder).prepare(call, "k")


def test_a_prompt_over_the_context_names_the_field_of_its_format(folder: Path) -> None:
    """Red if a chat client is told of a field `prompt` that it never sent."""
    for size in (60, 6000):  # found after tokenizing, and before
        for call, param in (
            (Call(kind="chat", model="tiny", messages=user("x" * size)), "messages"),
            (completion("x" * size), "prompt"),
        ):
            with pytest.raises(ContextOverflow) as caught:
                preparer(folder, max_context=50).prepare(call, "k")
            assert caught.value.param == param
