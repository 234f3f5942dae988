"""What all tests share: one BLAS thread per worker, hypothesis profiles, the real model.

Profiles: `dev` draws new examples on every run, `ci` (chosen when CI is set) is deterministic,
`nightly` looks longer. `pytest --hypothesis-profile NAME` overrides.
"""

from __future__ import annotations

import os
from pathlib import Path

# Before numpy is imported anywhere: a worker that takes every core starves its neighbour.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import pytest
from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", **_COMMON)
settings.register_profile("ci", derandomize=True, database=None, print_blob=True, **_COMMON)
settings.register_profile("nightly", max_examples=1000, **_COMMON)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the model store (`make test` pulls it first)."""
    from penstock.errors import PenstockError
    from penstock.models import sources

    try:
        return sources.resolve("smollm2")
    except PenstockError as error:
        pytest.skip(f"needs the real model: {error}; run `penstock pull smollm2`")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2 in the model store (`make test` pulls it first)."""
    from penstock.errors import PenstockError
    from penstock.models import sources

    try:
        return sources.resolve("minilm")
    except PenstockError as error:
        pytest.skip(f"needs the real model: {error}; run `penstock pull minilm`")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public traces and data sets beside the checkout."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs ../shared/data beside the checkout (public traces)")
    return path
