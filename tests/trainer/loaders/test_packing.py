import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.loaders.packing import cumulative_lengths, segment_starts


def row(num_tokens: int, bos: list[int]) -> np.ndarray:
    ids = np.full(num_tokens, 7)
    ids[bos] = 1
    return ids


def test_segments_of_the_reference():
    # methods.md B.1
    found = cumulative_lengths(row(120, [7, 8, 40, 100]), 24)
    assert found.dtype == np.int32
    assert found.tolist() == [0, 7, 8, 32, 40, 64, 88, 100] + [120] * 56


@settings(max_examples=200, deadline=None)
@given(
    num_tokens=st.integers(1, 90),
    bos=st.lists(st.integers(0, 89), max_size=12),
    longest=st.integers(1, 40),
    bucket=st.integers(1, 70),
)
def test_segments_by_walking_the_row(num_tokens, bos, longest, bucket):
    ids = row(num_tokens, [position for position in bos if position < num_tokens])
    starts, since = [], 0
    for position, token in enumerate(ids):
        if position == 0 or token == 1:
            since = position
        if (position - since) % longest == 0:
            starts.append(position)
    assert segment_starts(ids, longest).tolist() == starts
    padded = cumulative_lengths(ids, longest, bucket)
    assert len(padded) % bucket == 0
    assert len(padded) - bucket < len(starts) + 1 <= len(padded)
    assert padded.tolist() == starts + [num_tokens] * (len(padded) - len(starts))
