"""Counts of adjacent tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.text.shards import TokenStream

CHUNK_TOKENS = 1 << 20


def count_bigrams(stream: TokenStream, vocab_size: int, max_tokens: int) -> npt.NDArray[np.int64]:
    """How often each token follows each other one at the start of a stream: [V, V], row first token, column next.

    Args:
        max_tokens: pairs counted at most.
    """
    num_pairs = min(stream.num_tokens - 1, max_tokens)
    counts = np.zeros(vocab_size * vocab_size, np.int64)
    for start in range(0, num_pairs, CHUNK_TOKENS):
        tokens = stream.read(start, min(CHUNK_TOKENS, num_pairs - start) + 1).astype(np.int64)
        pairs, found = np.unique(tokens[:-1] * vocab_size + tokens[1:], return_counts=True)
        counts[pairs] += found
    return counts.reshape(vocab_size, vocab_size)
