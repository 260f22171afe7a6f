"""The closed, numbered list of codecs."""

import numpy as np
import numpy.typing as npt

from artifact.codecs import bitpack, raw, zstd
from artifact.errors import ArtifactError, ErrorCode
from artifact.limits import EXPANSION_ALLOWANCE, EXPANSION_FACTOR
from artifact.schema import Codec

Symbols = npt.NDArray[np.uint8]

# For any part. RANS is for the symbols of quantized tensors only: its contexts need their lattice.
READABLE = (Codec.RAW, Codec.BITPACK, Codec.ZSTD)


def expands_too_far(num_bytes: int, num_symbols: int) -> bool:
    """Whether a part of `num_bytes` may not stand for `num_symbols` (see artifact.limits)."""
    return num_symbols > EXPANSION_ALLOWANCE + EXPANSION_FACTOR * num_bytes


def encode(codec: Codec, symbols: Symbols, alphabet: int) -> bytes:
    """Bytes of uint8 [n] symbols, each below `alphabet`."""
    if codec == Codec.RAW:
        return raw.encode(symbols)
    if codec == Codec.BITPACK:
        return bitpack.encode(symbols, alphabet)
    if codec == Codec.ZSTD:
        return zstd.encode(symbols)
    raise ArtifactError(ErrorCode.CODEC, f"no encoder for the codec {codec.name}")


def decode(codec: Codec, data: memoryview, num_symbols: int, alphabet: int) -> Symbols:
    """Inverse of `encode`: uint8 [num_symbols], every symbol below `alphabet` (else ArtifactError(SYMBOL_RANGE))."""
    if codec == Codec.BITPACK:
        symbols = bitpack.decode(data, num_symbols, alphabet)
    elif codec == Codec.ZSTD:
        symbols = zstd.decode(data, num_symbols)
    else:
        symbols = raw.decode(data, num_symbols)
    if symbols.size and int(symbols.max()) >= alphabet:
        raise ArtifactError(ErrorCode.SYMBOL_RANGE, f"symbol {int(symbols.max())} in an alphabet of {alphabet}")
    return symbols


def encode_smallest(symbols: Symbols, alphabet: int) -> tuple[Codec, bytes]:
    """The shortest coding of uint8 [n] symbols; of equally short ones the codec with the lowest number."""
    packed_bytes = bitpack.num_bytes(len(symbols), alphabet)
    coded = zstd.encode(symbols) if len(symbols) else b""
    if len(symbols) and len(coded) < packed_bytes and not expands_too_far(len(coded), len(symbols)):
        return Codec.ZSTD, coded
    codec = Codec.BITPACK if packed_bytes < len(symbols) else Codec.RAW
    return codec, encode(codec, symbols, alphabet)
