"""Codec 0: one byte per symbol."""

import numpy as np
import numpy.typing as npt

from artifact.errors import ArtifactError, ErrorCode


def encode(symbols: npt.NDArray[np.uint8]) -> bytes:
    """Bytes of symbols, uint8 [n]."""
    return symbols.tobytes()


def decode(data: memoryview, num_symbols: int) -> npt.NDArray[np.uint8]:
    """Symbols, uint8 [num_symbols]. Raises ArtifactError(RAW_LENGTH)."""
    if len(data) != num_symbols:
        raise ArtifactError(ErrorCode.RAW_LENGTH, f"{len(data)} bytes hold {num_symbols} raw symbols")
    return np.frombuffer(data, dtype=np.uint8)
