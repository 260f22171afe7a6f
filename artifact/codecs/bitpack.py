"""Codec 1: symbols in as few whole bits as their alphabet needs, without a model.

Alphabets of 2^b symbols take b bits each, lowest bit first, from the lowest bit of the first byte on. The alphabet of 3
symbols packs five to a byte, in base 3, first symbol in the lowest place. Unused room in the last byte is zero.
"""

import numpy as np
import numpy.typing as npt

from artifact.errors import ArtifactError, ErrorCode

Symbols = npt.NDArray[np.uint8]

_TRITS_PER_BYTE = 5
_POWERS_OF_3 = np.array([1, 3, 9, 27, 81], dtype=np.uint16)
_TRITS_OF_BYTE = (np.arange(243)[:, None] // _POWERS_OF_3 % 3).astype(np.uint8)


def num_bytes(num_symbols: int, alphabet: int) -> int:
    """Coded length in bytes."""
    if alphabet == 3:
        return -(-num_symbols // _TRITS_PER_BYTE)
    return -(-num_symbols * (alphabet.bit_length() - 1) // 8)


def encode(symbols: Symbols, alphabet: int) -> bytes:
    """Pack uint8 [n] symbols, each below `alphabet` (3 or a power of two up to 256)."""
    if alphabet == 3:
        padded = np.zeros(num_bytes(len(symbols), 3) * _TRITS_PER_BYTE, dtype=np.uint16)
        padded[: len(symbols)] = symbols
        return (padded.reshape(-1, _TRITS_PER_BYTE) @ _POWERS_OF_3).astype(np.uint8).tobytes()
    bits = np.unpackbits(symbols[:, None], axis=1, count=alphabet.bit_length() - 1, bitorder="little")
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def decode(data: memoryview, num_symbols: int, alphabet: int) -> Symbols:
    """Symbols, uint8 [num_symbols]. Raises ArtifactError(BITPACK_LENGTH, BITPACK_PADDING, SYMBOL_RANGE)."""
    expected = num_bytes(num_symbols, alphabet)
    if len(data) != expected:
        raise ArtifactError(ErrorCode.BITPACK_LENGTH, f"{len(data)} bytes of packed symbols, expected {expected}")
    packed = np.frombuffer(data, dtype=np.uint8)
    if alphabet == 3:
        if packed.size and int(packed.max()) >= 3**_TRITS_PER_BYTE:
            raise ArtifactError(ErrorCode.SYMBOL_RANGE, "a byte of packed ternary symbols exceeds 242")
        symbols = _TRITS_OF_BYTE[packed].reshape(-1)
        if symbols[num_symbols:].any():
            raise ArtifactError(ErrorCode.BITPACK_PADDING, "unused room in the last byte is not zero")
        return symbols[:num_symbols]
    width = alphabet.bit_length() - 1
    used_bits = num_symbols * width % 8
    if used_bits and packed[-1] >> used_bits:
        raise ArtifactError(ErrorCode.BITPACK_PADDING, "unused room in the last byte is not zero")
    return _unpack(packed, num_symbols, width)


def _unpack(packed: Symbols, num_symbols: int, width: int) -> Symbols:
    # Eight symbols take `width` bytes: shift whole columns of such blocks instead of spreading single bits, which would
    # take eight bytes of memory per symbol.
    num_blocks = -(-num_symbols // 8)
    padded = np.zeros(num_blocks * width, dtype=np.uint8)
    padded[: len(packed)] = packed
    blocks = padded.reshape(num_blocks, width)
    symbols = np.empty((num_blocks, 8), dtype=np.uint8)
    mask = np.uint16((1 << width) - 1)
    for index in range(8):
        byte, shift = divmod(index * width, 8)
        word = blocks[:, byte].astype(np.uint16)
        if shift + width > 8:
            word |= blocks[:, byte + 1].astype(np.uint16) << np.uint16(8)
        symbols[:, index] = (word >> np.uint16(shift)) & mask
    return symbols.reshape(-1)[:num_symbols]
