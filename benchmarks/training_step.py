"""Where the time of a training step goes: data, forward, backward, communication, optimizer.

    python benchmarks/training_step.py [--preset tiny] [--ranks 1 2] [--steps 20] [overrides: --training.zero-stage 1]

One row for each number of ranks (processes on this machine, one GPU each where there are GPUs), Parallel Muon beside
the same optimizer unsharded (gradients all-reduced, every rank orthogonalizes every matrix). Milliseconds of a step on
rank 0, median; the device is waited for between the parts, so that nothing overlaps and the parts add up. Tokens are
random. `check` is the finite check and clipping, a part of `optimizer`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout that was not installed will do

from launch.preset import load  # noqa: E402
from model.network.gpt import GPT  # noqa: E402
from model.network.initialize import initialize  # noqa: E402
from model.text.shards import DataFolder, write_shard  # noqa: E402
from trainer.engine import Engine  # noqa: E402
from trainer.gradients import clip_factor  # noqa: E402
from trainer.loaders.loader import training_loader  # noqa: E402
from trainer.optimizer import TrainingOptimizer  # noqa: E402
from trainer.parallel_muon import ParallelMuon, gradient_of  # noqa: E402
from trainer.ranks import Pending, Ranks, join  # noqa: E402

PARTS = ("data", "forward", "backward", "communication", "optimizer")
WARM_UP_STEPS = 3


class Timer:
    """Seconds by part; nested parts are taken out of the outer ones."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._stack: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._switch()
        self._stack.append(name)
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()

    def _switch(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


class TimedRanks(Ranks):
    """Ranks whose collectives are counted as communication and finish at once."""

    timer: Timer

    def average(self, tensor: torch.Tensor) -> None:
        with self.timer.part("communication"):
            super().average(tensor)

    def sum(self, tensor: torch.Tensor) -> None:
        with self.timer.part("communication"):
            super().sum(tensor)

    def start_reduce_scatter(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Pending | None]:
        return self._finished(super().start_reduce_scatter, tensor)

    def start_all_gather(self, part: torch.Tensor) -> tuple[torch.Tensor, Pending | None]:
        return self._finished(super().start_all_gather, part)

    def _finished(
        self, start: Callable[[torch.Tensor], tuple[torch.Tensor, Pending | None]], tensor: torch.Tensor
    ) -> tuple[torch.Tensor, Pending | None]:
        with self.timer.part("communication"):
            result, pending = start(tensor)
            if pending is not None:
                pending.wait()
        return result, pending


class UnshardedMuon(ParallelMuon):
    """Gradients all-reduced in one buffer, then every rank does all matrices."""

    def __init__(self, matrices: Any, config: Any, ranks: Ranks, *, compile: bool) -> None:
        super().__init__(matrices, config, Ranks(0, 1, ranks.device), compile=compile)
        self._everyone = ranks
        self._matrices = list(matrices.values())

    def start_reduction(self) -> None:
        flat = torch.cat([gradient_of(p).flatten() for p in self._matrices])
        self._everyone.average(flat)
        for parameter, part in zip(self._matrices, flat.split([p.numel() for p in self._matrices]), strict=True):
            parameter.grad = part.view_as(parameter)
        super().start_reduction()

    def finish_reduction(self) -> torch.Tensor:
        return super().finish_reduction() / self._everyone.size


def measure(preset: str, num_steps: int, sharded: bool, overrides: list[str], data_folder: Path) -> dict[str, float]:
    """Median milliseconds of each part, on this rank."""
    joined = join()
    ranks = TimedRanks(joined.rank, joined.size, joined.device, joined.control)
    timer = Timer(joined.device)
    object.__setattr__(ranks, "timer", timer)
    if joined.device.type == "cpu":
        torch.set_num_threads(1)
    settings = load(preset).with_overrides(overrides).settings
    training = replace(settings.training, deepspeed_config="")
    on_gpu = joined.device.type == "cuda"
    model = GPT(settings.model, torch.bfloat16 if on_gpu else torch.float32)
    initialize(model, training.seed)
    model.to(joined.device)
    loader = training_loader(DataFolder.open(data_folder).train, training, joined)
    optimizer = TrainingOptimizer(model, training, ranks)
    if not sharded:
        optimizer.muon = UnshardedMuon(optimizer.groups["matrix"], training.matrix, ranks, compile=on_gpu)
    micro = {"micro_batch_size": loader.micro_batch_sequences, "num_micro_batches": loader.num_micro_batches}
    engine = Engine(model, optimizer.adamw, training, ranks, **micro)
    if on_gpu and training.compile:
        engine.compile()
    samples: dict[str, list[float]] = defaultdict(list)
    for step in range(WARM_UP_STEPS + num_steps):
        timer.seconds.clear()
        begin = time.perf_counter()
        one_step(engine, optimizer, loader, timer, step)
        if step >= WARM_UP_STEPS:
            samples["step"].append(time.perf_counter() - begin)
            for part in PARTS:
                samples[part].append(timer.seconds[part])
    loader.close()
    result = {name: 1000 * statistics.median(values) for name, values in samples.items()}
    result["check"] = 1000 * check_seconds(optimizer, timer)
    result["state_mb"] = sum(t.nbytes for t in optimizer.state_tensors()) / 1e6
    result["tokens_per_second"] = training.batch_tokens / result["step"] * 1000
    return result


def one_step(engine: Engine, optimizer: TrainingOptimizer, loader: Any, timer: Timer, step: int) -> None:
    """What trainer.run does in a step, cut into its parts."""
    total = torch.zeros((), device=optimizer._ranks.device)
    for index in range(loader.num_micro_batches):
        if index:
            engine.next_micro_batch()
        with timer.part("data"):
            batch = loader.micro_batch(step, index)
        with timer.part("forward"):
            loss = engine._engine(*batch)
        with timer.part("backward"):
            engine._engine.backward(loss)
        total += loss.detach()
    with timer.part("optimizer"):
        optimizer.reduce_gradients(total / loader.num_micro_batches)
        optimizer.step_matrices(learning_rate_multiplier=1.0, momentum=0.95, weight_decay=0.0)
        engine.step_adamw()


def check_seconds(optimizer: TrainingOptimizer, timer: Timer) -> float:
    """Norm, finite check and scaling of gradients as large as the model's, as reduce_gradients does them."""
    parameters = [p for group in optimizer.groups.values() for p in group.values()]
    flat = torch.cat([p.detach().flatten() for p in parameters])
    seconds = []
    for _ in range(5):
        timer.seconds.clear()
        with timer.part("check"):
            norm = torch.linalg.vector_norm(flat).double()
            finite = torch.isfinite(norm)
            torch.where(finite, flat * clip_factor(norm, 1.0), 0)
        seconds.append(timer.seconds["check"])
    return statistics.median(seconds)


def _ranks_of(size: int, arguments: list[str]) -> dict[str, float]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    common |= {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a rank failed")
    result: dict[str, float] = json.loads(outputs[0].splitlines()[-1])
    return result


def _write_data(folder: Path, vocab_size: int) -> None:
    tokens = np.random.default_rng(0).integers(2, vocab_size, 2_000_000).astype(np.uint16)
    tokens[::700] = 1
    for split in ("train", "val"):
        write_shard(folder / f"random_{split}_000000.bin", tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--measure", choices=("sharded", "unsharded"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    if options.measure:
        found = measure(options.preset, options.steps, options.measure == "sharded", overrides, options.data)
        print(json.dumps(found))
        return
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        _write_data(Path(folder), load(options.preset).with_overrides(overrides).settings.model.vocab_size)
        for size in options.ranks:
            for kind in ("sharded", "unsharded") if size > 1 else ("sharded",):
                own = ["--measure", kind, "--data", folder, "--preset", options.preset, "--steps", str(options.steps)]
                rows[f"{size} rank{'s' if size > 1 else ''}, {kind if size > 1 else 'alone'}"] = _ranks_of(
                    size, [*own, *overrides]
                )
    hardware = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"{platform.machine()} CPU, one thread"
    print(f"{options.preset}, {hardware}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}; ms of a step")
    columns = ("step", *PARTS, "check", "state_mb", "tokens_per_second")
    print("  ".join(["".ljust(20), *(f"{name:>13}" for name in columns)]))
    for name, row in rows.items():
        print("  ".join([name.ljust(20), *(f"{row[column]:>13,.2f}" for column in columns)]))
    if options.json:
        result = {"preset": options.preset, "overrides": overrides, "hardware": hardware, "torch": torch.__version__}
        result |= {"date": f"{datetime.now(UTC):%Y-%m-%d}", "rows": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
