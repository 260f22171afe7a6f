"""Low-rank corrections of quantized matrices (LQER, Zhang et al. 2024; methods.md 5.10).

Shapes: R rows, C columns, K rank.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from artifact.content import LowRank, QuantizedTensor
from artifact.dequantize import dequantize
from artifact.schema import FloatType
from trainer.quantize.config import LowRankConfig

Float32 = npt.NDArray[np.float32]


def factors(error: Float32, rank: int, column_weights: Float32 | None = None) -> tuple[Float32, Float32]:
    """`U S` [R, K] and `Vᵀ` [K, C] of the error's [R, C] leading singular values.

    Each pair is signed so that the left vector's entry of largest magnitude is positive: libraries differ.

    Args:
        column_weights: positive [C]; the product then approximates the error in the norm weighted by them (the roots
            of the Hessian's diagonal) instead of the plain one.
    """
    rank = min(rank, *error.shape)
    weighted = error if column_weights is None else error * column_weights
    left, right = _leading_components(weighted.astype(np.float64), rank)
    if column_weights is not None:
        right = right / column_weights
    largest = left[np.abs(left).argmax(axis=0), np.arange(rank)]
    signs = np.where(largest < 0, -1.0, 1.0)
    return (left * signs).astype(np.float32), (right * signs[:, None]).astype(np.float32)


def _leading_components(
    matrix: npt.NDArray[np.float64], rank: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """`U S` and `Vᵀ` of the leading singular values, by the eigenvectors of the smaller Gram matrix: few are needed."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    _, vectors = np.linalg.eigh(tall.T @ tall)
    short = vectors[:, ::-1][:, :rank]
    long = tall @ short
    if tall is matrix:
        return long, short.T
    values = np.linalg.norm(long, axis=0)
    return short * values, (long / np.maximum(values, np.finfo(np.float64).tiny)).T


def quantize_factors(left: Float32, right: Float32, config: LowRankConfig) -> LowRank:
    """Factors [R, K] and [K, C] on the configured grids; their signs as given.

    The asymmetric grid needs the right factor to divide into groups; otherwise the symmetric one is taken.
    """
    if config.grid == "symmetric" or right.size % config.group_size:
        return LowRank(_per_row(left, config.symmetric_bits), _per_row(right, config.symmetric_bits))
    return LowRank(
        _asymmetric(left, config.left_bits, left.size),
        _asymmetric(right, config.right_bits, config.group_size),
    )


def correct(error: Float32, config: LowRankConfig, column_weights: Float32 | None = None) -> LowRank:
    """The quantized correction of `error` [R, C], with the signs of each pair chosen by `config.sign_rule`."""
    left, right = factors(error, config.rank, column_weights)
    if config.sign_rule != "best" or config.grid == "symmetric":
        return quantize_factors(left, right, config)
    candidates = []
    # Scales are shared by components, so that signs interact; beyond a few components try one flip at a time.
    rank = left.shape[1]
    choices = (
        itertools.product((1.0, -1.0), repeat=rank) if rank <= 4 else (1 - 2 * np.eye(rank + 1, rank, dtype=np.float32))
    )
    for choice in choices:
        signs = np.asarray(choice, dtype=np.float32)
        found = quantize_factors(left * signs, right * signs[:, None], config)
        residual = error - product(found)
        if column_weights is not None:
            residual = residual * column_weights
        candidates.append((float(np.square(residual, dtype=np.float64).sum()), len(candidates), found))
    return min(candidates)[2]


def product(correction: LowRank) -> Float32:
    """`left @ right` [R, C] as readers compute it: float32, component by component."""
    left, right = dequantize(correction.left), dequantize(correction.right)
    total = np.zeros((left.shape[0], right.shape[1]), np.float32)
    for component in range(left.shape[1]):
        total += left[:, component : component + 1] * right[component]
    return total


def _asymmetric(values: Float32, bits: int, group_size: int) -> QuantizedTensor:
    """Codes -2^(b-1)..2^(b-1)-1, scale `max|group| / (2^(b-1) - 1/2)` in float16, for each `group_size` values."""
    half = 2 ** (bits - 1)
    groups = values.reshape(-1, group_size)
    scales = _float16(np.abs(groups).max(axis=1) / np.float32(half - 0.5))
    codes = np.clip(np.rint(groups / scales[:, None]), -half, half - 1).astype(np.int8)
    return QuantizedTensor(
        symbols=codes.reshape(values.shape),
        scales=scales,
        bits=bits,
        group_size=group_size,
        scale_type=FloatType.FLOAT16,
    )


def _per_row(values: Float32, bits: int) -> QuantizedTensor:
    """Symmetric codes, scale `max|row| / (2^(b-1) - 1)` in float16."""
    highest = 2 ** (bits - 1) - 1
    scales = _float16(np.abs(values).max(axis=1) / np.float32(highest))
    codes = np.clip(np.rint(values / scales[:, None]), -highest, highest).astype(np.int8)
    return QuantizedTensor(symbols=codes, scales=scales, bits=bits, scale_type=FloatType.FLOAT16)


def _float16(scales: Float32) -> Float32:
    rounded = np.where(scales > 0, scales, np.float32(1)).astype(np.float16).astype(np.float32)
    return np.maximum(rounded, np.float32(2.0**-24))
