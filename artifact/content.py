"""What an artifact holds, in memory: tensors as their stored symbols, configuration, tokenizer identity, code."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from artifact.errors import ArtifactError, ErrorCode
from artifact.limits import MAX_NAME_BYTES, MAX_NUM_DIMENSIONS, MAX_RANK
from artifact.schema import FloatType, Kind

Float32 = npt.NDArray[np.float32]

TENSOR_NAME: Final = re.compile(r"[A-Za-z0-9_./-]+", re.ASCII)


def content_error(message: str) -> ArtifactError:
    """The error for content that the format cannot hold."""
    return ArtifactError(ErrorCode.CONTENT, message)


def symbol_range(kind: Kind, bits: int) -> tuple[int, int]:
    """Smallest and largest symbol of a quantized kind; BINARY has only the two."""
    if kind == Kind.SYMMETRIC:
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if kind == Kind.ASYMMETRIC:
        return 0, (1 << bits) - 1
    return -1, 1


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of a tensor seen as a matrix: the last dimension is columns, 0-d and 1-d tensors are one row."""
    columns = shape[-1] if shape else 1
    rows = 1
    for dimension in shape[:-1]:
        rows *= dimension
    return rows, columns


def num_scales(shape: tuple[int, ...], group_size: int) -> int:
    """Scales of a quantized tensor: one per row, or one per `group_size` values of the flattened tensor."""
    rows, columns = matrix_shape(shape)
    if group_size == 0:
        return rows
    return -(-rows * columns // group_size)


@dataclass(frozen=True, eq=False)
class PlainTensor:
    """Values stored as floating-point numbers of `float_type` (by default the type of the array).

    `values` is float32 or float16 of any shape; every value must be finite and exactly representable in `float_type`
    (see `artifact.floats.round_to`). Raises ArtifactError(CONTENT).
    """

    values: npt.NDArray[np.float32] | npt.NDArray[np.float16]
    float_type: FloatType | None = None

    def __post_init__(self) -> None:
        types = {np.dtype(np.float32): FloatType.FLOAT32, np.dtype(np.float16): FloatType.FLOAT16}
        if self.values.dtype not in types:
            raise content_error(f"plain values are {self.values.dtype}, not float32 or float16")
        if self.float_type is None:
            object.__setattr__(self, "float_type", types[self.values.dtype])
        if self.float_type == FloatType.LOG8:
            raise content_error("log8 is a type of scales, not of values")
        _check_shape(self.values.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


@dataclass(frozen=True, eq=False)
class LowRank:
    """A correction `left @ right` to a quantized matrix [rows, columns]: left [rows, rank], right [rank, columns]."""

    left: "PlainTensor | QuantizedTensor"
    right: "PlainTensor | QuantizedTensor"

    def __post_init__(self) -> None:
        left, right = self.left.shape, self.right.shape
        if len(left) != 2 or len(right) != 2 or left[1] != right[0] or not 1 <= left[1] <= MAX_RANK:
            raise content_error(f"low-rank factors have the shapes {left} and {right}")
        for factor in (self.left, self.right):
            if isinstance(factor, QuantizedTensor) and factor.low_rank is not None:
                raise content_error("a low-rank factor has a correction of its own")


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Small integers with scales.

    symbols: [*shape] int8 (uint8 for ASYMMETRIC); SYMMETRIC -2^(bits-1)..2^(bits-1)-1, ASYMMETRIC 0..2^bits-1, TERNARY
    -1..1, BINARY -1 or 1. scales: [rows] or [num scales], float32 values that `scale_type` holds exactly. zero_points:
    uint8 like scales, ASYMMETRIC only. Value = symbol * scale, or (symbol - zero point) * scale.
    bits is 0 for TERNARY and BINARY. row_order: int [rows], the order in which rows are stored (a permutation), for
    compression only. scale_exponent: of LOG8 scales; the writer may choose another that holds the same scales.

    Raises ArtifactError(CONTENT).
    """

    symbols: npt.NDArray[np.int8] | npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32] | npt.NDArray[np.float16]
    bits: int
    kind: Kind = Kind.SYMMETRIC
    group_size: int = 0
    scale_type: FloatType = FloatType.FLOAT16
    scale_exponent: int = 0
    zero_points: npt.NDArray[np.uint8] | None = None
    row_order: npt.NDArray[np.integer[Any]] | None = None
    low_rank: LowRank | None = None

    def __post_init__(self) -> None:
        _check_shape(self.symbols.shape)
        self._check_kind()
        self._check_scales()
        rows, columns = matrix_shape(self.shape)
        order = self.row_order
        if order is not None and not np.array_equal(np.sort(order), np.arange(rows)):
            raise content_error(f"row_order is not a permutation of {rows} rows")
        correction = self.low_rank
        if correction is not None and (
            len(self.shape) != 2 or (correction.left.shape[0], correction.right.shape[1]) != (rows, columns)
        ):
            raise content_error(f"the low-rank correction does not fit a tensor of shape {self.shape}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.symbols.shape

    def _check_kind(self) -> None:
        integer_kind = self.kind in (Kind.SYMMETRIC, Kind.ASYMMETRIC)
        if self.kind == Kind.FLOAT or (not 2 <= self.bits <= 8 if integer_kind else self.bits != 0):
            raise content_error(f"{self.bits} bits for the kind {self.kind.name}; 2 to 8 for integers, else 0")
        if self.symbols.dtype != (np.uint8 if self.kind == Kind.ASYMMETRIC else np.int8):
            raise content_error(f"symbols of kind {self.kind.name} are {self.symbols.dtype}")
        low, high = symbol_range(self.kind, self.bits)
        if self.symbols.size and not (low <= int(self.symbols.min()) and int(self.symbols.max()) <= high):
            raise content_error(f"a symbol lies outside {low}..{high}")
        if self.kind == Kind.BINARY and not np.all(self.symbols):
            raise content_error("a binary symbol is 0")

    def _check_scales(self) -> None:
        count = num_scales(self.shape, self.group_size)
        if self.scale_type == FloatType.FLOAT8_E4M3 or not 0 <= self.group_size < 1 << 32:
            raise content_error(f"scale type {self.scale_type.name}, group size {self.group_size}")
        if self.scales.size != count:
            raise content_error(f"{self.scales.size} scales for a tensor of shape {self.shape}, expected {count}")
        if (self.zero_points is not None) != (self.kind == Kind.ASYMMETRIC):
            raise content_error("zero points go with the kind ASYMMETRIC and with no other")
        points = self.zero_points
        if points is not None and (
            points.dtype != np.uint8
            or points.size != count
            or (count and int(points.max()) > symbol_range(self.kind, self.bits)[1])
        ):
            raise content_error(f"zero points must be {count} numbers of {self.bits} bits")


Tensor = PlainTensor | QuantizedTensor


@dataclass(frozen=True, eq=False)
class Content:
    """Everything that goes into an artifact.

    configuration: a JSON object holding the fields that differ from their defaults. tokenizer_sha256: 64 hex digits.
    tensors by name. ties: name -> name of the stored tensor that it shares. code: bytes that readers never execute.
    """

    configuration: Mapping[str, Any]
    tokenizer_sha256: str
    tensors: Mapping[str, Tensor]
    code: bytes = b""
    ties: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.tokenizer_sha256):
            raise content_error(f"tokenizer_sha256 is {self.tokenizer_sha256!r}, not 64 hex digits")
        for name in (*self.tensors, *self.ties):
            if not TENSOR_NAME.fullmatch(name) or len(name) > MAX_NAME_BYTES:
                raise content_error(f"tensor name {name!r}; at most {MAX_NAME_BYTES} letters, digits and _ . / -")
        for name, target in self.ties.items():
            if name in self.tensors or target not in self.tensors:
                raise content_error(f"{name} cannot be tied to {target}")


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) > MAX_NUM_DIMENSIONS:
        raise content_error(f"a tensor of {len(shape)} dimensions")
