"""The trainer: ms/step, tokens/s and peak memory of a preset, for one number of processes after another.

    python benchmarks/training.py PRESET --data DIR [--num-gpus 1 2] [--steps N] [--json FILE] [--SECTION.FIELD VALUE]

Each row is `albatross train` as a user would type it. The first quarter of the steps stays out of the mean. "start" is
everything but the steps: starting processes, importing PyTorch and DeepSpeed, compiling, the last validation.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import albatross, publish, run

from launch.preset import Settings, load
from launch.settings import split_overrides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--num-gpus", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--steps", type=int, default=40, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments, overrides = split_overrides(Settings, sys.argv[1:])
    options = parser.parse_args(arguments)
    overrides += ["--training.max-steps", str(options.steps), "--training.budget-seconds", "0"]
    batch_tokens = load(options.preset).with_overrides(overrides).settings.training.batch_tokens
    rows = [measure(options, overrides, num, batch_tokens) for num in options.num_gpus]
    publish("training", rows, options.json)


def measure(options: argparse.Namespace, overrides: list[str], num_processes: int, batch_tokens: int) -> dict[str, Any]:
    """One run; the row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        command = ["train", options.preset, "--data", options.data.resolve(), "--out", out, "--num-gpus", num_processes]
        cost, _ = run(albatross(*command, *overrides))
        lines = (out / "metrics.jsonl").read_text().splitlines()
    times = [row["train_time_ms"] for row in map(json.loads, lines) if "clock" in row]
    first = len(times) // 4
    step_milliseconds = (times[-1] - times[first]) / (len(times) - 1 - first)
    return {
        "preset": options.preset,
        "processes": num_processes,
        "tokens a step": batch_tokens,
        "ms/step": step_milliseconds,
        "tokens/s": 1000 * batch_tokens / step_milliseconds,
        "start seconds": cost.wall_seconds - times[-1] / 1000,
        "CPU seconds": cost.cpu_seconds,
        "peak MB of a process": cost.peak_memory_bytes / 1e6,
    }


if __name__ == "__main__":
    main()
