"""Round-to-nearest quantization with one scale per row (methods.md 5.1, 5.4)."""

import numpy as np
import numpy.typing as npt

from artifact import floats
from artifact.content import QuantizedTensor
from artifact.schema import FloatType
from trainer.quantize.config import QuantizationConfig

Float32 = npt.NDArray[np.float32]

# A row of zeros needs some positive scale; its symbols are all 0 whatever it is. The smallest normal float16.
_ZERO_ROW_SCALE = 2.0**-14


def quantize(weight: Float32, config: QuantizationConfig, *, bits: int, deviations: float) -> QuantizedTensor:
    """Quantize a matrix [rows, columns] (or any tensor of two or more dimensions, the last being columns)."""
    matrix = np.ascontiguousarray(weight, dtype=np.float32).reshape(-1, weight.shape[-1])
    largest_symbol = 2 ** (bits - 1) - 1
    clip = _row_clips(matrix, config, deviations)
    scale_type = FloatType[config.scale_dtype.upper()]
    if config.scale_rule == "published":
        step = np.maximum(clip / np.float32(largest_symbol), np.float32(1 / largest_symbol))
        clipped = np.clip(matrix, -clip[:, None], clip[:, None])
        stored, exponent = _stored_scales(step, scale_type)
    else:
        stored, exponent = _stored_scales(clip / np.float32(largest_symbol), scale_type)
        step, clipped = stored, matrix
    symbols = np.clip(np.rint(clipped / step[:, None]), -largest_symbol, largest_symbol).astype(np.int8)
    return QuantizedTensor(
        symbols=symbols.reshape(weight.shape),
        scales=stored,
        bits=bits,
        scale_type=scale_type,
        scale_exponent=exponent,
    )


def _row_clips(matrix: Float32, config: QuantizationConfig, deviations: float) -> Float32:
    """Largest absolute value that each row represents, float32 [rows]."""
    if matrix.size == 0:
        return np.zeros(len(matrix), dtype=np.float32)
    if config.clip_rule == "deviations":
        columns = matrix.shape[1]
        deviation = matrix.std(axis=1, ddof=min(1, columns - 1), dtype=np.float64)
        return np.asarray(deviations * deviation, dtype=np.float32)
    fraction = 1.0 if config.clip_rule == "maximum" else config.clip_percentile
    return _quantile(np.abs(matrix), fraction)


def _quantile(magnitudes: Float32, fraction: float) -> Float32:
    """Quantile of each row with linear interpolation in float32, only the two neighbours sorted into place."""
    position = np.float32(fraction) * np.float32(magnitudes.shape[1] - 1)
    below = int(np.floor(position))
    above = min(below + 1, magnitudes.shape[1] - 1)
    ordered = np.partition(magnitudes, (below, above), axis=1)
    low, high = ordered[:, below], ordered[:, above]
    return (low + (high - low) * np.float32(position - below)).astype(np.float32)


def _stored_scales(steps: Float32, scale_type: FloatType) -> tuple[Float32, int]:
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
