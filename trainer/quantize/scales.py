"""Scales per row: how far each row reaches, and the step that follows from it (methods.md 5.1, 5.2, 5.4, 5.5).

Shapes: R rows, C columns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from artifact import floats
from artifact.schema import FloatType
from trainer.quantize.tensor_plan import TensorPlan

Float32 = npt.NDArray[np.float32]

# A row of zeros needs some positive scale; its symbols are all 0 whatever it is. The smallest normal float16.
_ZERO_ROW_SCALE = 2.0**-14


def row_clips(matrix: Float32, plan: TensorPlan, percentile: float | None = None) -> Float32:
    """Largest absolute value that each row of [R, C] represents, float32 [R].

    Args:
        percentile: a fraction to use in place of the plan's, for a search.
    """
    if matrix.size == 0:
        return np.zeros(len(matrix), dtype=np.float32)
    if percentile is None and plan.clip_rule == "deviations":
        columns = matrix.shape[1]
        deviation = matrix.std(axis=1, ddof=min(1, columns - 1), dtype=np.float64)
        largest = np.abs(matrix).max(axis=1)
        # A constant row has no deviation to speak of, yet has values to represent.
        clips = np.where(deviation > 1e-6 * largest, plan.clip_deviations * deviation, largest)
        return np.asarray(clips, dtype=np.float32)
    if percentile is None:
        percentile = 1.0 if plan.clip_rule == "maximum" else plan.clip_percentile
    magnitudes = np.abs(matrix)
    return magnitudes.max(axis=1) if percentile == 1.0 else _quantile(magnitudes, percentile)


def row_importance(matrix: Float32, hessian_diagonal: Float32, strength: float) -> Float32:
    """Factors on the rows' clips, float32 [R], mean 1: `1 + λ(ι - 1)` with ι the rows' mean `|W_ij| κ_j` over its mean,
    κ the Hessian's diagonal over its mean (Hessian-aware SDClip, methods.md 5.5)."""
    diagonal = hessian_diagonal.astype(np.float64)
    weights = np.abs(matrix.astype(np.float64)) @ (diagonal / max(diagonal.mean(), np.finfo(np.float64).tiny))
    importance = weights / max(weights.mean(), np.finfo(np.float64).tiny)
    return (1 + strength * (importance - 1)).astype(np.float32)


def steps_from_clips(clips: Float32, plan: TensorPlan) -> Float32:
    """Steps [R] before they are rounded to their stored type."""
    steps = clips / np.float32(plan.highest)
    if plan.scale_rule != "scale_free":
        steps = np.maximum(steps, np.float32(1 / plan.highest))
    return steps * np.float32(plan.step_factor)


def _quantile(magnitudes: Float32, fraction: float) -> Float32:
    """Quantile of each row with linear interpolation in float32, only the two neighbours sorted into place."""
    position = np.float32(fraction) * np.float32(magnitudes.shape[1] - 1)
    below = int(np.floor(position))
    above = min(below + 1, magnitudes.shape[1] - 1)
    ordered = np.partition(magnitudes, (below, above), axis=1)
    low, high = ordered[:, below], ordered[:, above]
    return (low + (high - low) * np.float32(position - below)).astype(np.float32)


def store_scales(steps: Float32, scale_type: FloatType) -> tuple[Float32, int]:
    """Steps rounded to the stored type, always positive, and the base exponent of LOG8 (else 0)."""
    steps = np.where(steps > 0, steps, np.float32(_ZERO_ROW_SCALE)).astype(np.float32)
    exponent = 0
    if scale_type == FloatType.LOG8:
        # Sixteen octaves below the largest step; frexp gives 0.5 <= mantissa < 1.
        top = int(np.frexp(steps.max(initial=_ZERO_ROW_SCALE))[1])
        exponent = int(np.clip(top - 16 + 1, floats.LOG8_MIN_EXPONENT, floats.LOG8_MAX_EXPONENT))
    stored = floats.round_to(steps, scale_type, exponent)
    # Steps too small for the type (float16 below 3e-8) would become 0 and turn symbols into 0/0.
    smallest = np.float32(2.0**-24 if scale_type == FloatType.FLOAT16 else 2.0**-126)
    return np.maximum(stored, smallest), exponent
