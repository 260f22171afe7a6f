"""Storage types of floating-point values: rounding, bytes, and back to float32 (proto/FORMAT.md section 6).

Bytes are little endian and split into planes: first the lowest byte of every value, then the next, so that an entropy
coder sees like beside like.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from artifact.errors import ArtifactError, ErrorCode
from artifact.schema import FloatType

Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

NUM_BYTES: Final[dict[FloatType, int]] = {
    FloatType.FLOAT32: 4,
    FloatType.FLOAT16: 2,
    FloatType.BFLOAT16: 2,
    FloatType.FLOAT8_E4M3: 1,
    FloatType.LOG8: 1,
}

# LOG8: sixteen steps to the octave. The float32 values nearest to 2**(i/16), as bit patterns so that no reader's pow
# function matters.
_LOG8_MANTISSA_BITS: Final = (
    0x3F800000, 0x3F85AAC3, 0x3F8B95C2, 0x3F91C3D3, 0x3F9837F0, 0x3F9EF532, 0x3FA5FED7, 0x3FAD583F,
    0x3FB504F3, 0x3FBD08A4, 0x3FC5672A, 0x3FCE248C, 0x3FD744FD, 0x3FE0CCDF, 0x3FEAC0C7, 0x3FF5257D,
)  # fmt: skip
LOG8_MIN_EXPONENT: Final = -126
LOG8_MAX_EXPONENT: Final = 112


def log8_table(exponent: int) -> Float32:
    """The 256 scales of LOG8 with a given base exponent: T[c & 15] * 2**(exponent + (c >> 4)), float32 [256]."""
    mantissas = np.array(_LOG8_MANTISSA_BITS, dtype=np.uint32).view(np.float32)
    codes = np.arange(256)
    table: Float32 = np.ldexp(mantissas[codes & 15], exponent + (codes >> 4)).astype(np.float32)
    return table


def _float8_table() -> Float32:
    codes = np.arange(256)
    exponent, fraction = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, np.ldexp(fraction / 8.0, -6), np.ldexp(1 + fraction / 8.0, exponent - 7))
    magnitude[codes & 127 == 127] = np.nan
    return np.where(codes >= 128, -magnitude, magnitude).astype(np.float32)


FLOAT8_E4M3_TABLE: Final[Float32] = _float8_table()


def round_to(values: Float32, float_type: FloatType, log8_exponent: int = 0) -> Float32:
    """Nearest values (ties to even) that `float_type` can store, as float32 of the same shape.

    Values beyond the largest finite one saturate for FLOAT8_E4M3 and become infinite for the others. LOG8 takes
    positive values and rounds to the nearest in the logarithm, saturating at both ends of the table.
    """
    values = np.asarray(values, dtype=np.float32)
    if float_type == FloatType.FLOAT32:
        return values
    if float_type == FloatType.FLOAT16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if float_type == FloatType.BFLOAT16:
        bits = values.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
        return np.asarray(np.where(np.isfinite(values), rounded.view(np.float32), values))
    if float_type == FloatType.FLOAT8_E4M3:
        table = FLOAT8_E4M3_TABLE[:127]
        magnitude = np.minimum(np.abs(values), table[-1])
        upper = np.clip(np.searchsorted(table, magnitude), 1, 126)
        below, above = magnitude - table[upper - 1], table[upper] - magnitude
        # The code of an even neighbour has its lowest bit clear.
        code = np.where((above < below) | ((above == below) & (upper % 2 == 0)), upper, upper - 1)
        return np.asarray(np.copysign(table[code], values), dtype=np.float32)
    table = log8_table(log8_exponent)
    boundaries = np.sqrt(table[:-1].astype(np.float64) * table[1:].astype(np.float64))
    return np.asarray(table[np.searchsorted(boundaries, values)], dtype=np.float32)


def to_planes(values: Float32, float_type: FloatType, log8_exponent: int = 0) -> Bytes:
    """Stored bytes of values that `float_type` holds exactly: uint8 [NUM_BYTES * n], lowest bytes first.

    Raises ArtifactError(CONTENT) when a value is not finite or not representable.
    """
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    if not np.isfinite(flat).all():
        raise ArtifactError(ErrorCode.CONTENT, "a value is not finite")
    if float_type in (FloatType.LOG8, FloatType.FLOAT8_E4M3):
        table = log8_table(log8_exponent) if float_type == FloatType.LOG8 else FLOAT8_E4M3_TABLE
        order = np.argsort(table[:127] if float_type == FloatType.FLOAT8_E4M3 else table, kind="stable")
        codes = order[np.clip(np.searchsorted(table[order], np.abs(flat)), 0, len(order) - 1)].astype(np.uint8)
        if float_type == FloatType.FLOAT8_E4M3:
            codes |= np.signbit(flat).astype(np.uint8) << np.uint8(7)
        exact = from_planes(codes, float_type, log8_exponent)
        planes = codes
    elif float_type == FloatType.FLOAT16:
        with np.errstate(over="ignore"):
            half = flat.astype("<f2")
        exact, planes = half.astype(np.float32), _split(half.view(np.uint8), 2)
    elif float_type == FloatType.BFLOAT16:
        upper = (flat.view(np.uint32) >> np.uint32(16)).astype("<u2")
        exact, planes = (upper.astype(np.uint32) << np.uint32(16)).view(np.float32), _split(upper.view(np.uint8), 2)
    else:
        exact, planes = flat, _split(flat.astype("<f4").view(np.uint8), 4)
    if not np.array_equal(exact.view(np.uint32), flat.view(np.uint32)):
        raise ArtifactError(ErrorCode.CONTENT, f"a value has no exact {float_type.name.lower()} representation")
    return planes


def from_planes(planes: Bytes, float_type: FloatType, log8_exponent: int = 0) -> Float32:
    """Inverse of `to_planes`: float32 [n]. Raises ArtifactError(NOT_FINITE) for infinities and NaN."""
    if float_type == FloatType.LOG8:
        return log8_table(log8_exponent)[planes]
    if float_type == FloatType.FLOAT8_E4M3:
        values = FLOAT8_E4M3_TABLE[planes]
    else:
        joined = np.ascontiguousarray(planes.reshape(NUM_BYTES[float_type], -1).T)
        if float_type == FloatType.FLOAT16:
            values = joined.view("<f2").reshape(-1).astype(np.float32)
        elif float_type == FloatType.BFLOAT16:
            values = (joined.view("<u2").reshape(-1).astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            values = joined.view("<f4").reshape(-1).astype(np.float32)
    if not np.isfinite(values).all():
        raise ArtifactError(ErrorCode.NOT_FINITE, "a stored value is not finite")
    return values


def _split(data: Bytes, num_bytes: int) -> Bytes:
    return np.ascontiguousarray(data.reshape(-1, num_bytes).T).reshape(-1)
