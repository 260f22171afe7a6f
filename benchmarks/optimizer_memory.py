"""Memory of optimizer state on each rank, by number of ranks and ZeRO stage.

    python benchmarks/optimizer_memory.py [--preset rank01] [--ranks 1 2 4 8] [--verify]

Megabytes on the rank that holds most. `momentum` is allocated for real, for that rank of so many; `adamw` follows from
the parameters: 8 bytes each at stage 0; at stage 1 an even part of them, and 4 bytes more for the copy of that part
that DeepSpeed keeps. `--verify` also starts the engine on so many processes of this machine and compares what it holds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout that was not installed will do

from launch.preset import load  # noqa: E402
from model.network.gpt import GPT  # noqa: E402
from trainer.optimizer import TrainingOptimizer  # noqa: E402
from trainer.ranks import Ranks, join  # noqa: E402


def computed(preset: str, num_ranks: int, zero_stage: int) -> dict[str, float]:
    """Megabytes by kind, on rank 0 (whose stacks are never smaller than another rank's)."""
    settings = load(preset).settings
    ranks = Ranks(0, num_ranks, torch.device("cpu"))
    optimizer = TrainingOptimizer(GPT(settings.model), replace(settings.training, zero_stage=zero_stage), ranks)
    momentum_bytes = sum(t.nbytes for t in optimizer.muon.state_tensors())
    adamw_bytes = copy_bytes = 0
    for kind in ("embedding", "scalar"):
        count = sum(p.numel() for p in optimizer.groups[kind].values())
        # DeepSpeed pads each group to a multiple of 2 values a rank.
        part = 2 * math.ceil(count / (2 * num_ranks)) if zero_stage else count
        adamw_bytes += 8 * part
        copy_bytes += 4 * part if zero_stage else 0
    total = momentum_bytes + adamw_bytes + copy_bytes
    return {"momentum": momentum_bytes, "adamw": adamw_bytes, "copy": copy_bytes, "total": total}


def held(preset: str, zero_stage: int) -> float:
    """Bytes of state on this rank once the engine has started; called in every rank."""
    from trainer.engine import Engine

    torch.set_num_threads(1)
    settings, ranks = load(preset).settings, join()
    training = replace(settings.training, zero_stage=zero_stage)
    model = GPT(settings.model)
    torch.nn.init.zeros_(model.embedding.weight)
    optimizer = TrainingOptimizer(model, training, ranks)
    engine = Engine(model, optimizer.adamw, training, ranks, micro_batch_size=1, num_micro_batches=1)
    copies = engine._engine.optimizer.single_partition_of_fp32_groups if zero_stage else []
    return sum(t.nbytes for t in [*optimizer.state_tensors(), *copies])


def verified(preset: str, num_ranks: int, zero_stage: int) -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).resolve()), "--preset", preset, "--held", str(zero_stage)]
    processes = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(r), "LOCAL_RANK": str(r)}, stdout=subprocess.PIPE, text=True
        )
        for r in range(num_ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a rank failed")
    return max(float(json.loads(output.splitlines()[-1])) for output in outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="rank01")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--held", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.held is not None:
        print(json.dumps(held(options.preset, options.held)))
        return
    print(f"{options.preset}: MB of optimizer state on a rank")
    print(
        f"{'ranks':>5} {'stage':>5} {'momentum':>9} {'adamw':>9} {'copy':>9} {'total':>9}"
        + " verified" * options.verify
    )
    for num_ranks in options.ranks:
        for zero_stage in (0, 1):
            row = computed(options.preset, num_ranks, zero_stage)
            line = f"{num_ranks:>5} {zero_stage:>5} " + " ".join(f"{value / 1e6:>9.2f}" for value in row.values())
            if options.verify:
                line += f" {verified(options.preset, num_ranks, zero_stage) / 1e6:>9.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
