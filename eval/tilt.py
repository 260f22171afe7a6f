"""Causal n-gram tilt: tokens that have often followed the last few get more probability (methods.md 2.12).

For every position and each of a few orders, how often each token has followed the same context earlier in the stream
is counted. The highest order that is sure enough names a hint h, and the distribution becomes
p'(v) = p(v) exp(β 1[v = h]) / Z with Z = 1 + p(h) (e^β - 1), which sums to 1 and is chosen without looking at the
target.

Counting is exact up to collisions of 64-bit hashes. The published experts on words are not here: gated on the previous
token, as is legal, they have strength 0.

Shapes: N tokens of the stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from eval.config import TiltConfig

NO_HINT = -1
MULTIPLIER_SEED = 20240520


@dataclass(frozen=True)
class Hints:
    """One entry per target: the hinted token (NO_HINT: none), int64 [N - 1], and β, float32 [N - 1]."""

    tokens: npt.NDArray[np.int64]
    strengths: npt.NDArray[np.float32]


def find_hints(tokens: npt.NDArray[np.integer], config: TiltConfig) -> Hints:
    """Hints for every target; the hint of target i (token i + 1) depends on tokens 0..i alone."""
    num_targets = len(tokens) - 1
    hints = np.full(num_targets, NO_HINT, dtype=np.int64)
    strengths = np.zeros(num_targets, dtype=np.float32)
    for order, least, count in sorted(zip(config.orders, config.confidences, config.counts, strict=True)):
        best, confidence, seen = count_followers(tokens, order)
        sure = (confidence >= least) & (seen >= count)
        hints[sure] = best[sure]  # a higher order comes later and overrules
        strengths[sure] = config.strength * confidence[sure]
    return Hints(hints, strengths)


def count_followers(
    tokens: npt.NDArray[np.integer], order: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """What followed the last `order` tokens before, for every target.

    Returns, each [N - 1]: the token that followed most often (the first to reach its count), its share of the
    occurrences, and the number of occurrences, all over earlier positions only; token 0 and zeros where there are none.
    """
    stream = np.asarray(tokens).astype(np.uint64)
    best = np.zeros(len(stream) - 1, dtype=np.int64)
    share = np.zeros(len(stream) - 1)
    seen = np.zeros(len(stream) - 1, dtype=np.int64)
    if len(stream) <= order:
        return best, share, seen
    targets = stream[order:]
    contexts = _context_hashes(stream, order)
    group_starts, by_context = _grouped(contexts)
    earlier = np.arange(len(targets)) - group_starts  # occurrences of the context before, in by_context's order
    pair_starts, by_pair = _grouped(contexts * np.uint64(0x9E3779B97F4A7C15) ^ targets)
    pair_count = np.empty(len(targets), dtype=np.int64)
    pair_count[by_pair] = np.arange(len(targets)) - pair_starts + 1  # of the target itself, after it has been counted
    counts = pair_count[by_context]
    # A running maximum within each group: groups are lifted above one another so that one accumulate serves all.
    lift = group_starts * (int(counts.max()) + 1)
    running = np.maximum.accumulate(counts + lift) - lift
    is_first = np.append(True, group_starts[1:] != group_starts[:-1])
    raised = is_first | np.append(True, running[1:] > running[:-1])
    leader = np.maximum.accumulate(np.where(raised, np.arange(len(targets)), 0))
    rows = np.flatnonzero(earlier > 0)
    places = by_context[rows] + order - 1  # target i predicts token i + 1
    best[places] = targets[by_context[leader[rows - 1]]].astype(np.int64)
    seen[places] = earlier[rows]
    share[places] = running[rows - 1] / earlier[rows]
    return best, share, seen


def _context_hashes(stream: npt.NDArray[np.uint64], order: int) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of the `order` tokens before each of tokens order .. N - 1."""
    generator = np.random.default_rng(MULTIPLIER_SEED)
    hashes = np.zeros(len(stream) - order, dtype=np.uint64)
    for distance in range(order):
        multiplier = np.uint64(int(generator.integers(0, 2**63)) * 2 + 1)
        hashes ^= (stream[order - 1 - distance : len(stream) - 1 - distance] + np.uint64(1)) * multiplier
    return hashes


def _grouped(keys: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions sorted by key, then by time; and for each place in that order, where its key's run begins."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.append(True, ordered[1:] != ordered[:-1])
    starts = np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))
    return starts.astype(np.int64), order.astype(np.int64)


def tilted_nll(
    target_nll: torch.Tensor, hint_nll: torch.Tensor, is_hint: torch.Tensor, strength: torch.Tensor
) -> torch.Tensor:
    """The loss under the tilted distribution: nll + ln Z - β 1[target = hint].

    Args, all of one shape: the losses of the target and of the hinted token, whether the target is the hint, and β (0
    where there is no hint, which leaves the loss as it is).
    """
    log_z = torch.log1p(torch.exp(-hint_nll) * torch.expm1(strength))
    return target_nll + log_z - torch.where(is_hint, strength, 0.0)
