"""The score sheet: losses of targets, committed once and never changed, and the guard of score-first adaptation.

`Scores.commit` fixes the losses of targets; committing one twice raises. `Scores.permit_update` must be called with
the targets that an update is about to learn from, and raises unless all of them are committed. So a program that learns
from a target before its score is fixed cannot run to its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from eval.coverage import Coverage, CoverageError
from eval.plan import Span
from eval.ranks import Ranks
from eval.tally import Tally
from model.errors import InputError


class UpdateBeforeCommitError(AssertionError):
    """Weights would be updated from a target whose score is not fixed yet: a fault of the evaluator."""


class Scores:
    """Losses in nats of `num_targets` targets, filled batch by batch.

    Losses stay on the device until `flush`, so that committing doesn't wait for it; a committed tensor is a copy
    that nothing else can write to.
    """

    def __init__(self, num_targets: int, dtype: type[np.floating] = np.float32) -> None:
        self.coverage = Coverage(num_targets)
        self.nats: npt.NDArray[np.floating] = np.zeros(num_targets, dtype=dtype)
        self._committed_elsewhere: npt.NDArray[np.bool_] = np.zeros(num_targets, dtype=np.bool_)
        self._pending: list[tuple[torch.Tensor, tuple[Span, ...]]] = []

    def commit(self, nll: torch.Tensor, spans: Sequence[Span]) -> None:
        """Fixes the losses of the spans' targets, standing in `nll` [rows, columns]; spans count targets globally."""
        for span in spans:
            self.coverage.mark(span.target, span.target + span.length)
        self._pending.append((nll.detach().clone(), tuple(spans)))

    def permit_update(self, spans: Iterable[Span]) -> None:
        """Raises UpdateBeforeCommitError unless every target of the spans has been committed."""
        for span in spans:
            part = slice(span.target, span.target + span.length)
            if not (self.coverage.scored[part] | self._committed_elsewhere[part]).all():
                last = span.target + span.length - 1
                raise UpdateBeforeCommitError(
                    f"update from targets {span.target}..{last} before their scores are fixed"
                )

    def exchange_commitments(self, ranks: Ranks, start: int, end: int) -> None:
        """Tells all ranks which targets of [start, end) have been committed here; called by every rank."""
        if ranks.size == 1:
            return
        counts = self.coverage.scored[start:end].astype(np.float32)
        ranks.sum_array(counts)
        if (counts > 1).any():
            raise CoverageError(f"target {start + int(np.argmax(counts > 1))} was scored by two processes")
        self._committed_elsewhere[start:end] = counts > 0

    def gather(self, ranks: Ranks) -> None:
        """Puts the losses of all ranks together, on every rank; raises CoverageError if two scored the same target."""
        if ranks.size == 1:
            return
        self.exchange_commitments(ranks, 0, len(self.nats))
        ranks.sum_array(self.nats)
        self.coverage.scored[:] = self._committed_elsewhere

    def flush(self) -> float:
        """Moves committed losses to the host; returns their sum in nats. Raises InputError if one isn't finite."""
        total = 0.0
        for nll, spans in self._pending:
            values = nll.cpu().numpy()
            for span in spans:
                part = values[span.row, span.column : span.column + span.length]
                if not np.isfinite(part).all():
                    target = span.target + int(np.argmin(np.isfinite(part)))
                    raise InputError(f"the loss of target {target} is {part[target - span.target]}: broken weights?")
                self.nats[span.target : span.target + span.length] = part
                total += float(part.sum(dtype=np.float64))
        self._pending.clear()
        return total

    def tally(self, target_bytes: npt.NDArray[np.integer]) -> Tally:
        """Sums of everything scored; `target_bytes` [num_targets]. In stream order, so independent of the batches."""
        scored = self.coverage.scored
        num_bytes = int(target_bytes[scored].sum(dtype=np.int64))
        return Tally(float(self.nats.sum(dtype=np.float64)), num_bytes, int(np.count_nonzero(scored)))
