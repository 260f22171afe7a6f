"""The schedule's clock: one number per step, the share of the run that is over.

Taken on rank 0, broadcast, and recorded with the step's metrics. Everything that depends on time (learning rates,
averaging, the end of the run) reads this number and nothing else, so that a run can be replayed from its record.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from model.errors import InputError
from trainer.config import TrainingConfig


class Clock:
    """Share of the budget used: steps over `max_steps` or counted seconds over the budget, whichever is larger.

    Args:
        elapsed_seconds: counted before this process started (a resumed run).
        replay: fractions of steps 0, 1, ... of an earlier run; beyond its end the clock reads 1.
    """

    def __init__(self, config: TrainingConfig, elapsed_seconds: float = 0.0, replay: list[float] | None = None) -> None:
        self._max_steps = config.max_steps
        self._budget_seconds = max(config.budget_seconds - config.reserve_seconds, 0.0)
        self._elapsed_seconds = elapsed_seconds
        self._running_since: float | None = None
        self._replay = replay

    def start(self) -> None:
        """Count from now on."""
        self._running_since = time.perf_counter()

    def stop(self) -> None:
        """Stop counting (validation, checkpoints)."""
        self._elapsed_seconds = self.elapsed_seconds
        self._running_since = None

    @property
    def elapsed_seconds(self) -> float:
        since = self._running_since
        return self._elapsed_seconds + (time.perf_counter() - since if since is not None else 0.0)

    def fraction(self, step: int) -> float:
        """The clock before step number `step` (0, 1, ...); the run ends when it reaches 1."""
        if self._replay is not None:
            return self._replay[step] if step < len(self._replay) else 1.0
        fraction = step / self._max_steps
        if self._budget_seconds:
            fraction = max(fraction, self.elapsed_seconds / self._budget_seconds)
        return min(fraction, 1.0)


def recorded_clock(metrics_file: Path) -> list[float]:
    """The clock of every step of an earlier run, from its metrics.jsonl.

    A resumed run writes some steps twice; the last record of a step counts.

    Raises:
        InputError: there is no such file, a line of it is cut short, or it misses a step.
    """
    if not metrics_file.is_file():
        raise InputError(f"{metrics_file}: no such file, so there is no clock to replay")
    fractions: dict[int, float] = {}
    for number, line in enumerate(metrics_file.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            raise InputError(f"{metrics_file}: line {number} is not JSON, so the clock can't be replayed") from None
        if "clock" in row:
            fractions[row["step"] - 1] = row["clock"]
    if sorted(fractions) != list(range(len(fractions))):
        raise InputError(f"{metrics_file}: the clock of some step is missing")
    return [fractions[step] for step in range(len(fractions))]
