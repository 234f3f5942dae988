"""The stored oracle itself: its shape, and that it is what transformers says today."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.oracle import load_greedy, read_greedy, tokens_of


def shared_prefix(a: np.ndarray, b: np.ndarray) -> int:
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size


def test_fixture_covers_what_parity_needs():
    """Red if the fixture is cut down: fewer prompts, no long ones, nothing shared, undecidable steps."""
    cases = load_greedy()
    lengths = [len(prompt) for prompt, _, _ in cases]
    assert len(cases) == 100 and min(lengths) == 1 and max(lengths) == 1500
    assert {15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513} <= set(lengths)
    assert all(len(output) == 64 for _, output, _ in cases)
    assert min(margin for _, _, margin in cases) >= 2e-4
    # With an earlier prompt or its output, a block of 16 tokens at least.
    known = [np.concatenate([prompt, output]) for prompt, output, _ in cases]
    sharing = sum(
        any(shared_prefix(known[i], prompt) >= 16 for i in range(j)) for j, (prompt, _, _) in enumerate(cases)
    )
    assert sharing >= 40


def test_equal_prompts_have_equal_outputs():
    """Red if records were mixed up when the fixture was written."""
    outputs: dict[bytes, bytes] = {}
    for prompt, output, _ in load_greedy():
        assert outputs.setdefault(prompt.tobytes(), output.tobytes()) == output.tobytes()


@pytest.mark.slow
def test_transformers_still_says_so(smollm2_path, tmp_path):
    """Red if the file of weights or transformers' reading of it changed: then make the fixture anew."""
    document = read_greedy()
    assert hashlib.sha256(smollm2_path.read_bytes()).hexdigest() == document["model_sha256"]
    script = (
        "import sys, json; from pathlib import Path; import numpy as np; sys.path.insert(0, sys.argv[1])\n"
        "from make_greedy_fixture import Oracle\n"
        "oracle = Oracle(Path(sys.argv[2]))\n"
        "prompts = [np.array(p, np.int32) for p in json.loads(sys.argv[3])]\n"
        "print(json.dumps([oracle.greedy(p)[0].tolist() for p in prompts]))\n"
    )
    # A process of its own: torch and the float32 weights are gone afterwards.
    some = sorted(document["prompts"], key=lambda p: len(p["prompt"]))[::30]
    prompts = [tokens_of(p["prompt"]).tolist() for p in some]
    run = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(smollm2_path), str(prompts)],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(run.stdout.splitlines()[-1]) == [tokens_of(p["output"]).tolist() for p in some]
