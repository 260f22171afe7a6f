"""Codec 3: interleaved range-asymmetric-numeral-system coding with contexts, vectorized over lanes.

Symbols form a lattice of lines. A line holds one symbol of each of `width` positions (for weights stored by rows: line
i is row i of every matrix of the group side by side, and a position is one column of one matrix). How large the symbols
at a position have been on earlier lines tells how large the next will be: input channels differ in scale. Nothing is
stored for it but a few thresholds and one frequency table per context.

Lanes are independent coder states that share one sequence of 16-bit words. Each carries 16 bits of the parts that
follow in its first state, which would otherwise be wasted. proto/FORMAT.md section 7 is the specification.
"""

import itertools
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from artifact.codecs import rans_tables
from artifact.codecs.rans_tables import TABLE_BITS, TOTAL
from artifact.errors import ArtifactError, ErrorCode
from artifact.limits import BASE_RANS_STEPS, RANS_SYMBOLS_PER_STEP

Symbols = npt.NDArray[np.uint8]
Unsigned = npt.NDArray[np.uint32]

MAX_CONTEXTS: Final = 32
MAX_LANES: Final = 1 << 14
MAX_LINES: Final = 1 << 16

# Means of magnitudes have 8 fractional bits; a magnitude is at most 128.
_MEAN_SCALE: Final = 256
_MAX_MEAN: Final = 128 * _MEAN_SCALE
# The prior mean counts as so many lines. 4 is within 0.02 % of the best for positions that differ little or much.
_PRIOR_LINES: Final = 4
_MIN_STATE: Final = 1 << 16
_SLOT_MASK: Final = TOTAL - 1
_COUNTED_AT_ONCE: Final = 1 << 20


@dataclass(frozen=True)
class Lattice:
    """Arrangement of a part's symbols: lines of `width` symbols, decoded `lanes` at a time."""

    num_lines: int
    width: int
    lanes: int

    @property
    def num_symbols(self) -> int:
        return self.num_lines * self.width

    @property
    def num_steps(self) -> int:
        return self.num_lines * -(-self.width // self.lanes)


class StepBudget:
    """Steps that the groups of one file may still take, group after group: time in proportion to what is decoded."""

    def __init__(self) -> None:
        self._remaining = BASE_RANS_STEPS * RANS_SYMBOLS_PER_STEP

    def allow(self, lattice: Lattice) -> bool:
        """Whether the steps of a lattice still fit."""
        return self._remaining + self._change(lattice) >= 0

    def spend(self, lattice: Lattice) -> None:
        """Take the steps of a lattice off."""
        self._remaining += self._change(lattice)

    @staticmethod
    def _change(lattice: Lattice) -> int:
        return lattice.num_symbols - lattice.num_steps * RANS_SYMBOLS_PER_STEP


@dataclass(frozen=True)
class _Model:
    """Prior mean of magnitudes, thresholds between contexts, one frequency table per context [K, alphabet]."""

    prior: int
    thresholds: tuple[int, ...]
    frequencies: npt.NDArray[np.int64]

    def context_of_mean(self) -> Symbols:
        """Context of every possible mean, uint8 [_MAX_MEAN + 1]."""
        means = np.arange(_MAX_MEAN + 1)
        return np.searchsorted(np.array(self.thresholds), means, side="right").astype(np.uint8)

    def to_bytes(self) -> bytes:
        head = bytes((len(self.thresholds) + 1,)) + self.prior.to_bytes(2, "little")
        thresholds = np.array(self.thresholds, dtype="<u2").tobytes()
        return head + thresholds + b"".join(rans_tables.to_bytes(table) for table in self.frequencies)


def magnitudes(alphabet: int) -> Unsigned:
    """Magnitude of every symbol: its distance from the middle of the alphabet; uint32 [256]."""
    return np.abs(np.arange(256) - alphabet // 2).astype(np.uint32)


class _RunningMeans:
    """Means of the magnitudes seen at each position on the lines so far."""

    def __init__(self, width: int, alphabet: int, prior: int) -> None:
        self._magnitudes = magnitudes(alphabet)
        self._sums = np.full(width, prior * _PRIOR_LINES, dtype=np.uint32)
        self._num_lines = 0

    def means(self) -> Unsigned:
        """uint32 [width], scaled by _MEAN_SCALE, rounded down."""
        return self._sums // np.uint32(self._num_lines + _PRIOR_LINES)

    def add(self, line: Symbols) -> None:
        self._sums += self._magnitudes[line] << np.uint32(8)
        self._num_lines += 1


def decode(data: memoryview, lattice: Lattice, alphabet: int) -> tuple[Symbols, bytes]:
    """(symbols uint8 [n], the 2 * lanes bytes carried). Raises ArtifactError(RANS_HEADER, RANS_TABLE, RANS_STREAM)."""
    model, position = _read_model(data, alphabet)
    lanes = lattice.lanes
    if len(data) < position + 4 * lanes or (len(data) - position) % 2:
        raise ArtifactError(ErrorCode.RANS_STREAM, f"{len(data)} bytes cannot hold {lanes} states and whole words")
    states = np.frombuffer(data, dtype="<u4", count=lanes, offset=position).astype(np.uint32)
    if int(states.min()) < _MIN_STATE:
        raise ArtifactError(ErrorCode.RANS_STREAM, "a state is too small")
    words = np.frombuffer(data, dtype="<u2", offset=position + 4 * lanes).astype(np.uint32)
    symbols, next_word = _decode_lines(states, words, lattice, alphabet, model)
    if next_word != len(words) or np.any(states >> np.uint32(16) != 1):
        raise ArtifactError(ErrorCode.RANS_STREAM, "the words of a stream do not match its symbols")
    return symbols, states.astype("<u2").tobytes()


def _decode_lines(
    states: Unsigned, words: Unsigned, lattice: Lattice, alphabet: int, model: _Model
) -> tuple[Symbols, int]:
    """Symbols and the number of words used; `states` end as the encoder began them."""
    symbol_of_slot, intervals = _decoding_tables(model.frequencies)
    context_of_mean = model.context_of_mean().astype(np.uint32)
    running = _RunningMeans(lattice.width, alphabet, model.prior)
    symbols = np.empty(lattice.num_symbols, dtype=np.uint8)
    low_bits, next_word = np.uint32(_SLOT_MASK), 0
    for start in range(0, lattice.num_symbols, lattice.width):
        line = symbols[start : start + lattice.width]
        contexts = context_of_mean.take(running.means())
        slot_tables, interval_tables = contexts << np.uint32(TABLE_BITS), contexts << np.uint32(8)
        for lane_start in range(0, len(line), lattice.lanes):
            chunk = line[lane_start : lane_start + lattice.lanes]
            active = states[: len(chunk)]
            slot = active & low_bits
            symbol_of_slot.take(slot_tables[lane_start : lane_start + lattice.lanes] | slot, out=chunk, mode="clip")
            interval = intervals.take(interval_tables[lane_start : lane_start + lattice.lanes] | chunk)
            active >>= np.uint32(TABLE_BITS)
            active *= interval & np.uint32(0xFFFF)
            active += slot
            active -= interval >> np.uint32(16)
            hungry = np.flatnonzero(active < _MIN_STATE)
            if next_word + len(hungry) > len(words):
                raise ArtifactError(ErrorCode.RANS_STREAM, "a stream ends before its symbols do")
            refill = words[next_word : next_word + len(hungry)]
            active[hungry] = active.take(hungry) << np.uint32(16) | refill
            next_word += len(hungry)
        running.add(line)
    return symbols, next_word


def _decoding_tables(frequencies: npt.NDArray[np.int64]) -> tuple[Symbols, Unsigned]:
    """(symbol of every slot, uint8 [K * 16384]; frequency | first slot << 16 of every symbol, uint32 [K * 256])."""
    num_contexts, alphabet = frequencies.shape
    everyone = np.tile(np.arange(alphabet, dtype=np.uint8), num_contexts)
    symbol_of_slot = np.repeat(everyone, frequencies.reshape(-1))
    first_slots = np.cumsum(frequencies, axis=1) - frequencies
    intervals = np.zeros((num_contexts, 256), dtype=np.uint32)
    intervals[:, :alphabet] = frequencies | first_slots << 16
    return symbol_of_slot, intervals.reshape(-1)


def _read_model(data: memoryview, alphabet: int) -> tuple[_Model, int]:
    if len(data) < 3:
        raise ArtifactError(ErrorCode.RANS_HEADER, "a stream ends in its header")
    num_contexts, prior = data[0], int.from_bytes(data[1:3], "little")
    position = 3 + 2 * (num_contexts - 1)
    if not 1 <= num_contexts <= MAX_CONTEXTS or prior > _MAX_MEAN or position > len(data):
        raise ArtifactError(ErrorCode.RANS_HEADER, f"{num_contexts} contexts, prior {prior}")
    thresholds = tuple(np.frombuffer(data[3:position], dtype="<u2").tolist())
    if any(a >= b for a, b in zip((0, *thresholds), thresholds, strict=False)):
        raise ArtifactError(ErrorCode.RANS_HEADER, f"thresholds {thresholds} are not ascending")
    tables = []
    for _ in range(num_contexts):
        table, position = rans_tables.from_bytes(data, position, alphabet)
        tables.append(table)
    return _Model(prior, thresholds, np.stack(tables)), position


def encode(symbols: Symbols, lattice: Lattice, alphabet: int, carried: bytes) -> bytes:
    """Code uint8 [n] symbols, n > 0, carrying up to 2 * lanes bytes in the lanes' first states."""
    contexts, model = _choose_model(symbols, lattice, alphabet)
    words, states = _encode_lines(symbols, contexts, lattice, model, carried)
    return model.to_bytes() + states.astype("<u4").tobytes() + words.tobytes()


def _encode_lines(
    symbols: Symbols, contexts: Symbols, lattice: Lattice, model: _Model, carried: bytes
) -> tuple[npt.NDArray[np.uint16], Unsigned]:
    """Words in the order in which a decoder reads them, and the states from which it starts."""
    alphabet = model.frequencies.shape[1]
    frequencies = model.frequencies.reshape(-1).astype(np.uint32)
    first_slots = (np.cumsum(model.frequencies, axis=1) - model.frequencies).reshape(-1).astype(np.uint32)
    payload = np.frombuffer(carried.ljust(2 * lattice.lanes, b"\0"), dtype="<u2")
    states = payload.astype(np.uint32) | np.uint32(_MIN_STATE)
    pieces: list[npt.NDArray[np.uint16]] = []
    for start in reversed(range(0, lattice.num_symbols, lattice.width)):
        end = start + lattice.width
        for chunk_start in reversed(range(start, end, lattice.lanes)):
            chunk = slice(chunk_start, min(chunk_start + lattice.lanes, end))
            index = contexts[chunk].astype(np.intp) * alphabet + symbols[chunk]
            frequency = frequencies[index]
            active = states[: len(index)]
            full = np.flatnonzero(active >= frequency << np.uint32(32 - TABLE_BITS))
            pieces.append(active[full].astype("<u2"))
            active[full] >>= np.uint32(16)
            quotient, remainder = np.divmod(active, frequency)
            states[: len(index)] = (quotient << np.uint32(TABLE_BITS)) + remainder + first_slots[index]
    pieces.append(np.empty(0, dtype="<u2"))
    pieces.reverse()
    return np.concatenate(pieces), states


def _choose_model(symbols: Symbols, lattice: Lattice, alphabet: int) -> tuple[Symbols, _Model]:
    """Contexts uint8 [n] of the symbols, and the model. Integer arithmetic only: the same choice everywhere."""
    total = sum(
        int(magnitudes(alphabet)[symbols[start : start + _COUNTED_AT_ONCE]].sum(dtype=np.int64))
        for start in range(0, len(symbols), _COUNTED_AT_ONCE)
    )
    prior = total * _MEAN_SCALE // len(symbols)
    means = _all_means(symbols, lattice, alphabet, prior)
    fine = _Model(prior, _thresholds(_histogram(means)), np.zeros((0, alphabet), np.int64))
    num_fine = len(fine.thresholds) + 1
    context_of_mean = fine.context_of_mean()
    counts = np.zeros(num_fine * alphabet, dtype=np.int64)
    for start in range(0, len(symbols), _COUNTED_AT_ONCE):
        chunk = slice(start, start + _COUNTED_AT_ONCE)
        index = context_of_mean[means[chunk]].astype(np.intp) * alphabet + symbols[chunk]
        counts += np.bincount(index, minlength=len(counts))
    firsts, merged = _merge(counts.reshape(num_fine, alphabet))
    thresholds = tuple(fine.thresholds[first - 1] for first in firsts[1:])
    model = _Model(prior, thresholds, np.stack([rans_tables.from_counts(row) for row in merged]))
    return model.context_of_mean()[means], model


def _merge(counts: npt.NDArray[np.int64]) -> tuple[list[int], list[npt.NDArray[np.int64]]]:
    """Merge neighbouring contexts for as long as that makes the stream shorter, tables counted.

    counts: [K, alphabet]. Returns the first of the old contexts, and the counts, of each new one.
    """
    firsts, groups = list(range(len(counts))), list(counts)
    costs = [_coded_cost(group) for group in groups]
    merged_costs = [_coded_cost(a + b) for a, b in itertools.pairwise(groups)]
    while merged_costs:
        gains = [costs[i] + costs[i + 1] - merged_costs[i] for i in range(len(merged_costs))]
        best = max(range(len(gains)), key=gains.__getitem__)
        if gains[best] <= 0:
            break
        groups[best : best + 2] = [groups[best] + groups[best + 1]]
        costs[best : best + 2] = [merged_costs[best]]
        del firsts[best + 1]
        neighbours = [
            _coded_cost(groups[i] + groups[i + 1]) for i in range(max(best - 1, 0), min(best + 1, len(groups) - 1))
        ]
        merged_costs[max(best - 1, 0) : best + 2] = neighbours
    return firsts, groups


def _coded_cost(counts: npt.NDArray[np.int64]) -> int:
    """Symbols and table of one context, in units of 2**-16 bit."""
    frequencies = rans_tables.from_counts(counts)
    table_bits = 8 * (len(rans_tables.to_bytes(frequencies)) + 2)  # and a threshold
    return rans_tables.cost(counts, frequencies) + (table_bits << 16)


def _all_means(symbols: Symbols, lattice: Lattice, alphabet: int, prior: int) -> npt.NDArray[np.uint16]:
    """The running mean that a decoder will have for every symbol, uint16 [n]."""
    running = _RunningMeans(lattice.width, alphabet, prior)
    means = np.empty(lattice.num_symbols, dtype=np.uint16)
    for start in range(0, lattice.num_symbols, lattice.width):
        line = symbols[start : start + lattice.width]
        means[start : start + lattice.width] = running.means()
        running.add(line)
    return means


def _histogram(means: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """How often each mean occurs, int64 [_MAX_MEAN + 1]; in pieces, since bincount makes 64-bit copies."""
    histogram = np.zeros(_MAX_MEAN + 1, dtype=np.int64)
    for start in range(0, len(means), _COUNTED_AT_ONCE):
        histogram += np.bincount(means[start : start + _COUNTED_AT_ONCE], minlength=_MAX_MEAN + 1)
    return histogram


def _thresholds(histogram: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """Thresholds that put about equally many symbols into each of many contexts, to be merged."""
    total = int(histogram.sum())
    num_contexts = max(1, min(MAX_CONTEXTS, total // 4096))
    below = np.cumsum(histogram) - histogram
    targets = np.arange(1, num_contexts) * total // num_contexts
    candidates = np.unique(np.searchsorted(below, targets, side="left"))
    return tuple(int(value) for value in candidates if 0 < value <= _MAX_MEAN and 0 < below[value] < total)
