"""Tokenizers from model folders (tokenizer.json and its neighbours), against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ModelRefused
from penstock.text.bad_words import bad_word_ids
from penstock.text.tokenizer import Tokenizer

TEXT = st.text(st.one_of(st.sampled_from("ab cd'12 \n😀é中<|>"), st.characters(codec="utf-8")), max_size=40)


@pytest.fixture(scope="session")
def folder(
    byte_bpe: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Writes a model folder; `frame` goes before every text, keyword arguments into tokenizer_config.json."""
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    def make(
        kind: str = "byte-level",
        frame: list[str] | None = None,
        files: dict[str, Any] | None = None,
        **config: Any,
    ) -> Path:
        entries, merges = byte_bpe
        path = tmp_path_factory.mktemp("folder")
        if kind == "byte-level":
            backend = Backend(
                models.BPE({e: i for i, e in enumerate(entries)}, [tuple(m.split(" ")) for m in merges])
            )
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = decoders.ByteLevel()
        else:
            pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b", "\u2581a", "ab"]
            model = models.BPE({p: i for i, p in enumerate(pieces)}, [("\u2581", "a"), ("a", "b")],
                               unk_token="<unk>", fuse_unk=True, byte_fallback=True)  # fmt: skip
            backend = Backend(model)
            backend.normalizer = normalizers.Sequence(
                [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
            )
            steps = [
                decoders.Replace("\u2581", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
            backend.decoder = decoders.Sequence(steps)
        names = ["<s>", "</s>", "<|im_end|>"]
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
        if frame:
            ids = [(name, backend.token_to_id(name)) for name in frame]
            backend.post_processor = processors.TemplateProcessing(single=[*frame, "$A"], special_tokens=ids)
        backend.save(str(path / "tokenizer.json"))
        base = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
        for name, value in {"tokenizer_config.json": base | config, **(files or {})}.items():
            (path / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return make


@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("frame", [[], ["<s>"]])
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_folders_as_transformers(
    folder: Callable[..., Path], kind: str, frame: list[str], config: dict[str, bool]
) -> None:
    """Red if a model folder is tokenized differently than transformers does, BOS and EOS included."""
    from transformers import AutoTokenizer

    path = folder(kind, frame, **config)
    ours, reference = Tokenizer.load(path), AutoTokenizer.from_pretrained(str(path))
    assert ours.add_bos == bool(frame)
    assert ours.vocab_size == len(reference)

    @given(text=TEXT)
    def check(text: str) -> None:
        ids = ours.encode(text, add_special=True)
        assert ids == reference.encode(text)
        if "\u2581" not in text:
            assert ours.decode(ids, skip_special=False) == reference.decode(ids, skip_special_tokens=False)

    check()


def test_special_and_end_tokens(folder: Callable[..., Path]) -> None:
    """Red if generation_config's list of ends, or an added token that ends turns, is not seen."""
    path = folder(files={"generation_config.json": {"eos_token_id": [601, 5]}})
    tokenizer = Tokenizer.load(path)
    ids = {text: tokenizer.token_id(text) for text in ("<s>", "</s>", "<|im_end|>", "<think>")}
    assert tokenizer.bos_id == ids["<s>"]
    assert tokenizer.eos_ids == tuple(dict.fromkeys([ids["</s>"], 601, 5, ids["<|im_end|>"]]))
    assert tokenizer.special_ids == {ids["<s>"], ids["</s>"], ids["<|im_end|>"]}
    assert tokenizer.decode([ids["<think>"], ids["</s>"]]) == "<think>"


def test_templates_are_found_in_every_place(folder: Callable[..., Path]) -> None:
    """Red if a newer place of the chat template loses to an older one, or named templates are dropped."""
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "T"}]
    tokenizer = Tokenizer.load(folder(chat_template=named))
    assert tokenizer.chat_template == "A" and tokenizer.chat_templates["tool_use"] == "T"
    path = folder(chat_template="old", files={"chat_template.jinja": "new"})
    assert Tokenizer.load(path).chat_template == "new"
    assert Tokenizer.load(folder()).chat_template is None


def test_broken_folders_are_refused(folder: Callable[..., Path], tmp_path: Path) -> None:
    """Red if a folder without, or with a damaged or unknown tokenizer fails later and less clearly."""
    with pytest.raises(ModelRefused, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelRefused, match="fetch the file again"):
        Tokenizer.load(tmp_path)
    state = json.loads((folder() / "tokenizer.json").read_text())
    state["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ModelRefused, match="WordPiece"):
        Tokenizer.load(tmp_path)


def test_digest_tells_tokenizers_apart(folder: Callable[..., Path]) -> None:
    """Red if two tokenizers that give different ids share cached KV."""
    assert Tokenizer.load(folder()).digest == Tokenizer.load(folder()).digest
    assert Tokenizer.load(folder()).digest != Tokenizer.load(folder("sentencepiece")).digest
    assert Tokenizer.load(folder()).digest != Tokenizer.load(folder(frame=["<s>"])).digest


def test_bad_words_with_and_without_a_space(folder: Callable[..., Path], smollm: Tokenizer) -> None:
    """Red if a word is banned only at the beginning of a text, or only inside of it."""
    for tokenizer in (smollm, Tokenizer.load(folder("sentencepiece"))):
        found = bad_word_ids(tokenizer, ["ab", " ab", "ab"])
        assert {b"".join(tokenizer.token_bytes(i) for i in ids) for ids in found} == {b"ab", b" ab"}
        assert len(found) == 2


def test_bad_words_as_vllm_bans_them(smollm: Tokenizer) -> None:
    """Red if the plain and the spaced form of a one-token word are not both banned."""
    plain, spaced = smollm.encode("cat"), smollm.encode(" cat")
    assert len(plain) == len(spaced) == 1
    assert bad_word_ids(smollm, ["cat"]) == (tuple(plain), tuple(spaced))
