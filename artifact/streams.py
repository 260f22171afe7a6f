"""Between tensors and the parts of a group's stream (proto/FORMAT.md section 6)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from artifact import floats
from artifact.codecs import registry
from artifact.content import PlainTensor, QuantizedTensor, Tensor, matrix_shape, num_scales, symbol_range
from artifact.errors import ArtifactError, ErrorCode
from artifact.grouping import GroupedTensors
from artifact.manifest import Encoding, Group, Part, part_shapes
from artifact.schema import FloatType, Kind, Order

Symbols = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CodedGroup:
    """A group's encoding as finally chosen, its parts and its stream."""

    encoding: Encoding
    parts: tuple[Part, ...]
    stream: bytes


def encode_group(grouped: GroupedTensors) -> CodedGroup:
    """Code every part of a group with the codec that makes it shortest."""
    parts, pieces = [], []
    shapes = part_shapes(grouped.tensor_sets, grouped.encoding)
    for symbols, shape in zip(_to_parts(grouped), shapes, strict=True):
        codec, data = registry.encode_smallest(symbols, shape.alphabet)
        parts.append(Part(codec, len(data)))
        pieces.append(data)
    return CodedGroup(grouped.encoding, tuple(parts), b"".join(pieces))


def decode_group(group: Group, stream: memoryview) -> list[Tensor]:
    """Tensors of a group in stream order, corrections not yet attached.

    Raises ArtifactError with the codes of the codecs, NOT_FINITE and PERMUTATION.
    """
    decoded, position = [], 0
    for part, shape in zip(group.parts, part_shapes(group.tensor_sets, group.encoding), strict=True):
        data = stream[position : position + part.num_bytes]
        decoded.append(registry.decode(part.codec, data, shape.num_symbols, shape.alphabet))
        position += part.num_bytes
    if group.encoding.kind == Kind.FLOAT:
        return _plain_tensors(group, decoded[0])
    return _quantized_tensors(group, decoded)


def symbols_of(tensor: QuantizedTensor, order: Order) -> Symbols:
    """Stored symbols of a quantized tensor: from 0 up, rows permuted, in the given order; uint8 [n]."""
    if tensor.kind == Kind.BINARY:
        unsigned = (tensor.symbols > 0).astype(np.uint8)
    else:
        low, _ = symbol_range(tensor.kind, tensor.bits)
        unsigned = (tensor.symbols.astype(np.int16) - low).astype(np.uint8)
    matrix = unsigned.reshape(matrix_shape(tensor.shape))
    if tensor.row_order is not None:
        matrix = matrix[tensor.row_order]
    return np.ascontiguousarray(matrix.T if order == Order.COLUMNS else matrix).reshape(-1)


def _to_parts(grouped: GroupedTensors) -> list[Symbols]:
    encoding = grouped.encoding
    if encoding.kind == Kind.FLOAT:
        values = [tensor.values.astype(np.float32) for tensor in grouped.tensors if isinstance(tensor, PlainTensor)]
        return [floats.to_planes(_concatenate(values, np.float32), encoding.float_type)]
    quantized = [tensor for tensor in grouped.tensors if isinstance(tensor, QuantizedTensor)]
    scales = _concatenate([tensor.scales.astype(np.float32) for tensor in quantized], np.float32)
    parts = [
        _concatenate([symbols_of(tensor, encoding.order) for tensor in quantized], np.uint8),
        floats.to_planes(scales, encoding.float_type, encoding.scale_exponent),
    ]
    if encoding.kind == Kind.ASYMMETRIC:
        points = [tensor.zero_points for tensor in quantized if tensor.zero_points is not None]
        parts.append(_concatenate(points, np.uint8))
    if encoding.permuted:
        orders = [tensor.row_order for tensor in quantized if tensor.row_order is not None]
        joined = _concatenate(orders, np.dtype("<u2"))
        parts.append(np.ascontiguousarray(joined.view(np.uint8).reshape(-1, 2).T).reshape(-1))
    return parts


def _concatenate(arrays: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *(array.reshape(-1).astype(dtype, copy=False) for array in arrays)])


def _plain_tensors(group: Group, planes: Symbols) -> list[Tensor]:
    float_type = group.encoding.float_type
    values = floats.from_planes(planes, float_type)
    tensors: list[Tensor] = []
    position = 0
    for _, shape in group.tensors():
        rows, columns = matrix_shape(shape)
        array = values[position : position + rows * columns].reshape(shape)
        position += rows * columns
        tensors.append(PlainTensor(array.astype(np.float16) if float_type == FloatType.FLOAT16 else array, float_type))
    return tensors


def _quantized_tensors(group: Group, decoded: list[Symbols]) -> list[Tensor]:
    encoding = group.encoding
    symbols, scales = decoded[0], floats.from_planes(decoded[1], encoding.float_type, encoding.scale_exponent)
    points = decoded[2] if encoding.kind == Kind.ASYMMETRIC else None
    orders = (
        decoded[-1].reshape(2, -1).T.astype(np.uint16) @ np.array([1, 256], np.uint16) if encoding.permuted else None
    )
    tensors: list[Tensor] = []
    symbol_at = scale_at = row_at = 0
    for name, shape in group.tensors():
        rows, columns = matrix_shape(shape)
        count = num_scales(shape, encoding.group_size)
        row_order = None
        if orders is not None:
            row_order = orders[row_at : row_at + rows]
            if not np.array_equal(np.sort(row_order), np.arange(rows)):
                raise ArtifactError(ErrorCode.PERMUTATION, f"{name}: the row order is no permutation")
        tensors.append(
            QuantizedTensor(
                symbols=_signed(symbols[symbol_at : symbol_at + rows * columns], encoding, shape, row_order),
                scales=scales[scale_at : scale_at + count],
                bits=encoding.bits,
                kind=encoding.kind,
                group_size=encoding.group_size,
                scale_type=encoding.float_type,
                scale_exponent=encoding.scale_exponent,
                zero_points=None if points is None else points[scale_at : scale_at + count],
                row_order=row_order,
            )
        )
        symbol_at, scale_at, row_at = symbol_at + rows * columns, scale_at + count, row_at + rows
    return tensors


def _signed(
    stored: Symbols, encoding: Encoding, shape: tuple[int, ...], row_order: npt.NDArray[np.uint16] | None
) -> npt.NDArray[np.int8] | npt.NDArray[np.uint8]:
    """Undo `symbols_of`: symbols of a tensor of the given shape, int8 (uint8 for ASYMMETRIC)."""
    rows, columns = matrix_shape(shape)
    matrix = stored.reshape(columns, rows).T if encoding.order == Order.COLUMNS else stored.reshape(rows, columns)
    if row_order is not None:
        unpermuted = np.empty_like(matrix, order="C")
        unpermuted[row_order] = matrix
        matrix = unpermuted
    matrix = np.ascontiguousarray(matrix).reshape(shape)
    if encoding.kind == Kind.ASYMMETRIC:
        return matrix
    if encoding.kind == Kind.BINARY:
        return (matrix * np.uint8(2) - np.uint8(1)).view(np.int8)
    low, _ = symbol_range(encoding.kind, encoding.bits)
    return (matrix - np.uint8(-low)).view(np.int8)


def with_order(grouped: GroupedTensors, order: Order) -> GroupedTensors:
    """The same group with its symbols stored in another order."""
    return replace(grouped, encoding=replace(grouped.encoding, order=order))
