"""Native encoders of every instruction set against the reference operations, over generated sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("penstock.kernels.cpu._native", reason="the native extension is not built")

from native_kernels import ISAS

from penstock.kernels.cpu import _native
from penstock.kernels.cpu.encoder import ACTIVATIONS, NativeEncoder
from penstock.kernels.cpu.weights import CpuWeights
from penstock.kernels.encoder import EncoderLayer, EncoderProgram, TextBatch
from penstock.kernels.reference import ReferenceOps
from penstock.models.encoder.forward import OpTableEncoder

seeds = st.integers(0, 2**32 - 1)
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


class Matrix:
    """A WeightTensor over floats."""

    dtype = "F32"

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values, values.shape

    def float32(self, out=None) -> np.ndarray:
        return self.values

    def raw(self) -> None:
        return None

    def codes(self) -> None:
        return None


@st.composite
def programs(draw: st.DrawFn) -> tuple[EncoderProgram, EncoderProgram, np.random.Generator]:
    """The same network prepared natively and as plain arrays; odd widths, no token types or three."""
    rng = np.random.default_rng(draw(seeds))
    heads, head_dim = draw(st.integers(1, 4)), draw(st.sampled_from([1, 3, 8, 16, 17, 33]))
    inner, d = draw(st.integers(1, 70)), heads * head_dim
    packer = CpuWeights("float32")

    def vector(n: int, middle: float = 0.0) -> np.ndarray:
        return (middle + 0.3 * rng.standard_normal(n)).astype(np.float32)

    def matrix(n: int, k: int) -> np.ndarray:
        return (rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32)

    plain, native = [], []
    for _ in range(draw(st.integers(1, 2))):
        weights = {"qkv": (3 * d, d), "out": (d, d), "up": (inner, d), "down": (d, inner)}
        made = {name: matrix(*shape) for name, shape in weights.items()}
        vectors = {f"{name}_bias": vector(shape[0]) for name, shape in weights.items()}
        for norm in ("attn_norm", "ffn_norm"):
            vectors |= {norm: vector(d, 1.0), f"{norm}_bias": vector(d)}
        plain.append(EncoderLayer(**made, **vectors))
        packed = {name: packer.prepare([Matrix(values)]) for name, values in made.items()}
        native.append(EncoderLayer(**packed, **vectors))
    common = {
        "heads": heads,
        "first_position": draw(st.sampled_from([0, 2])),
        "eps": draw(st.sampled_from([1e-12, 1e-5])),
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "word": matrix(50, d) * 3,
        "place": matrix(42, d),
        "kind": matrix(3, d) if draw(st.booleans()) else None,
        "norm": vector(d, 1.0),
        "norm_bias": vector(d),
    }
    return (
        EncoderProgram(**common, layers=tuple(native)),
        EncoderProgram(**common, layers=tuple(plain)),
        rng,
    )


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(problem=programs(), counts=lengths)
def test_hidden_states_are_those_of_the_reference(isa: str, problem: tuple, counts: list[int]) -> None:
    """Red if a width, a head size, a length, a tail, an activation, a bias or a token type goes wrong."""
    native, plain, rng = problem
    total = sum(counts)
    batch = TextBatch(
        tokens=rng.integers(0, 50, total).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        kinds=None if plain.kind is None else rng.integers(0, 3, total).astype(np.int32),
    )
    wanted = OpTableEncoder(plain, ReferenceOps()).hidden(batch)
    found = NativeEncoder(native, isa, threads=2).hidden(batch)
    # Of one feature the norm is a sign, of two nearly so: a rounding decides it.
    if plain.word.shape[1] > 4:
        np.testing.assert_allclose(found, wanted, atol=3e-4)
    for index in range(len(counts)):
        first, last = batch.offsets[index], batch.offsets[index + 1]
        alone = TextBatch(
            tokens=batch.tokens[first:last],
            offsets=np.array([0, last - first], np.int32),
            kinds=None if batch.kinds is None else batch.kinds[first:last],
        )
        assert np.array_equal(NativeEncoder(native, isa, threads=1).hidden(alone), found[first:last])


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_is_that_of_the_error_function(isa: str) -> None:
    """Red if the tanh approximation, or a worse fit of erf, stands for GELU: an error of 4e-7 shows."""
    x = np.concatenate([np.linspace(-9, 9, 4001), [0.0, -0.0, 1e-20, -1e-20, 60.0, -60.0]]).astype(np.float32)
    found = kernel_gelu(isa, x)
    exact = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(np.float64)])
    assert (np.abs(found - exact) / np.maximum(1.0, np.abs(x))).max() <= 4e-7


def kernel_gelu(isa: str, x: np.ndarray) -> np.ndarray:
    """Through a linear layer of weight 1."""
    weight = CpuWeights("float32").prepare([Matrix(np.ones((1, 1), np.float32))])
    view = _native.PanelView(0, 1, 1, False, np.asarray(weight.data), 0)
    out = np.empty((len(x), 1), np.float32)
    _native.Kernels(isa).linear_activated(view, np.ascontiguousarray(x[:, None]), out, ACTIVATIONS["gelu"])
    return out[:, 0]
