"""Loss curves of runs, and how two of them differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.errors import InputError

Curve = Mapping[int, float]
"""Training loss in nats by step, the first being 1."""


def read_curve(run_dir: Path) -> dict[int, float]:
    """The training loss of every step of a run; the last record of a step counts.

    Raises:
        InputError: the folder has no metrics.jsonl, or that holds no training loss.
    """
    file = run_dir / "metrics.jsonl"
    if not file.is_file():
        raise InputError(f"{file}: no such file, so there is no curve to compare")
    rows = (json.loads(line) for line in file.read_text().splitlines())
    curve = {row["step"]: row["train_loss"] for row in rows if "train_loss" in row}
    if not curve:
        raise InputError(f"{file}: holds no training loss")
    return dict(sorted(curve.items()))


@dataclass(frozen=True)
class CurveDifference:
    """Of two curves, over the steps that both have."""

    num_steps: int
    """Steps that both have."""
    first_different_step: int | None
    """None: bit-equal."""
    largest_nats: float
    largest_at_step: int | None
    """Step of the largest difference; None: bit-equal."""
    last_nats: float
    """Second minus first at the last step that both have."""
    same_length: bool

    @property
    def is_bit_equal(self) -> bool:
        return self.first_different_step is None and self.same_length


def difference(first: Curve, second: Curve) -> CurveDifference:
    """Compare step by step.

    Raises:
        InputError: the curves have no step in common.
    """
    steps = sorted(first.keys() & second.keys())
    if not steps:
        raise InputError("the two curves have no step in common")
    different = [step for step in steps if first[step] != second[step]]
    worst = max(different, key=lambda step: abs(second[step] - first[step]), default=None)
    return CurveDifference(
        num_steps=len(steps),
        first_different_step=different[0] if different else None,
        largest_nats=abs(second[worst] - first[worst]) if worst is not None else 0.0,
        largest_at_step=worst,
        last_nats=second[steps[-1]] - first[steps[-1]],
        same_length=first.keys() == second.keys(),
    )


def format_differences(differences: Mapping[str, CurveDifference]) -> str:
    """A table, one row for each named pair of curves."""
    rows = [("curve", "steps", "first different", "largest difference", "at step", "last step")]
    for name, d in differences.items():
        rows.append(
            (
                name,
                str(d.num_steps) + ("" if d.same_length else " (lengths differ)"),
                "bit-equal" if d.first_different_step is None else str(d.first_different_step),
                f"{d.largest_nats:.3g} nats",
                "-" if d.largest_at_step is None else str(d.largest_at_step),
                f"{d.last_nats:+.3g} nats",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
