"""The entropy coder: exact, close to the entropy, and better than it where input channels differ in scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.codecs import rans, rans_tables


def entropy_bytes(symbols: np.ndarray) -> float:
    counts = np.bincount(symbols.reshape(-1))
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def gaussian_symbols(rows: int, columns: int, spread: float, step: float = 0.371) -> np.ndarray:
    """Six-bit symbols of Gaussian columns whose log-scales have the standard deviation `spread`."""
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(rows, columns)) * np.exp(rng.normal(size=columns) * spread)
    scale = weight.std(axis=1, keepdims=True) * step
    return (np.clip(np.rint(weight / scale), -32, 31) + 32).astype(np.uint8)


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 50),
    st.sampled_from([2, 3, 4, 16, 64, 256]),
    st.floats(0.01, 1),
    st.integers(0, 2**32 - 1),
)
def test_roundtrip(lines: int, width: int, lanes: int, alphabet: int, spread: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=lines * width) * alphabet * spread + alphabet / 2
    symbols = np.clip(drawn, 0, alphabet - 1).astype(np.uint8)
    carried = rng.bytes(2 * lanes)
    lattice = rans.Lattice(lines, width, lanes)
    data = rans.encode(symbols, lattice, alphabet, carried)
    decoded, carried_back = rans.decode(memoryview(data), lattice, alphabet)
    assert np.array_equal(decoded, symbols)
    assert carried_back == carried


@pytest.mark.parametrize("symbol", [0, 17, 63])
def test_constant_symbols_cost_little_but_not_nothing(symbol: int) -> None:
    lattice = rans.Lattice(1000, 100, 10)
    data = rans.encode(np.full(100_000, symbol, np.uint8), lattice, 64, b"")
    assert np.array_equal(rans.decode(memoryview(data), lattice, 64)[0], np.full(100_000, symbol))
    assert 100_000 / 1416 * 0.9 < len(data) < 1000


def test_equal_columns_come_within_a_thousandth_of_the_entropy() -> None:
    symbols = gaussian_symbols(2048, 512, spread=0.0)
    lattice = rans.Lattice(2048, 512, 256)
    carried = bytes(range(256)) * 2
    data = rans.encode(symbols.reshape(-1), lattice, 64, carried)
    assert len(data) - len(carried) < 1.003 * entropy_bytes(symbols)


def test_columns_that_differ_cost_less_than_the_entropy() -> None:
    symbols = gaussian_symbols(2048, 512, spread=0.35)
    lattice = rans.Lattice(2048, 512, 256)
    data = rans.encode(symbols.reshape(-1), lattice, 64, bytes(512))
    assert len(data) - 512 < 0.97 * entropy_bytes(symbols)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=256))
def test_tables_sum_to_the_total_and_survive(values: list[int]) -> None:
    counts = np.array(values, dtype=np.int64)
    frequencies = rans_tables.from_counts(counts)
    assert frequencies.sum() == rans_tables.TOTAL
    assert frequencies.max() <= rans_tables.MAX_FREQUENCY
    assert (frequencies[counts > 0] >= 1).all()
    data = rans_tables.to_bytes(frequencies)
    back, position = rans_tables.from_bytes(memoryview(data), 0, len(values))
    assert position == len(data)
    assert np.array_equal(back, frequencies)


def test_tables_are_close_to_the_counts() -> None:
    counts = np.round(1e6 * np.exp(-0.5 * ((np.arange(64) - 32) / 2.7) ** 2)).astype(np.int64)
    share = counts[counts > 0] / counts.sum()
    ideal = -(counts[counts > 0] * np.log2(share)).sum()
    assert rans_tables.cost(counts, rans_tables.from_counts(counts)) / 65536 < 1.0002 * ideal
