"""Stored weights to float32: the quantized types of ggml and the plain dtypes of safetensors.

Every type is one function from blocks, uint8[n, block_bytes], into out, float32[n, block]; the
arithmetic (order of operations, float32 throughout) is that of ggml's reference, so results are
equal bit for bit. Work goes in chunks that fit a core's cache, and numpy releases the GIL inside
each: several threads may dequantize different tensors at once.

Source: the block structures of ggml (ggml-common.h) and its dequantize_row_* functions; MXFP4: OCP
Microscaling Formats 1.0; F8: OCP 8-bit Floating Point 1.0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from penstock.errors import ModelRefused
from penstock.formats.ggml_types import BY_NAME

PlainFunction = Callable[[np.ndarray], np.ndarray]
BlockFunction = Callable[[np.ndarray, np.ndarray], None]

_CHUNK_ELEMENTS = 1 << 16  # 256 KiB of float32 and its temporaries stay in a 1 to 2 MiB second-level cache

_IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
FP4_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_FP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)  # twice e2m1


def dequantize(
    raw: np.ndarray, dtype: str, shape: tuple[int, ...], out: np.ndarray | None = None
) -> np.ndarray:
    """float32 array of `shape` from the stored bytes `raw` (uint8[nbytes]) of a tensor of type `dtype`.

    F32 comes back as a read-only view of `raw` where no `out` is given and `raw` is aligned; everything
    else is fresh (or `out`, C-contiguous float32 of `shape`). Raises ModelRefused for a type that
    can't be dequantized.
    """
    plain = _PLAIN.get(dtype)
    if plain is not None:
        return _plain(plain, raw, shape, out)
    function = _BLOCKS.get(dtype)
    if function is None:
        raise ModelRefused(
            f"element type {dtype} can't be read as float32; known are {', '.join(supported())}"
        )
    kind = BY_NAME[dtype]
    if out is None:
        out = np.empty(shape, np.float32)
    blocks = raw.reshape(-1, kind.block_bytes)
    target = out.reshape(-1, kind.block)
    step = max(1, _CHUNK_ELEMENTS // kind.block)
    with np.errstate(all="ignore"):  # an infinite or nan scale shows in the output, not in the log
        for at in range(0, len(blocks), step):
            function(blocks[at : at + step], target[at : at + step])
    return out


def supported() -> list[str]:
    """Names of every type that `dequantize` takes."""
    return [*_PLAIN, *_BLOCKS]


def _plain(
    convert: PlainFunction, raw: np.ndarray, shape: tuple[int, ...], out: np.ndarray | None
) -> np.ndarray:
    values = convert(raw).reshape(shape)
    if out is not None:
        np.copyto(out, values, casting="same_kind")
        return out
    if values.dtype == np.float32 and values.flags.aligned:
        return values
    return values.astype(np.float32)


def _bf16(raw: np.ndarray) -> np.ndarray:
    wide = raw.view("<u2").astype(np.uint32)
    np.left_shift(wide, 16, out=wide)
    return wide.view(np.float32)


def _f8_table(exponent_bits: int, bias: int, has_inf: bool) -> np.ndarray:
    """float32[256]: the value of every F8 byte."""
    code = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    normal = (1 + fraction) * np.exp2(exponent - float(bias))
    value = sign * np.where(exponent == 0, fraction * 2.0 ** (1 - bias), normal)
    top = exponent == (1 << exponent_bits) - 1
    if has_inf:
        value = np.where(top, np.where(fraction == 0, sign * np.inf, np.nan), value)
    else:  # E4M3: only the all-ones pattern is special
        value = np.where((code & 0x7F) == 0x7F, np.nan, value)
    return value.astype(np.float32)


_F8_E4M3 = _f8_table(4, 7, has_inf=False)
_F8_E5M2 = _f8_table(5, 15, has_inf=True)

_PLAIN: dict[str, PlainFunction] = {
    "F32": lambda raw: raw.view("<f4"),
    "F16": lambda raw: raw.view("<f2"),
    "BF16": _bf16,
    "F64": lambda raw: raw.view("<f8"),
    "I8": lambda raw: raw.view("i1"),
    "I16": lambda raw: raw.view("<i2"),
    "I32": lambda raw: raw.view("<i4"),
    "I64": lambda raw: raw.view("<i8"),
    "U8": lambda raw: raw,
    "BOOL": lambda raw: raw,
    "F8_E4M3": lambda raw: _F8_E4M3[raw],
    "F8_E5M2": lambda raw: _F8_E5M2[raw],
}


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """float32[n, 1] from the half-precision number at byte `at` of each block."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8[n, 2, m] from uint8[n, m]: all low halves, then all high halves."""
    halves = np.empty((len(packed), 2, packed.shape[1]), np.uint8)
    np.bitwise_and(packed, 0x0F, out=halves[:, 0])
    np.right_shift(packed, 4, out=halves[:, 1])
    return halves


def _high_bits(packed: np.ndarray) -> np.ndarray:
    """uint8[n, 32] of 0 or 1 from 4 little-endian bytes per block."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def _q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    np.subtract(_nibbles(blocks[:, 2:]).reshape(-1, 32), np.float32(8), out=out)
    out *= _half(blocks, 0)


def _q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_nibbles(blocks[:, 4:]).reshape(-1, 32), _half(blocks, 0), out=out)
    out += _half(blocks, 2)


def _q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    quants = _nibbles(blocks[:, 6:]).reshape(-1, 32)
    quants |= _high_bits(blocks[:, 2:6]) << 4
    np.subtract(quants, np.float32(16), out=out)
    out *= _half(blocks, 0)


def _q5_1(blocks: np.ndarray, out: np.ndarray) -> None:
    quants = _nibbles(blocks[:, 8:]).reshape(-1, 32)
    quants |= _high_bits(blocks[:, 4:8]) << 4
    np.multiply(quants, _half(blocks, 0), out=out)
    out += _half(blocks, 2)


def _q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _half(blocks, 0), out=out)


def _q8_k(blocks: np.ndarray, out: np.ndarray) -> None:
    scale = np.ascontiguousarray(blocks[:, :4]).view("<f4")
    np.multiply(blocks[:, 4:260].view(np.int8), scale, out=out)  # the last 32 bytes are sums for dot products


def _planes(packed: np.ndarray, bits: int) -> np.ndarray:
    """uint8[n, groups, 8 / bits, 32]: each group of 32 bytes holds 8 / bits planes of 32 numbers."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    planes = packed.reshape(len(packed), -1, 1, 32) >> shifts
    planes &= np.uint8((1 << bits) - 1)
    return planes


def _q2_k(blocks: np.ndarray, out: np.ndarray) -> None:
    scales = blocks[:, :16]
    target = out.reshape(-1, 16, 16)
    low, high = (scales & 0x0F).astype(np.float32), (scales >> 4).astype(np.float32)
    quants = _planes(blocks[:, 16:80], 2).reshape(-1, 16, 16)
    np.multiply(quants, (_half(blocks, 80) * low)[..., None], out=target)
    target -= (_half(blocks, 82) * high)[..., None]


def _q3_k(blocks: np.ndarray, out: np.ndarray) -> None:
    packed = blocks[:, 96:108]
    # 16 scales of 6 bits: bytes 0-7 hold the low halves, bytes 8-11 two high bits each
    low = _nibbles(packed[:, :8]).reshape(-1, 16)
    high = (packed[:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 4, 1)) & 3
    scales = (low | (high.reshape(-1, 16) << 4)).astype(np.float32) - np.float32(32)
    quants = _planes(blocks[:, 32:96], 2).reshape(-1, 256).view(np.int8)
    missing = _planes(blocks[:, :32], 1).reshape(-1, 256) ^ 1  # a cleared mask bit means minus 4
    quants -= (missing << 2).view(np.int8)
    scales *= _half(blocks, 108)
    np.multiply(quants.reshape(-1, 16, 16), scales[..., None], out=out.reshape(-1, 16, 16))


def _k_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[n, 8] scales and minima of Q4_K and Q5_K from their 12 bytes of 6-bit numbers."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (rest & 15) | ((first >> 2) & 48)], axis=1)
    minima = np.concatenate([second & 63, (rest >> 4) | ((second >> 2) & 48)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _scaled_k(blocks: np.ndarray, quants: np.ndarray, out: np.ndarray) -> None:
    """Eight groups of 32 quants, each with a 6-bit scale and minimum (Q4_K, Q5_K)."""
    scales, minima = _k_scales(blocks[:, 4:16])
    target = out.reshape(-1, 8, 32)
    np.multiply(quants.reshape(-1, 8, 32), (_half(blocks, 0) * scales)[..., None], out=target)
    target -= (_half(blocks, 2) * minima)[..., None]


def _q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    _scaled_k(blocks, _planes(blocks[:, 16:], 4), out)


def _q5_k(blocks: np.ndarray, out: np.ndarray) -> None:
    quants = _planes(blocks[:, 48:], 4).reshape(-1, 8, 32)
    quants |= _planes(blocks[:, 16:48], 1).reshape(-1, 8, 32) << 4
    _scaled_k(blocks, quants, out)


def _q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    # low halves come in groups of 64 bytes (low plane, then high plane), high bits in groups of 32
    low = _nibbles(blocks[:, :128].reshape(-1, 64)).reshape(-1, 256)
    high = _planes(blocks[:, 128:192], 2).reshape(-1, 256)
    quants = (low | (high << 4)).view(np.int8)
    quants -= np.int8(32)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    np.multiply(quants.reshape(-1, 16, 16), scales[..., None], out=out.reshape(-1, 16, 16))


def _iq4_nl(blocks: np.ndarray, out: np.ndarray) -> None:
    np.take(_IQ4_VALUES, _nibbles(blocks[:, 2:]).reshape(-1, 32), out=out, mode="clip")
    out *= _half(blocks, 0)


def _iq4_xs(blocks: np.ndarray, out: np.ndarray) -> None:
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    # scale i: low half from nibble i (low nibble of a byte first), two high bits from bits 2i of the word
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    scales = (low | ((high.astype(np.uint8) & 3) << 4)).astype(np.float32) - np.float32(32)
    target = out.reshape(-1, 8, 32)
    codes = _nibbles(blocks[:, 8:].reshape(-1, 16)).reshape(-1, 8, 32)
    np.take(_IQ4_VALUES, codes, out=target, mode="clip")
    target *= (_half(blocks, 0) * scales)[..., None]


def _mxfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    exponent = blocks[:, :1].astype(np.uint32)
    # half of 2**(e - 127), because the table holds doubled values; e < 2 gives denormals
    denormal = np.uint32(0x00200000) << exponent
    bits = np.where(exponent < 2, denormal, (exponent - np.uint32(1)) << np.uint32(23))
    np.take(_FP4_VALUES, _nibbles(blocks[:, 1:]).reshape(-1, 32), out=out, mode="clip")
    out *= bits.view(np.float32)


_BLOCKS: dict[str, BlockFunction] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "Q8_K": _q8_k,
    "MXFP4": _mxfp4,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
