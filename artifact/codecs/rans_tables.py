"""Static frequency tables of the entropy coder: choosing them, and their compact form in the stream.

A table gives each symbol a frequency out of 16,384. No frequency exceeds 16,320, so that every symbol costs at least
1/177 bit and a stream cannot stand for more symbols than the expansion rule allows.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from artifact.errors import ArtifactError, ErrorCode

TABLE_BITS: Final = 14
TOTAL: Final = 1 << TABLE_BITS
MAX_FREQUENCY: Final = TOTAL - 64

Frequencies = npt.NDArray[np.int64]


def from_counts(counts: Frequencies) -> Frequencies:
    """Frequencies of one context, int64 [alphabet] summing to 16,384, from symbol counts. Integer arithmetic only."""
    total = int(counts.sum())
    used = np.flatnonzero(counts)
    if len(used) <= 1:
        # The rest of the room goes to a neighbour that never comes.
        symbol = int(used[0]) if len(used) else 0
        frequencies = np.zeros_like(counts)
        frequencies[symbol] = MAX_FREQUENCY
        frequencies[symbol + 1 if symbol + 1 < len(counts) else symbol - 1] = TOTAL - MAX_FREQUENCY
        return frequencies
    frequencies = np.where(counts > 0, np.clip((counts * TOTAL + total // 2) // total, 1, MAX_FREQUENCY), 0)
    while (excess := int(frequencies.sum()) - TOTAL) != 0:
        # A step costs (or gains) about counts / frequency; scaled to integers so that ties fall the same everywhere.
        step = -1 if excess > 0 else 1
        allowed = (counts > 0) & (frequencies + step >= 1) & (frequencies + step <= MAX_FREQUENCY)
        worth = (counts << 20) // np.maximum(2 * frequencies + step, 1)
        worth = np.where(allowed, worth * -step, np.iinfo(np.int64).max)
        frequencies[int(np.argmin(worth))] += step
    return frequencies


def to_bytes(frequencies: Frequencies) -> bytes:
    """First and last used symbol, then the frequencies between them but for the last, as varints."""
    used = np.flatnonzero(frequencies)
    first, last = int(used[0]), int(used[-1])
    out = bytearray((first, last))
    for frequency in frequencies[first:last].tolist():
        if frequency >= 0x80:
            out.append(frequency & 0x7F | 0x80)
            out.append(frequency >> 7)
        else:
            out.append(frequency)
    return bytes(out)


def from_bytes(data: memoryview, position: int, alphabet: int) -> tuple[Frequencies, int]:
    """Inverse of `to_bytes`: (frequencies, position after the table). Raises ArtifactError(RANS_TABLE)."""
    if position + 2 > len(data):
        raise _error("ends early")
    first, last = data[position], data[position + 1]
    position += 2
    if not first < last < alphabet:
        raise _error(f"runs from symbol {first} to {last} in an alphabet of {alphabet}")
    frequencies = np.zeros(alphabet, dtype=np.int64)
    remaining = TOTAL
    for symbol in range(first, last):
        if position >= len(data):
            raise _error("ends early")
        frequency = data[position]
        position += 1
        if frequency >= 0x80:
            if position >= len(data):
                raise _error("ends early")
            high = data[position]
            position += 1
            if not 1 <= high < 0x80:
                raise _error("has a frequency that is not in its shortest form")
            frequency = frequency & 0x7F | high << 7
        if frequency > MAX_FREQUENCY or (frequency == 0 and symbol == first):
            raise _error(f"gives symbol {symbol} the frequency {frequency}")
        frequencies[symbol] = frequency
        remaining -= frequency
    if not 1 <= remaining <= MAX_FREQUENCY:
        raise _error(f"leaves the last symbol the frequency {remaining}")
    frequencies[last] = remaining
    return frequencies, position


# Costs of frequencies in units of 2**-16 bit: integers, so that sums and comparisons are the same on every machine.
_COSTS: Final = np.array(
    [0, *(round((TABLE_BITS - math.log2(frequency)) * 65536) for frequency in range(1, TOTAL))], dtype=np.int64
)


def cost(counts: Frequencies, frequencies: Frequencies) -> int:
    """Coded size of symbols with these counts, in units of 2**-16 bit."""
    return int((counts * _COSTS[frequencies]).sum())


def _error(what: str) -> ArtifactError:
    return ArtifactError(ErrorCode.RANS_TABLE, f"a frequency table {what}")
