"""Ternary and binary weights with a scale for each group of consecutive weights (methods.md 4.6, 4.7)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from artifact.content import QuantizedTensor
from artifact.schema import FloatType, Kind

Float32 = npt.NDArray[np.float32]

_LEAST_SCALE = np.float32(2.0**-24)


def quantize(weight: Float32, *, kind: Kind, group_size: int, quantized_again: bool = False) -> QuantizedTensor:
    """Signs (TERNARY: and zeros) of `weight` [R, C] with scales of `group_size` values.

    `q = clamp(round(w / s), -1, 1)` or the sign, `s = mean |w|` rounded to float16: the stored weights `q s` are those
    that quantization-aware training saw in its products, bit for bit.

    Args:
        quantized_again: the reader takes the stored weights for masters and quantizes them in its own forward pass.
            The mean magnitude of `q s` is `s mean|q|`, so that they would shrink; with the scale `s / mean|q|` instead,
            in float32, the reader finds q and s again, exactly (the shrinkage fix). Binary codes need none.

    Raises:
        ValueError: the weights do not divide into groups.
    """
    if weight.size % group_size:
        raise ValueError(f"{weight.size} weights do not divide into groups of {group_size}")
    groups = np.ascontiguousarray(weight, dtype=np.float32).reshape(-1, group_size)
    scales = np.maximum(_float16(np.abs(groups).mean(axis=1, dtype=np.float32)), _LEAST_SCALE)
    if kind == Kind.BINARY:
        codes = np.where(groups >= 0, 1, -1).astype(np.int8)
    else:
        codes = np.clip(np.rint(groups / scales[:, None]), -1, 1).astype(np.int8)
    fixed = quantized_again and kind == Kind.TERNARY
    if fixed:
        share = np.maximum(np.count_nonzero(codes, axis=1), 1) / group_size
        scales = (scales / share).astype(np.float32)
    return QuantizedTensor(
        symbols=codes.reshape(weight.shape),
        scales=scales,
        bits=0,
        kind=kind,
        group_size=group_size,
        scale_type=FloatType.FLOAT32 if fixed else FloatType.FLOAT16,
    )


def _float16(values: Float32) -> Float32:
    return np.asarray(values, np.float32).astype(np.float16).astype(np.float32)
