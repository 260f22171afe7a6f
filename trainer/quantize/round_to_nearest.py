"""Round-to-nearest quantization with one scale per row (methods.md 5.1, 5.2)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from artifact.content import QuantizedTensor
from artifact.schema import FloatType
from trainer.quantize.config import QuantizationConfig
from trainer.quantize.scales import row_clips, steps_from_clips, store_scales
from trainer.quantize.tensor_plan import TensorPlan

Float32 = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]


def quantize(
    weight: Float32, plan: TensorPlan, config: QuantizationConfig, *, steps: Float32 | None = None
) -> QuantizedTensor:
    """Quantize a matrix [rows, columns] (or any tensor of two or more dimensions, the last being columns).

    Args:
        steps: float32 [rows] to use in place of the plan's rule.
    """
    matrix = np.ascontiguousarray(weight, dtype=np.float32).reshape(-1, weight.shape[-1])
    scale_type = FloatType[config.scale_dtype.upper()]
    if steps is None:
        codes, stored, exponent = _quantize_by_rule(matrix, plan, config, scale_type)
    else:
        stored, exponent = store_scales(steps, scale_type)
        codes = round_to_codes(matrix, stored, plan)
    return QuantizedTensor(
        symbols=codes.reshape(weight.shape),
        scales=stored,
        bits=plan.bits,
        scale_type=scale_type,
        scale_exponent=exponent,
    )


def _quantize_by_rule(
    matrix: Float32, plan: TensorPlan, config: QuantizationConfig, scale_type: FloatType
) -> tuple[Codes, Float32, int]:
    if plan.clip_rule == "search":
        candidates = [
            _quantize_by_rule(
                matrix, replace(plan, clip_rule="percentile", clip_percentile=percentile), config, scale_type
            )
            for percentile in config.search_percentiles
        ]
        # The first of equals, as published: with the floor on scales most candidates coincide.
        return min(candidates, key=lambda found: mean_squared_error(matrix, found[0], found[1]))
    clips = row_clips(matrix, plan)
    unrounded = steps_from_clips(clips, plan)
    stored, exponent = store_scales(unrounded, scale_type)
    if plan.scale_rule == "published":
        clipped = np.clip(matrix, -clips[:, None], clips[:, None])
        return round_to_codes(clipped, unrounded, plan), stored, exponent
    return round_to_codes(matrix, stored, plan), stored, exponent


def round_to_codes(matrix: Float32, steps: Float32, plan: TensorPlan) -> Codes:
    """Codes int8 [R, C], half to even, of a matrix [R, C] with steps [R]."""
    codes = np.rint(matrix / steps[:, None])
    if plan.code_step > 1:
        codes = np.rint(codes / plan.code_step) * plan.code_step
    return np.clip(codes, plan.lowest, plan.limit).astype(np.int8)


def mean_squared_error(matrix: Float32, codes: Codes, scales: Float32) -> float:
    """Of the weights, over the whole matrix."""
    error = matrix - codes.astype(np.float32) * scales[:, None]
    return float(np.square(error, dtype=np.float64).mean()) if error.size else 0.0


def zero_smallest(matrix: Float32, fraction: float) -> Float32:
    """The matrix with its `fraction` of smallest magnitudes set to zero (rank 44)."""
    num_zeros = int(fraction * matrix.size)
    if not num_zeros:
        return matrix
    magnitudes = np.abs(matrix).reshape(-1)
    threshold = np.partition(magnitudes, num_zeros - 1)[num_zeros - 1]
    return np.where(np.abs(matrix) > threshold, matrix, np.float32(0))
