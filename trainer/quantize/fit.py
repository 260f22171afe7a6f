"""Fit to a byte cap: the quantizer's rate chosen so that the file lands just under it.

One number sets the rate: the step of every row (`step_factor`), or with allocation what a megabyte must buy. A search
on estimated sizes finds it; real encodings, of which a search needs two or three, correct the estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from artifact.content import Tensor
from trainer.quantize import size
from trainer.quantize.config import QuantizationConfig
from trainer.quantize.pruning import prune_to_fit
from trainer.quantize.quantizer import Quantizer, ignore

SLACK_BYTES = 4096
_MAX_TRIALS = 24
_MAX_MEASUREMENTS = 6
_STEP_OCTAVES = 6.0
_PRICE_OCTAVES = 20.0
"""How far the search goes from the settings' own step, in factors of two of the step, either way."""


@dataclass(frozen=True)
class Fitted:
    """What a search came to: the settings, their tensors and the bytes of the whole file."""

    config: QuantizationConfig
    tensors: dict[str, Tensor]
    num_bytes: int


def fit(
    quantizer: Quantizer,
    config: QuantizationConfig,
    max_bytes: int,
    file_bytes: Callable[[Mapping[str, Tensor]], int],
    log: Callable[[str], None] = ignore,
) -> Fitted:
    """Tensors whose file takes at most `max_bytes` and at least SLACK_BYTES less.

    If even the smallest steps give a smaller file, that file; if even the largest give a larger one, that. Every trial
    is logged. The same input takes the same path.

    Args:
        file_bytes: the size of the whole file, by really encoding it.
    """
    search = _Search(quantizer, config, max_bytes, file_bytes, log)
    found = search.run()
    if config.pruning.selective and found.num_bytes > max_bytes:
        tensors = prune_to_fit(found.tensors, file_bytes, max_bytes)
        return replace(found, tensors=tensors, num_bytes=file_bytes(tensors))
    return found


class _Search:
    """A bracket on the logarithm of the step, found by growing moves and narrowed by interpolation."""

    def __init__(
        self,
        quantizer: Quantizer,
        config: QuantizationConfig,
        max_bytes: int,
        file_bytes: Callable[[Mapping[str, Tensor]], int],
        log: Callable[[str], None],
    ) -> None:
        self._quantizer, self._config, self._max_bytes = quantizer, config, max_bytes
        self._file_bytes, self._log = file_bytes, log
        self._target = max_bytes - SLACK_BYTES // 2
        self._unestimated = 0
        """Real minus estimated bytes: code, container, what the estimate misses."""
        self._reach = _PRICE_OCTAVES if config.allocation.enabled else _STEP_OCTAVES
        self._estimates: dict[float, int] = {}
        self._latest: tuple[float, QuantizationConfig, dict[str, Tensor]] | None = None

    def run(self) -> Fitted:
        found, measured = self._measure(0.0), 0.0
        for _ in range(_MAX_MEASUREMENTS):
            if self._max_bytes - SLACK_BYTES <= found.num_bytes <= self._max_bytes:
                return found
            octaves = self._solve()
            if octaves == measured:
                break  # an end of the range
            found, measured = self._measure(octaves), octaves
        return found

    def _solve(self) -> float:
        """The octaves at which the corrected estimate meets the target, or the end of the range nearest to it."""
        bracket = self._bracket()
        if isinstance(bracket, float):
            return bracket
        fine, coarse = bracket
        for trial in range(_MAX_TRIALS):
            above, below = self._excess(fine), self._excess(coarse)
            # Interpolation; every third trial halves the bracket, so that a bend cannot hold one end forever.
            share = 0.5 if trial % 3 == 2 else min(max(above / max(above - below, 1), 0.02), 0.98)
            middle = fine + share * (coarse - fine)
            excess = self._excess(middle)
            if abs(excess) <= SLACK_BYTES // 4 or coarse - fine < 1e-5:
                return middle
            fine, coarse = (middle, coarse) if excess > 0 else (fine, middle)
        return coarse

    def _bracket(self) -> tuple[float, float] | float:
        """Octaves with estimates above and at most at the target; a number if the range has no such pair."""
        known = sorted(self._estimates)
        above = [octaves for octaves in known if self._excess(octaves) > 0]
        below = [octaves for octaves in known if self._excess(octaves) <= 0]
        weights = sum(array.size for array in self._quantizer.arrays.values() if array.ndim > 1)
        move = 8 * max(abs(self._excess(known[0])), SLACK_BYTES) / max(weights, 1)
        moves = 0
        while not above or not below:
            edge = max(above) + move if above else min(below) - move
            edge = min(max(edge, -self._reach), self._reach)
            (above if self._excess(edge) > 0 else below).append(edge)
            if abs(edge) == self._reach and not (above and below):
                return edge
            moves += 1
            # What is left to go, and some more; growing moves where sizes hardly follow.
            move = max(12 * abs(self._excess(edge)) / max(weights, 1), 2 * move if moves > 1 else 0.001)
        coarse = min(octaves for octaves in below)
        fine = max((octaves for octaves in above if octaves < coarse), default=min(above))
        return fine, coarse

    def _excess(self, octaves: float) -> int:
        """Estimated bytes over the target."""
        if octaves not in self._estimates:
            self._tensors(octaves)
            estimate = self._estimates[octaves] + self._unestimated
            self._log(f"fit: steps x {2.0**octaves:.4f}: about {estimate:,} bytes")
        return self._estimates[octaves] + self._unestimated - self._target

    def _tensors(self, octaves: float) -> tuple[QuantizationConfig, dict[str, Tensor]]:
        if self._latest is None or self._latest[0] != octaves:
            config = with_steps_times(self._config, 2.0**octaves)
            self._latest = octaves, config, self._quantizer.quantize(config, self._log)
            self._estimates[octaves] = size.estimate_bytes(self._latest[2], self._quantizer.device)
        return self._latest[1:]

    def _measure(self, octaves: float) -> Fitted:
        config, tensors = self._tensors(octaves)
        num_bytes = self._file_bytes(tensors)
        self._unestimated = num_bytes - self._estimates[octaves]
        under = self._max_bytes - num_bytes
        self._log(f"fit: steps x {2.0**octaves:.4f}: {num_bytes:,} bytes, {under:,} under the cap")
        return Fitted(config, tensors, num_bytes)


def with_steps_times(config: QuantizationConfig, factor: float) -> QuantizationConfig:
    """The settings with every row's step multiplied."""
    if config.allocation.enabled:
        price = min(max(config.allocation.price_nats_per_megabyte * factor**2, 1e-9), 1e9)  # steps go with its root
        return replace(config, allocation=replace(config.allocation, price_nats_per_megabyte=price))
    return replace(config, step_factor=min(max(config.step_factor * factor, 2**-8), 2**8))
