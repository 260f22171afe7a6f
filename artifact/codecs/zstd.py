"""Codec 2: a single Zstandard frame (RFC 8878) of one byte per symbol.

The frame states its content size, has no dictionary and no checksum. The decompressor allocates whatever size a frame
states, so the header is read here first and compared with the manifest.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import zstandard

from artifact.errors import ArtifactError, ErrorCode

# Level 19 takes more than a second for each megabyte; what is larger is coded better by the entropy coder anyway.
_LEVEL: Final = 19
_LEVEL_OF_LARGE: Final = 6
_LARGE_SYMBOLS: Final = 1 << 20
_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_CONTENT_SIZE_BYTES: Final = (0, 2, 4, 8)
_MAX_WINDOW_BYTES: Final = 1 << 27


def encode(symbols: npt.NDArray[np.uint8]) -> bytes:
    """One frame of uint8 [n] symbols; the same bytes for the same library version."""
    level = _LEVEL if len(symbols) <= _LARGE_SYMBOLS else _LEVEL_OF_LARGE
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)
    return compressor.compress(symbols.tobytes())


def decode(data: memoryview, num_symbols: int) -> npt.NDArray[np.uint8]:
    """Symbols, uint8 [num_symbols]. Raises ArtifactError(ZSTD_HEADER, ZSTD_SIZE, ZSTD_FRAME)."""
    content_bytes = _content_size(data)
    if content_bytes != num_symbols:
        raise ArtifactError(ErrorCode.ZSTD_SIZE, f"a zstd frame states {content_bytes} bytes, expected {num_symbols}")
    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        raw = decompressor.decompress(data, max_output_size=num_symbols, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ArtifactError(ErrorCode.ZSTD_FRAME, f"a zstd frame is damaged: {error}") from error
    if len(raw) != num_symbols:
        raise ArtifactError(ErrorCode.ZSTD_FRAME, f"a zstd frame holds {len(raw)} bytes, expected {num_symbols}")
    return np.frombuffer(raw, dtype=np.uint8)


def _content_size(data: memoryview) -> int:
    """Content size stated in the frame header, whose every rule is checked."""
    if len(data) < 6 or bytes(data[:4]) != _MAGIC:
        raise ArtifactError(ErrorCode.ZSTD_HEADER, "a zstd stream lacks the frame magic")
    descriptor = data[4]
    single_segment = descriptor >> 5 & 1
    if descriptor & 0b0001_1111:
        raise ArtifactError(
            ErrorCode.ZSTD_HEADER, "a zstd frame has a dictionary, a checksum or reserved bits in its descriptor"
        )
    size_bytes = _CONTENT_SIZE_BYTES[descriptor >> 6]
    if single_segment and size_bytes == 0:
        size_bytes = 1
    if size_bytes == 0:
        raise ArtifactError(ErrorCode.ZSTD_HEADER, "a zstd frame does not state its content size")
    position = 5
    if not single_segment:
        exponent, mantissa = data[position] >> 3, data[position] & 7
        window_bytes = (1 << (10 + exponent)) * (8 + mantissa) // 8
        if window_bytes > _MAX_WINDOW_BYTES:
            raise ArtifactError(ErrorCode.ZSTD_HEADER, f"a zstd frame asks for a window of {window_bytes} bytes")
        position += 1
    if len(data) < position + size_bytes:
        raise ArtifactError(ErrorCode.ZSTD_HEADER, "a zstd frame ends inside its header")
    size = int.from_bytes(data[position : position + size_bytes], "little")
    return size + 256 if size_bytes == 2 else size
