"""Where documents begin in a packed row, as cumulative lengths for variable-length attention (methods.md 7.4, B.1)."""

from __future__ import annotations

import numpy as np

from model.text.tokenizer import BOS_ID

BUCKET = 64


def segment_starts(ids: np.ndarray, longest_segment: int) -> np.ndarray:
    """Positions in a row where attention starts anew, int64, ascending from 0: every BOS, and every `longest_segment`
    tokens of what follows one. `ids` [T]: a row of inputs.
    """
    starts = np.flatnonzero(ids == BOS_ID)
    if not len(starts) or starts[0] != 0:
        starts = np.concatenate(([0], starts))
    lengths = np.diff(starts, append=len(ids))
    pieces = -(-lengths // longest_segment)
    within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    found: np.ndarray = np.repeat(starts, pieces) + within * longest_segment
    return found


def cumulative_lengths(ids: np.ndarray, longest_segment: int, bucket: int = BUCKET) -> np.ndarray:
    """int32: the segment starts of a row, its length T, and T again up to a multiple of `bucket` entries.

    Rows with similar numbers of documents so have tensors of one shape, which compiled code wants; the segments at the
    end are empty.
    """
    boundaries = np.append(segment_starts(ids, longest_segment), len(ids))
    padded = np.full(-(-len(boundaries) // bucket) * bucket, len(ids), np.int32)
    padded[: len(boundaries)] = boundaries
    return padded
