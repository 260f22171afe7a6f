"""Between tensors and the parts of a group's stream (proto/FORMAT.md section 6)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from artifact import floats
from artifact.codecs import rans, registry
from artifact.codecs.rans import MAX_LANES, MAX_LINES, Lattice, StepBudget
from artifact.content import PlainTensor, QuantizedTensor, Tensor, matrix_shape, num_scales, symbol_range
from artifact.errors import ArtifactError, ErrorCode
from artifact.grouping import GroupedTensors
from artifact.manifest import Encoding, Group, Part, lattice_of, part_shapes
from artifact.schema import Codec, FloatType, Kind, Order

Symbols = npt.NDArray[np.uint8]

# Steps of the entropy coder in a large group, some 30 microseconds each: between these two.
_MIN_STEPS: Final = 4096
_MAX_STEPS: Final = 8192


@dataclass(frozen=True)
class CodedGroup:
    """A group's encoding as finally chosen, its parts and its stream."""

    encoding: Encoding
    parts: tuple[Part, ...]
    stream: bytes


def encode_group(grouped: GroupedTensors, steps: StepBudget) -> CodedGroup:
    """Code every part of a group with the codec that makes it shortest, symbols also by columns instead of rows.

    The entropy coder is used as far as `steps` allow, and what it takes is taken off.
    """
    first, *rest = _to_parts(grouped)
    first_shape, *rest_shapes = part_shapes(grouped.tensor_sets, grouped.encoding)
    coded_rest = [
        registry.encode_smallest(symbols, shape.alphabet) for symbols, shape in zip(rest, rest_shapes, strict=True)
    ]
    rest_parts = tuple(Part(codec, len(data)) for codec, data in coded_rest)
    following = b"".join(data for _, data in coded_rest)
    best = _coded(grouped.encoding, *registry.encode_smallest(first, first_shape.alphabet), rest_parts, following)
    if grouped.encoding.kind == Kind.FLOAT or not first.size:
        return best
    best_lattice: Lattice | None = None
    for order in Order:
        lattice = _lattice(grouped, order, len(following))
        if lattice.num_lines > MAX_LINES or not steps.allow(lattice):
            continue
        symbols = first if order == Order.ROWS else _symbols(grouped, order)
        encoding = replace(grouped.encoding, order=order)
        candidate = _coded_with_rans(encoding, symbols, lattice, rest_parts, following)
        if len(candidate.stream) < len(best.stream):
            best, best_lattice = candidate, lattice
    if best_lattice is not None:
        steps.spend(best_lattice)
    return best


def _coded(encoding: Encoding, codec: Codec, data: bytes, rest_parts: tuple[Part, ...], following: bytes) -> CodedGroup:
    return CodedGroup(encoding, (Part(codec, len(data)), *rest_parts), data + following)


def _coded_with_rans(
    encoding: Encoding, symbols: Symbols, lattice: Lattice, rest_parts: tuple[Part, ...], following: bytes
) -> CodedGroup:
    carried = following[: 2 * lattice.lanes]
    data = rans.encode(symbols, lattice, encoding.alphabet, carried)
    part = Part(Codec.RANS, len(data), carried_bytes=len(carried), lanes=lattice.lanes)
    return CodedGroup(encoding, (part, *rest_parts), data + following[len(carried) :])


def _lattice(grouped: GroupedTensors, order: Order, following_bytes: int) -> Lattice:
    """Lattice of a group's symbols. More lanes decode faster; each costs a byte, and three if it carries nothing."""
    lattice = lattice_of(grouped.tensor_sets[0], order, lanes=1)
    fewest, most = (-(-lattice.num_symbols // steps) for steps in (_MAX_STEPS, _MIN_STEPS))
    target = min(max(following_bytes // 2, fewest), most, MAX_LANES)
    num_chunks = max(lattice.width // target, 1)
    # Lanes beyond the last full chunk of a line would idle.
    return replace(lattice, lanes=min(-(-lattice.width // num_chunks), MAX_LANES))


def decode_group(group: Group, stream: memoryview) -> list[Tensor]:
    """Tensors of a group in stream order, corrections not yet attached.

    Raises ArtifactError with the codes of the codecs, NOT_FINITE and PERMUTATION.
    """
    decoded = []
    for part, shape in zip(group.parts, part_shapes(group.tensor_sets, group.encoding), strict=True):
        data, stream = stream[: part.num_bytes], stream[part.num_bytes :]
        if part.codec == Codec.RANS:
            lattice = lattice_of(group.tensor_sets[0], group.encoding.order, part.lanes)
            symbols, carried = rans.decode(data, lattice, shape.alphabet)
            if any(carried[part.carried_bytes :]):
                raise ArtifactError(ErrorCode.RANS_STREAM, f"{group.label}: lanes carry more than the part says")
            stream = memoryview(carried[: part.carried_bytes] + bytes(stream))
        else:
            symbols = registry.decode(part.codec, data, shape.num_symbols, shape.alphabet)
        decoded.append(symbols)
    if group.encoding.kind == Kind.FLOAT:
        return _plain_tensors(group, decoded[0])
    return _quantized_tensors(group, decoded)


def _symbols(grouped: GroupedTensors, order: Order) -> Symbols:
    """Stored symbols of a quantized group, uint8 [n]: first row of every matrix, second row of every matrix, ..."""
    matrices = np.stack([_unsigned(tensor) for tensor in grouped.tensors if isinstance(tensor, QuantizedTensor)])
    # [tensor, row, column] -> lines, tensors, positions
    return np.ascontiguousarray(matrices.transpose((2, 0, 1) if order == Order.COLUMNS else (1, 0, 2))).reshape(-1)


def _unsigned(tensor: QuantizedTensor) -> Symbols:
    """Symbols of one matrix from 0 up, rows permuted; uint8 [rows, columns]."""
    if tensor.kind == Kind.BINARY:
        unsigned = (tensor.symbols > 0).astype(np.uint8)
    else:
        low, _ = symbol_range(tensor.kind, tensor.bits)
        unsigned = (tensor.symbols.astype(np.int16) - low).astype(np.uint8)
    matrix = unsigned.reshape(matrix_shape(tensor.shape))
    return matrix if tensor.row_order is None else matrix[tensor.row_order]


def _to_parts(grouped: GroupedTensors) -> list[Symbols]:
    encoding = grouped.encoding
    if encoding.kind == Kind.FLOAT:
        values = [tensor.values.astype(np.float32) for tensor in grouped.tensors if isinstance(tensor, PlainTensor)]
        return [floats.to_planes(_concatenate(values, np.float32), encoding.float_type)]
    quantized = [tensor for tensor in grouped.tensors if isinstance(tensor, QuantizedTensor)]
    scales = _concatenate([tensor.scales.astype(np.float32) for tensor in quantized], np.float32)
    parts = [
        _symbols(grouped, encoding.order),
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
    tensor_set = group.tensor_sets[0]
    shape = tensor_set.shape
    rows, columns = matrix_shape(shape)
    count = num_scales(shape, encoding.group_size)
    if encoding.order == Order.COLUMNS:
        matrices = symbols.reshape(columns, tensor_set.num_tensors, rows).transpose(1, 2, 0)
    else:
        matrices = symbols.reshape(rows, tensor_set.num_tensors, columns).transpose(1, 0, 2)
    tensors: list[Tensor] = []
    scale_at = row_at = 0
    for name, matrix in zip(tensor_set.names(), matrices, strict=True):
        row_order = None
        if orders is not None:
            row_order = orders[row_at : row_at + rows]
            if not np.array_equal(np.sort(row_order), np.arange(rows)):
                raise ArtifactError(ErrorCode.PERMUTATION, f"{name}: the row order is no permutation")
        tensors.append(
            QuantizedTensor(
                symbols=_signed(matrix, encoding, row_order).reshape(shape),
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
        scale_at, row_at = scale_at + count, row_at + rows
    return tensors


def _signed(
    matrix: Symbols, encoding: Encoding, row_order: npt.NDArray[np.uint16] | None
) -> npt.NDArray[np.int8] | npt.NDArray[np.uint8]:
    """Undo `_unsigned`: symbols [rows, columns], int8 (uint8 for ASYMMETRIC)."""
    if row_order is not None:
        unpermuted = np.empty_like(matrix, order="C")
        unpermuted[row_order] = matrix
        matrix = unpermuted
    matrix = np.ascontiguousarray(matrix)
    if encoding.kind == Kind.ASYMMETRIC:
        return matrix
    if encoding.kind == Kind.BINARY:
        return (matrix * np.uint8(2) - np.uint8(1)).view(np.int8)
    low, _ = symbol_range(encoding.kind, encoding.bits)
    return (matrix - np.uint8(-low)).view(np.int8)
