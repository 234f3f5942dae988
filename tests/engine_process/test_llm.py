"""The Python API over a tiny real model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from penstock import LLM, AsyncLLM, SamplingParams
from penstock.call import Done, Message, TextDelta, TextPart
from penstock.errors import ConfigError, ContextOverflow, EngineUnavailable, InvalidRequest, NotFound
from penstock.wire.fold import Fold
from support.tiny_models import make_tiny, write_tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
SMALL = {"kv_bytes": 4 << 20}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama"))


@pytest.fixture(scope="module")
def llm(model: str) -> Iterator[LLM]:
    with LLM(model, **SMALL) as llm:
        yield llm


def test_every_form_of_prompt_gives_one_result_each_in_order(llm: LLM) -> None:
    """Red if a form of prompt is taken for another, or results come in order of completion."""
    ids = llm._llm._started()._preparer.tokenizer.encode("tea", add_special=True)  # type: ignore[union-attr]
    alone = llm.generate("tea", GREEDY)
    assert len(alone) == 1
    assert [r.token_ids for r in llm.generate(ids, GREEDY)] == [alone[0].token_ids]
    assert [r.token_ids for r in llm.generate([ids], GREEDY)] == [alone[0].token_ids]
    params = [
        GREEDY,
        SamplingParams(temperature=0.0, max_tokens=1),
        SamplingParams(temperature=0.0, max_tokens=30),
    ]
    mixed = llm.generate(["tea", ids, "tea"], params)
    assert [len(r.token_ids) <= most for r, most in zip(mixed, (12, 1, 30), strict=True)] == [True] * 3
    assert mixed[1].token_ids == alone[0].token_ids[:1]
    assert llm.generate([], GREEDY) == []
    result = alone[0]
    assert result.finish_reason == "length"
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (len(ids), 12)
    assert result.choices[0].text == result.text
    assert result.timings.total_s >= result.timings.ttft_s > 0


def test_a_batch_wider_than_the_queue_is_not_refused(model: str) -> None:
    """Red if a long list of prompts trips the bounded queue, or tokens depend on the batch."""
    with LLM(model, max_running=4, max_queue=6, **SMALL) as llm:
        prompts = [[i % 250, (7 * i) % 250, 3] for i in range(60)]
        results = llm.generate(prompts, GREEDY)
        assert len(results) == 60
        for i in (0, 31, 59):
            assert llm.generate(prompts[i], GREEDY)[0].token_ids == results[i].token_ids
        twins = llm.generate(prompts[:10], SamplingParams(n=4, temperature=0.0, max_tokens=5))
        assert [len(r.choices) for r in twins] == [4] * 10


def test_choices_of_a_seeded_call_are_those_of_the_next_seeds(llm: LLM) -> None:
    """Red if sample i of seed s differs from a call with seed s + i (documented in prepare)."""
    many = llm.generate("tea", SamplingParams(n=3, seed=11, max_tokens=10, ignore_eos=True))[0]
    for i, choice in enumerate(many.choices):
        one = llm.generate("tea", SamplingParams(seed=11 + i, max_tokens=10, ignore_eos=True))[0]
        assert one.token_ids == choice.token_ids
    assert len({choice.token_ids for choice in many.choices}) == 3


def test_logprobs_and_prompt_logprobs_with_a_warm_prefix_cache(llm: LLM) -> None:
    """Red if the report on a prompt is lost, cut, or different once its blocks are cached."""
    prompt = [i % 200 for i in range(70)]
    params = SamplingParams(
        temperature=0.0, max_tokens=3, logprobs=2, prompt_logprobs=1, n=2, ignore_eos=True
    )
    cold = llm.generate(prompt, params)[0]
    llm.generate(prompt, GREEDY)
    warm = llm.generate(prompt, params)[0]
    assert cold.prompt_logprobs is not None
    assert len(cold.prompt_logprobs) == 70
    assert cold.prompt_logprobs[0].logprob is None
    assert [entry.token_id for entry in cold.prompt_logprobs] == prompt
    assert warm.prompt_logprobs is not None
    values = [[entry.logprob for entry in r.prompt_logprobs[1:]] for r in (cold, warm)]  # type: ignore[index]
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    assert cold.logprobs is not None
    assert [entry.token_id for entry in cold.logprobs] == list(cold.token_ids)
    assert all(len(entry.top) == 2 for entry in cold.logprobs)
    assert cold.choices[1].token_ids == cold.token_ids


def test_cached_tokens_are_counted(llm: LLM) -> None:
    """Red if a repeated prompt is computed again, or its reuse not reported."""
    prompt = [(3 * i) % 240 for i in range(100)]
    assert llm.generate(prompt, GREEDY)[0].usage.cached_tokens == 0
    assert llm.generate(prompt, GREEDY)[0].usage.cached_tokens >= 80


def test_chat_is_the_templates_text(llm: LLM) -> None:
    """Red if chat and the rendered template part ways, or a list of conversations is taken for one."""
    text = "<|im_start|>user\ntea?<|im_end|>\n<|im_start|>assistant\n"
    expected = llm.generate(text, GREEDY)[0].token_ids
    conversation = [{"role": "user", "content": "tea?"}]
    assert [r.token_ids for r in llm.chat(conversation, GREEDY)] == [expected]
    assert llm.chat([Message("user", (TextPart("tea?"),))], GREEDY)[0].token_ids == expected
    assert [r.token_ids for r in llm.chat([conversation, conversation], GREEDY)] == [expected] * 2
    with pytest.raises(InvalidRequest, match=r"messages\[0\]"):
        llm.chat([{"role": "wizard", "content": "x"}], GREEDY)


def test_errors_are_raised_and_leave_the_engine_usable(llm: LLM) -> None:
    """Red if one bad prompt of a batch hangs or is silently dropped, or its neighbours run on."""
    with pytest.raises(ContextOverflow, match="512"):
        llm.generate([[1, 2, 3], [1] * 600, [4]], SamplingParams(max_tokens=400))
    with pytest.raises(InvalidRequest, match="params"):
        llm.generate(["a", "b"], [GREEDY])
    assert llm.generate("tea", GREEDY)[0].usage.completion_tokens == 12
    assert llm._llm._started()._open == {}


@pytest.mark.parametrize("prompt", [5, None, b"abc", {"a": 1}, ["a", 3], [1, "a"], [[1.5]], [1, [2]]])
def test_what_is_no_prompt_is_refused(llm: LLM, prompt: Any) -> None:
    """Red if a value that is no prompt ends in a bare TypeError, or 1.5 and bytes are read as token ids."""
    with pytest.raises(InvalidRequest, match="prompt"):
        llm.generate(prompt, GREEDY)


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"temperature": 1}, "SamplingParams"),
        (SamplingParams(stop=5), "stop"),  # type: ignore[arg-type]
        (SamplingParams(max_tokens="5"), "max_tokens"),  # type: ignore[arg-type]
    ],
)
def test_params_of_a_wrong_type_are_refused(llm: LLM, params: Any, names: str) -> None:
    """Red if a mistake in the parameters is a TypeError from deep inside that names no field."""
    with pytest.raises(InvalidRequest, match=names):
        llm.generate("tea", params)


def test_closed_and_misconfigured(model: str, tmp_path: Path) -> None:
    """Red if a mistake in the constructor hangs, or a closed LLM blocks instead of raising."""
    with pytest.raises(ConfigError, match="token_budget"):
        LLM(model, token_budgett=3)
    with pytest.raises(NotFound):
        LLM(str(tmp_path / "nothing.gguf"))
    write_tokenizer(tmp_path)
    llm = LLM(model, **SMALL)
    llm.close()
    llm.close()
    with pytest.raises(EngineUnavailable):
        llm.generate("x")


async def test_async_stream_can_be_left(model: str) -> None:
    """Red if AsyncLLM's events do not add up to LLM's result, or leaving the loop keeps the slot."""
    async with AsyncLLM(model, **SMALL) as llm:
        assert llm.ready.max_context == 512
        events = [event async for event in llm.generate("tea", GREEDY)]
        assert isinstance(events[-1], Done)
        assert len(Fold(events).choices()[0].token_ids) == 12
        async with aclosing(llm.chat([{"role": "user", "content": "x"}], GREEDY)) as stream:  # type: ignore[type-var]
            async for event in stream:
                assert isinstance(event, TextDelta)
                break
        assert llm._started()._open == {}


def test_bar_on_a_terminal_only(llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    """Red if a long batch writes a bar into a pipe, on stdout, or with progress=False."""
    llm.generate(["tea"] * 12, GREEDY)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    llm.generate(["tea"] * 12, GREEDY, progress=False)
    quiet = capsys.readouterr()
    assert (quiet.out, quiet.err) == ("", "")
    llm.generate(["tea"] * 12, GREEDY)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "generating" in shown.err


def run_script(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(code)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=env, timeout=120, check=False
    )


def test_script_without_a_main_guard(model: str, tmp_path: Path) -> None:
    """Red if the engine is spawned by importing the script again, or a forgotten close() keeps the
    interpreter from ending."""
    code = (
        "print('once')\n"
        "from penstock import LLM, SamplingParams\n"
        f"llm = LLM({model!r}, kv_bytes=4 << 20)\n"
        "print(len(llm.generate('tea', SamplingParams(max_tokens=5, ignore_eos=True))[0].token_ids))\n"
    )
    done = run_script(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "once\n5\n"
    assert "Traceback" not in done.stderr


def test_ctrl_c_aborts_and_the_llm_goes_on(model: str, tmp_path: Path) -> None:
    """Red if Ctrl-C in a batch leaves its requests running, or breaks the LLM."""
    code = (
        "import os, signal, threading\n"
        "from penstock import LLM, SamplingParams\n"
        f"llm = LLM({model!r}, kv_bytes=4 << 20)\n"
        "def interrupt():\n"
        "    while not llm._llm._started()._open:\n"
        "        pass\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=interrupt).start()\n"
        "try:\n"
        "    llm.generate(['tea'] * 500, SamplingParams(max_tokens=400, ignore_eos=True))\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped')\n"
        "result = llm.generate('tea', SamplingParams(max_tokens=5, ignore_eos=True))[0]\n"
        "print(len(result.token_ids), len(llm._llm._started()._open))\n"
        "llm.close()\n"
    )
    done = run_script(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "stopped\n5 0\n"
