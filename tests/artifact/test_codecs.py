"""Codecs: what goes in comes out, at the length that FORMAT.md says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.codecs import bitpack, registry, zstd
from artifact.schema import Codec

ALPHABETS = [2, 3, 4, 8, 16, 32, 64, 128, 256]


@given(st.sampled_from(ALPHABETS), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_roundtrip(alphabet: int, num_symbols: int, seed: int) -> None:
    symbols = np.random.default_rng(seed).integers(0, alphabet, num_symbols).astype(np.uint8)
    for codec in registry.READABLE:
        data = registry.encode(codec, symbols, alphabet)
        assert np.array_equal(registry.decode(codec, memoryview(data), num_symbols, alphabet), symbols)


def test_bitpack_by_hand() -> None:
    assert bitpack.encode(np.array([1, 2, 3, 4, 5], np.uint8), 8) == bytes((0b11_010_001, 0b0_101_100_0))
    assert bitpack.encode(np.array([2, 0, 1, 2, 1, 2], np.uint8), 3) == bytes((2 + 9 + 2 * 27 + 81, 2))
    assert bitpack.encode(np.array([1, 0, 1], np.uint8), 2) == bytes((0b101,))


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_bitpack_takes_the_bits_of_the_alphabet(alphabet: int) -> None:
    symbols = np.random.default_rng(0).integers(0, alphabet, 1000).astype(np.uint8)
    expected = 200 if alphabet == 3 else 1000 * int(np.log2(alphabet)) // 8
    assert len(bitpack.encode(symbols, alphabet)) == expected


def test_zstd_of_a_large_array() -> None:
    symbols = np.random.default_rng(0).integers(0, 5, 300_000).astype(np.uint8)
    data = zstd.encode(symbols)
    assert len(data) < 120_000
    assert np.array_equal(zstd.decode(memoryview(data), symbols.size), symbols)


def test_the_smallest_codec_wins_and_ties_go_to_the_lowest_number() -> None:
    uniform = np.random.default_rng(0).integers(0, 16, 10_000).astype(np.uint8)
    assert registry.encode_smallest(uniform, 16)[0] == Codec.BITPACK
    assert registry.encode_smallest(np.zeros(0, np.uint8), 16) == (Codec.RAW, b"")
    repeated = np.tile(np.arange(16, dtype=np.uint8), 600)
    assert registry.encode_smallest(repeated, 16)[0] == Codec.ZSTD
