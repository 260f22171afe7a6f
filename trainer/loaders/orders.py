"""Orders of training samples: pure functions from a step to positions in the token stream (methods.md 7.4).

A sample is `sequence_tokens + 1` tokens from its position on (the last is only a target). A step has `num_sequences` of
them, whatever the number of ranks; every order can compute any step's positions from its seed alone. Where a published
loader depends on its eight ranks, eight is a constant here.
"""

from __future__ import annotations

import functools
import math
from typing import Protocol

import numpy as np

from model.errors import InputError

NUM_PUBLISHED_RANKS = 8
_COPRIME_STEPS = 1800  # global batches over which the coprime order's mixing changes
_SNAPSHOT_STEPS = 256


class SampleOrder(Protocol):
    """Which samples a step trains on."""

    num_samples: int
    """Samples before some are seen again."""

    def positions(self, step: int) -> np.ndarray:
        """Where the step's samples begin in the token stream, int64 [num_sequences]."""


class SequentialOrder:
    """The baseline's: the stream from its start, cut into sequences, around and around."""

    def __init__(self, shard_tokens: list[int], sequence_tokens: int, num_sequences: int) -> None:
        self._sequence_tokens, self._num_sequences = sequence_tokens, num_sequences
        self.num_samples = _at_least_one((sum(shard_tokens) - 1) // sequence_tokens, sequence_tokens)

    def positions(self, step: int) -> np.ndarray:
        numbers = step * self._num_sequences + np.arange(self._num_sequences)
        return numbers % self.num_samples * self._sequence_tokens


class ShuffledOrder:
    """Ranks 12 to 17: each of eight owners has every eighth shard and draws its windows without replacement.

    An epoch of an owner cuts each of its shards into windows from a random phase and visits all of them in random
    order. (The published loader draws a shard with probability proportional to the windows left in it, then that
    shard's next window of a random permutation: this is a random permutation of all its windows.) A shard gives the
    same number of windows in every epoch, whatever the phase. Fewer than eight shards have as many owners.
    """

    def __init__(self, shard_tokens: list[int], sequence_tokens: int, num_sequences: int, seed: int) -> None:
        self._sequence_tokens, self._seed = sequence_tokens, seed
        self._shards = _Windows(shard_tokens, sequence_tokens)
        self.num_samples = int(self._shards.counts.sum())
        num_owners = min(NUM_PUBLISHED_RANKS, len(self._shards.counts), num_sequences)
        self._owned = [np.arange(owner, len(self._shards.counts), num_owners) for owner in range(num_owners)]
        self._shares = [len(share) for share in np.array_split(np.arange(num_sequences), num_owners)]
        self._epoch = functools.lru_cache(2 * num_owners)(self._compute_epoch)

    def positions(self, step: int) -> np.ndarray:
        return np.concatenate([self._draws(owner, step * share, share) for owner, share in enumerate(self._shares)])

    def _draws(self, owner: int, first: int, count: int) -> np.ndarray:
        """Draws [first, first + count) of an owner, counted from the run's start."""
        epoch_windows = int(self._shards.counts[self._owned[owner]].sum())
        parts = []
        while count:
            epoch, offset = divmod(first, epoch_windows)
            part = self._epoch(owner, epoch)[offset : offset + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _compute_epoch(self, owner: int, epoch: int) -> np.ndarray:
        random = np.random.default_rng((self._seed, owner, epoch))
        windows = []
        for shard in self._owned[owner]:
            phase = int(random.integers(self._sequence_tokens))
            blocks = np.arange(self._shards.counts[shard])
            windows.append(self._shards.starts[shard] + phase + blocks * self._sequence_tokens)
        return random.permutation(np.concatenate(windows))


class CoprimeStrideOrder:
    """Ranks 18 to 22: shards are walked with strides coprime to their number of blocks, many shards in every batch.

    In each of its epochs a shard has a random phase, first block and stride, and every block is visited once. A batch
    takes one window from each of several shards drawn by weight and the rest multinomially; weights are (windows
    left) ** alpha with alpha from 0.9 down to 0.5 while the number of shards mixed grows from 8 to 64, both over the
    first 1,800 batches. (The published seed is a hash of path strings; here it is the run's, so that a folder can be
    moved.)

    What is left in a shard depends on all earlier batches. They are replayed, from the nearest of the snapshots that
    are kept every 256 steps: 0.1 ms a step.
    """

    def __init__(self, shard_tokens: list[int], sequence_tokens: int, num_sequences: int, seed: int) -> None:
        self._sequence_tokens, self._num_sequences, self._seed = sequence_tokens, num_sequences, seed
        self._shards = _Windows(shard_tokens, sequence_tokens)
        self.num_samples = int(self._shards.counts.sum())
        self._snapshots = {0: np.zeros(len(self._shards.counts), np.int64)}  # windows taken of each shard, by step
        self._latest = 0, self._snapshots[0]
        self._walk = functools.lru_cache(4 * len(self._shards.counts))(self._compute_walk)

    def positions(self, step: int) -> np.ndarray:
        taken = self._taken_before(step)
        found = np.empty(self._num_sequences, np.int64)
        for slot, shard in enumerate(self._draw_shards(step, taken).tolist()):
            epoch, number = divmod(int(taken[shard]), int(self._shards.counts[shard]))
            phase, first, stride = self._walk(shard, epoch)
            block = (first + number * stride) % int(self._shards.counts[shard])
            found[slot] = self._shards.starts[shard] + phase + block * self._sequence_tokens
            taken[shard] += 1
        self._latest = step + 1, taken
        return found

    def _taken_before(self, step: int) -> np.ndarray:
        """Windows taken of each shard before a step, an array of the caller's own."""
        snapshots = [*list(self._snapshots.items()), self._latest]  # a copy: the loader's thread may be adding one
        at, known = max((entry for entry in snapshots if entry[0] <= step), key=lambda entry: entry[0])
        taken = known.copy()
        while at < step:
            taken += np.bincount(self._draw_shards(at, taken), minlength=len(taken))
            at += 1
            if at % _SNAPSHOT_STEPS == 0:
                self._snapshots[at] = taken.copy()
        return taken

    def _draw_shards(self, step: int, taken: np.ndarray) -> np.ndarray:
        """The shard of each sample of a batch; shards take turns."""
        random = np.random.default_rng((self._seed, step))
        progress = min(step / _COPRIME_STEPS, 1.0)
        left = self._shards.counts - taken % self._shards.counts
        weights = left ** (0.9 - 0.4 * progress)
        weights /= weights.sum()
        most = round(NUM_PUBLISHED_RANKS + progress * (8 * NUM_PUBLISHED_RANKS - NUM_PUBLISHED_RANKS))
        num_mixed = min(most, len(left), self._num_sequences)
        chosen = random.choice(len(left), num_mixed, replace=False, p=weights)
        shares = 1 + random.multinomial(self._num_sequences - num_mixed, weights[chosen] / weights[chosen].sum())
        turns = np.concatenate([np.arange(share) for share in shares])
        return np.repeat(chosen, shares)[np.argsort(turns, kind="stable")]

    def _compute_walk(self, shard: int, epoch: int) -> tuple[int, int, int]:
        """(phase, first block, stride) of a shard in one of its epochs."""
        random = np.random.default_rng((self._seed, shard, epoch, 1))
        num_blocks = int(self._shards.counts[shard])
        phase, first = int(random.integers(self._sequence_tokens)), int(random.integers(num_blocks))
        stride = 1
        while num_blocks > 1 and (stride := int(random.integers(1, num_blocks))):
            if math.gcd(stride, num_blocks) == 1:
                break
        return phase, first, stride


class PackedOrder:
    """Ranks 1 to 11: contiguous rows in the order of the stream, documents packed as they come. Not shuffled.

    Each shard is read from its first BOS in spans of eight rows (of one batch's rows, where eight does not divide
    them) of `sequence_tokens + 1` tokens; a tail shorter than a span is dropped. Around and around.
    """

    def __init__(self, shard_tokens: list[int], first_bos: list[int], sequence_tokens: int, num_sequences: int) -> None:
        self._num_sequences = num_sequences
        self._row_tokens = sequence_tokens + 1
        self._span_rows = NUM_PUBLISHED_RANKS if num_sequences % NUM_PUBLISHED_RANKS == 0 else num_sequences
        usable = np.array(shard_tokens, np.int64) - np.array(first_bos, np.int64)
        num_rows = usable // (self._span_rows * self._row_tokens) * self._span_rows
        self._row_ends = np.cumsum(num_rows)
        self._first_rows = self._row_ends - num_rows
        self._first_tokens = np.concatenate(([0], np.cumsum(shard_tokens)[:-1])) + np.array(first_bos, np.int64)
        self.num_samples = _at_least_one(int(self._row_ends[-1]), self._span_rows * self._row_tokens)

    def positions(self, step: int) -> np.ndarray:
        rows = (step * self._num_sequences + np.arange(self._num_sequences)) % self.num_samples
        shards = np.searchsorted(self._row_ends, rows, side="right")
        found: np.ndarray = self._first_tokens[shards] + (rows - self._first_rows[shards]) * self._row_tokens
        return found


class _Windows:
    """Whole windows per shard, wherever below `sequence_tokens` they begin; shards too short for one are left out."""

    def __init__(self, shard_tokens: list[int], sequence_tokens: int) -> None:
        lengths = np.array(shard_tokens, np.int64)
        counts = np.maximum(lengths - sequence_tokens, 0) // sequence_tokens
        starts = np.cumsum(lengths) - lengths
        self.counts, self.starts = counts[counts > 0], starts[counts > 0]
        _at_least_one(len(self.counts), 2 * sequence_tokens)


def _at_least_one(number: int, needed_tokens: int) -> int:
    if number < 1:
        raise InputError(f"training data: no shard holds the {needed_tokens} tokens that this data order needs")
    return number
