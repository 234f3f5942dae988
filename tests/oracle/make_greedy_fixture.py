"""Make `greedy_smollm2.json.gz`: what transformers generates greedily, the oracle of end-to-end parity.

    python tests/oracle/make_greedy_fixture.py --model SmolLM2-135M-Instruct.Q4_1.gguf [--threads 2]

100 prompts of 1 to 1500 tokens, cut from documentation that ships with Python, each continued by 64
tokens: float32 weights dequantized from the GGUF, eager attention, one prompt at a time, end of sequence
ignored. The lengths sit on and beside powers of two (block borders) and are log-uniform otherwise. The
kinds of prompts are what a prefix cache has to get right:

    plain      nothing shared on purpose
    family     one of six long prefixes, cut anywhere, then own text
    twin       equal to an earlier prompt
    cut        a strict prefix of an earlier prompt
    turn       an earlier prompt + its generated tokens + own text: the next turn of a conversation

A step whose two best logits lie closer than MIN_MARGIN cannot be decided in float32 (the order of
summation decides it), so a prompt with such a step is replaced by another of the same kind and length;
`replaced` counts them. Finished prompts are kept in `--partial`, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import importlib
import inspect
import json
import platform
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

NUM_PROMPTS = 100
NEW_TOKENS = 64
MAX_PROMPT = 1500
MIN_MARGIN = 2e-4
FAMILY_PREFIXES = (48, 128, 200, 512, 700, 1000)
MODULES = """
    argparse asyncio.tasks ast base64 bisect calendar collections configparser contextlib copy csv datetime
    decimal difflib doctest email.message enum fractions functools gettext gzip heapq html.parser imaplib
    inspect ipaddress json locale logging mailbox multiprocessing.pool numbers optparse os pathlib pickle
    pickletools platform plistlib pprint queue random re sched shelve shlex shutil smtplib socket statistics
    string subprocess tarfile tempfile textwrap threading timeit tokenize traceback turtle types typing
    unittest.case urllib.parse urllib.request uuid warnings weakref xml.dom.minidom zipfile
""".split()  # noqa: SIM905, a list of quoted names reads worse


@dataclass(frozen=True)
class Spec:
    """One prompt to make. `source` is the family's or the earlier prompt's number, -1 if none."""

    kind: str
    length: int
    source: int = -1


def corpus() -> str:
    """Docstrings of the modules above and of their public members, in a fixed order."""
    texts: list[str] = []
    for name in MODULES:
        module = importlib.import_module(name)
        texts.append(f"{name}\n\n{inspect.getdoc(module) or ''}")
        for member_name, member in sorted(vars(module).items()):
            if not member_name.startswith("_") and getattr(member, "__module__", None) == name:
                texts.append(f"{name}.{member_name}\n\n{inspect.getdoc(member) or ''}")
    return "\n\n".join(dict.fromkeys(texts))


def specs(rng: random.Random) -> list[Spec]:
    """The 100 prompts: kinds and lengths, in the order in which they are run and stored."""
    borders = [1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513]
    borders += [1023, 1024, 1025, 1499, 1500]
    plain = borders + [round(1500 ** rng.random()) for _ in range(50 - len(borders))]
    made = [Spec("plain", length) for length in plain]
    for number in range(36):
        family = number % len(FAMILY_PREFIXES)
        made.append(Spec("family", min(MAX_PROMPT, FAMILY_PREFIXES[family] + rng.randint(1, 220)), family))
    rng.shuffle(made)
    first = len(made)
    long_enough = [i for i in range(first) if made[i].length >= 64]
    short_enough = [i for i in range(first) if 16 <= made[i].length <= MAX_PROMPT - NEW_TOKENS - 200]
    for source in rng.sample(range(first), 3):
        made.append(Spec("twin", made[source].length, source))
    for source in rng.sample(long_enough, 5):
        made.append(Spec("cut", rng.randint(1, made[source].length - 1), source))
    for source in rng.sample(short_enough, 6):
        made.append(Spec("turn", made[source].length + NEW_TOKENS + rng.randint(1, 200), source))
    assert len(made) == NUM_PROMPTS and max(s.length for s in made) == MAX_PROMPT
    return made


def build_prompt(
    spec: Spec, index: int, attempt: int, text: np.ndarray, done: list[tuple[np.ndarray, np.ndarray, float]]
) -> np.ndarray:
    """int32[spec.length]. `attempt` > 0 gives another prompt of the same kind and length."""
    rng = random.Random(f"{index}/{attempt}")
    start = rng.randrange(len(text) - MAX_PROMPT)
    own = text[start : start + spec.length]
    if spec.kind == "family":
        # A family's prefix starts at a fixed place of the text; some members cut it early.
        base = text[1000 + 3000 * spec.source :][: FAMILY_PREFIXES[spec.source]]
        if rng.random() < 0.25:
            base = base[: rng.randint(len(base) // 2, len(base))]
        return np.concatenate([base, own])[: spec.length]
    if spec.kind == "turn":
        prompt, output, _ = done[spec.source]
        return np.concatenate([prompt, output, own])[: spec.length]
    if spec.kind in ("twin", "cut") and attempt == 0:
        return done[spec.source][0][: spec.length]
    return own


class Oracle:
    """transformers on the dequantized GGUF."""

    def __init__(self, path: Path) -> None:
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        assert {p.dtype for p in self.model.parameters()} == {torch.float32}
        # generate() fills unset fields from here, so "no end of sequence" must be said here too.
        self.model.generation_config = transformers.GenerationConfig(eos_token_id=None, pad_token_id=0)

    @torch.inference_mode()
    def greedy(self, prompt: np.ndarray) -> tuple[np.ndarray, float]:
        """(int32[64], the smallest distance of the two best logits over the 64 steps)."""
        ids = torch.tensor(prompt[None].astype(np.int64))
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = out.sequences[0, len(prompt) :].numpy().astype(np.int32)
        best = torch.cat(out.logits).topk(2, dim=-1)
        assert len(tokens) == NEW_TOKENS and (best.indices[:, 0].numpy() == tokens).all()
        return tokens, float((best.values[:, 0] - best.values[:, 1]).min())


def encode(tokens: np.ndarray) -> str:
    return base64.b64encode(tokens.astype("<u2").tobytes()).decode()


def decode(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<u2").astype(np.int32)


def run(oracle: Oracle, partial: Path) -> tuple[list[dict], int]:
    """All prompts in order; (records, number of replaced prompts)."""
    text = np.array(oracle.tokenizer(corpus(), add_special_tokens=False)["input_ids"], np.int32)
    assert text.max() < 2**16 and len(text) > 60_000, (text.max(), len(text))
    kept = [json.loads(line) for line in partial.read_text().splitlines()] if partial.exists() else []
    records: list[dict] = []
    done: list[tuple[np.ndarray, np.ndarray, float]] = []
    replaced = 0
    for index, spec in enumerate(specs(random.Random(20261121))):
        if index < len(kept):
            record = kept[index]
        else:
            for attempt in range(100):
                prompt = build_prompt(spec, index, attempt, text, done)
                output, margin = oracle.greedy(prompt)
                if margin >= MIN_MARGIN:
                    break
            else:
                raise SystemExit(f"prompt {index}: no attempt of 100 has a margin of {MIN_MARGIN} or more")
            record = {
                "kind": spec.kind,
                "attempts": attempt + 1,
                "prompt": encode(prompt),
                "output": encode(output),
                "min_margin": margin,
            }
            with partial.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{index:3d} {spec.kind:7s}{len(prompt):5d} tokens, margin {margin:.2e}", flush=True)
        done.append((decode(record["prompt"]), decode(record["output"]), record["min_margin"]))
        replaced += record["attempts"] - 1
        records.append(record)
    return records, replaced


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file of SmolLM2-135M-Instruct")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("greedy_smollm2.json.gz"))
    parser.add_argument("--partial", type=Path, default=Path("greedy_smollm2.partial.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records, replaced = run(Oracle(args.model), args.partial)
    document = {
        "model_file": args.model.name,
        "model_sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "min_margin": MIN_MARGIN,
        "replaced": replaced,
        "prompts": records,
    }
    # No file name and no time in the header: the same run gives the same bytes.
    args.out.write_bytes(gzip.compress(json.dumps(document).encode(), mtime=0))
    args.partial.unlink()


if __name__ == "__main__":
    main()
