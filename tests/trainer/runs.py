"""Whole runs in real processes, for tests."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from trainer import checkpoint as checkpoints

WORKER = Path(__file__).parent / "train_worker.py"
ROOT = WORKER.parent.parent.parent
TRAINING = {
    "sequence_tokens": 32,
    "batch_tokens": 256,
    "micro_batch_tokens": 64,
    "max_steps": 20,
    "budget_seconds": 0,
    "warmdown_fraction": 0.5,
    "average_horizon": 0.2,
    "gradient_clip_norm": 1.0,
    "checkpoint_every_steps": 10,
}


def start(job: dict[str, Any], num_ranks: int = 1) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(job)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(num_ranks)
    ]


def run(job: dict[str, Any], num_ranks: int = 1) -> Path:
    processes = start(job, num_ranks)
    outputs = [p.communicate(timeout=240)[0].decode() for p in processes]
    assert all(p.returncode == 0 for p in processes), "\n".join(outputs)
    return Path(job["run_dir"])


def rows(run_dir: Path, key: str = "train_loss") -> dict[int, Any]:
    parsed = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row[key] for row in parsed if key in row}


def end_of(run_dir: Path) -> checkpoints.Checkpoint:
    """The newest checkpoint of a run."""
    newest, skipped = checkpoints.newest_valid(run_dir / "checkpoints")
    assert newest is not None
    assert not skipped
    return checkpoints.load(newest)
