"""What quantizing costs a model that has learnt something: perplexity against its float source."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import make_tiny

from penstock.bench import quality
from penstock.bench.passages import passages
from penstock.cli.quantize import quantize
from penstock.models.load import inspect_model, load_model
from penstock.text.tokenizer import Tokenizer

STEPS, ROWS, LENGTH, RATE = 600, 8, 64, 1e-2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small llama trained for some seconds on documentation strings other than those it is tested on."""
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_hidden_layers": 2}
    folder = make_tiny("llama", tmp_path_factory.mktemp("trained") / "m", **sizes)
    held = set(passages(200))
    text = "\n\n".join(passage for passage in passages(500) if passage not in held)
    ids = torch.tensor(Tokenizer.load(folder).encode(text[:300_000]))
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        starts = torch.randint(len(ids) - LENGTH, (ROWS,))
        rows = torch.stack([ids[start : start + LENGTH] for start in starts])
        optimizer.zero_grad()
        model(rows, labels=rows).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "symmetric", "calibrated", "most_kl"),
    [
        ("int8", False, False, 1e-4),
        ("int8", False, True, 1e-4),
        ("int4", False, False, 0.006),
        ("int4", True, False, 0.012),
        ("int4", False, True, 0.006),
    ],
)
def test_perplexity_of_a_trained_model(
    trained: Path, weights: str, symmetric: bool, calibrated: bool, most_kl: float, tmp_path: Path
) -> None:
    """Red if rounding, the search of the clipping or smoothing costs more than the limits promised."""
    text = tmp_path / "text.txt"
    held = set(passages(200))  # those measured below are among them
    text.write_text("\n\n".join([passage for passage in passages(500) if passage not in held][::5]))
    quantize(
        str(trained), tmp_path / "q", weights, None, symmetric, "group", text if calibrated else None, 0.5  # type: ignore[arg-type]
    )  # fmt: skip
    models = [load_model(inspect_model(path), "reference") for path in (trained, tmp_path / "q")]
    found = quality.compare(models[0], models[1], quality.read_passages(trained, 40)[1])
    assert found.reference_perplexity < 24  # more than the letters' frequencies
    assert found.kl_mean < most_kl, found  # about twice what was measured
    assert found.perplexity / found.reference_perplexity - 1 < (0.01 if weights == "int8" else 0.04), found
