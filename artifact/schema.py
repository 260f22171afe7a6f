"""The numbers of proto/artifact.proto as Python enumerations."""

from enum import IntEnum
from typing import Final

MAGIC: Final = b"ALBATRS\n"
VERSION: Final = 1


class Role(IntEnum):
    """What a tensor is for: itself, or a factor of a low-rank correction to the tensor of the same name."""

    WEIGHT = 0
    LOW_RANK_LEFT = 1
    LOW_RANK_RIGHT = 2


class Kind(IntEnum):
    """How the values of a tensor are represented."""

    FLOAT = 1
    SYMMETRIC = 2
    ASYMMETRIC = 3
    TERNARY = 4
    BINARY = 5


class FloatType(IntEnum):
    """How floating-point values (or scales) are stored. LOG8 is for scales only."""

    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3
    FLOAT8_E4M3 = 4
    LOG8 = 5


class Order(IntEnum):
    """Order of a group's symbols: by row number and then matrix, or by column number and then matrix."""

    ROWS = 0
    COLUMNS = 1


class Codec(IntEnum):
    """The closed list of codecs."""

    RAW = 0
    BITPACK = 1
    ZSTD = 2
    RANS = 3
    ZPAQ = 4
