"""A bitmap over all targets that makes scoring each of them exactly once a checked fact."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class CoverageError(AssertionError):
    """A target would be scored twice, or was never scored: a fault of the evaluator, never of the user's input."""


class Coverage:
    """Which of `num_targets` targets have been scored."""

    def __init__(self, num_targets: int) -> None:
        self.scored: npt.NDArray[np.bool_] = np.zeros(num_targets, dtype=np.bool_)

    def mark(self, start: int, end: int) -> None:
        """Marks targets [start, end) as scored; raises CoverageError if one already is or the range is not inside."""
        if not 0 <= start <= end <= len(self.scored):
            raise CoverageError(f"targets {start}..{end} lie outside the stream of {len(self.scored)} targets")
        part = self.scored[start:end]
        if part.any():
            raise CoverageError(f"target {start + int(np.argmax(part))} would be scored a second time")
        part[:] = True

    @property
    def num_scored(self) -> int:
        return int(np.count_nonzero(self.scored))

    def require_complete(self) -> None:
        """Raises CoverageError naming the first target that was never scored."""
        if not self.scored.all():
            missing = len(self.scored) - self.num_scored
            first = int(np.argmin(self.scored))
            raise CoverageError(f"{missing} of {len(self.scored)} targets were never scored; the first is {first}")
