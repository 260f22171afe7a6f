"""Experiment trackers beside metrics.jsonl: TensorBoard, Weights & Biases and CSV files, by DeepSpeed's monitor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = tuple[str, float, int]
"""Name, value and training step, as DeepSpeed's monitors take them."""


@dataclass(frozen=True)
class TrackerConfig:
    """Which trackers a run writes to; none by default."""

    tensorboard: bool = False
    """Event files under tensorboard/ in the run folder."""
    csv: bool = False
    """One file a metric under csv/ in the run folder."""
    wandb: str | None = None
    """Project of Weights & Biases; whose account, and whether offline, its own settings say."""

    @property
    def enabled(self) -> bool:
        return self.tensorboard or self.csv or self.wandb is not None

    def deepspeed_settings(self, run_dir: Path) -> dict[str, Any]:
        """The monitors' sections of DeepSpeed's configuration."""
        settings: dict[str, Any] = {}
        if self.tensorboard:
            settings["tensorboard"] = {"enabled": True, "output_path": str(run_dir / "tensorboard"), "job_name": ""}
        if self.csv:
            settings["csv_monitor"] = {"enabled": True, "output_path": str(run_dir / "csv"), "job_name": ""}
        if self.wandb is not None:
            settings["wandb"] = {"enabled": True, "project": self.wandb, "group": run_dir.name}
        return settings


def events(row: Mapping[str, Any]) -> list[Event]:
    """A row of metrics.jsonl as events: `val_bpb` becomes val/bpb, `train_loss` train/loss, others train/NAME."""
    step, kind = int(row["step"]), "val" if "val_bpb" in row else "train"
    return [
        (f"{kind}/{name.removeprefix(f'{kind}_')}", float(value), step)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float)
    ]
