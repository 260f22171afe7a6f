"""From stored symbols to float32 weights, specified to the last rounding (proto/FORMAT.md section 6).

Every operation is one float32 operation rounded to nearest even; nothing is fused or reassociated.
"""

import numpy as np
import numpy.typing as npt

from artifact.content import Float32, PlainTensor, QuantizedTensor, Tensor, matrix_shape
from artifact.errors import ArtifactError, ErrorCode


def dequantize(tensor: Tensor) -> Float32:
    """Weights of a tensor, float32 of its shape. Raises ArtifactError(NOT_FINITE) where scales make them overflow."""
    if isinstance(tensor, PlainTensor):
        return tensor.values.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        weights = _without_correction(tensor)
        if tensor.low_rank is not None:
            left, right = dequantize(tensor.low_rank.left), dequantize(tensor.low_rank.right)
            for component in range(left.shape[1]):
                weights += left[:, component : component + 1] * right[component]
    if not np.isfinite(weights).all():
        raise ArtifactError(ErrorCode.NOT_FINITE, "a weight is too large for float32")
    return weights


def _without_correction(tensor: QuantizedTensor) -> Float32:
    rows, columns = matrix_shape(tensor.shape)
    scales = tensor.scales.astype(np.float32).reshape(-1)
    # One scale per row is broadcast; only groups need the index of every value.
    spread = np.arange(rows)[:, None] if tensor.group_size == 0 else _group_numbers(rows, columns, tensor.group_size)
    if tensor.zero_points is None:
        weights: Float32 = tensor.symbols.reshape(rows, columns).astype(np.float32)
    else:
        points = tensor.zero_points.astype(np.int16).reshape(-1)[spread]
        weights = (tensor.symbols.reshape(rows, columns).astype(np.int16) - points).astype(np.float32)
    weights *= scales[spread]
    return weights.reshape(tensor.shape)


def _group_numbers(rows: int, columns: int, group_size: int) -> npt.NDArray[np.int64]:
    return (np.arange(rows * columns, dtype=np.int64) // group_size).reshape(rows, columns)
