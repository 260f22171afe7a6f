"""`albatross train --dry-run`: what a run would take and come to, before it is started.

Counts (parameters, arithmetic, memory) follow from the configuration; speeds and coded bits per weight come from
launch/measured.json, which names the source of each.
"""

import argparse
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from launch import code_archive, exit_codes, processes
from launch.arguments import CAP_BYTES
from launch.preset import Preset, load
from model.cost import training_flops_per_token
from model.errors import InputError
from model.network.gpt import GPT
from trainer.config import TrainingConfig
from trainer.optimizer import group_parameters
from trainer.quantize.config import QuantizationConfig
from trainer.quantize.tensor_plan import TensorPlan, make_plans

MEASURED = Path(__file__).with_name("measured.json")
CONTAINER_BYTES = 1_000
"""Of the manifest, the configuration and the frame: at most 1,280 are allowed, and 800 to 1,100 seen."""
SCALE_BITS = 12
"""Of a scale once coded, of 16 stored."""
GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU. Activations are those that an uncompiled forward pass keeps; compilation keeps fewer."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    average_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Speed:
    """Steps and tokens that fit into the budget at a known speed."""

    hardware: str
    tokens_per_second: float
    num_steps: int
    num_tokens: int
    basis: str
    """Where the speed comes from."""


@dataclass(frozen=True)
class Forecast:
    """Everything that `--dry-run` prints."""

    preset: str
    num_processes: int
    num_parameters: int
    parameters_by_group: dict[str, int]
    """The optimizer's groups: matrix (Muon), embedding and scalar (AdamW)."""
    training_flops_per_token: float
    memory: Memory
    speeds: tuple[Speed, ...]
    artifact_bytes_by_role: dict[str, int]
    max_bytes: int

    @property
    def artifact_bytes(self) -> int:
        return sum(self.artifact_bytes_by_role.values())

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "memory_bytes": self.memory.total_bytes, "artifact_bytes": self.artifact_bytes}


def forecast(preset: Preset, num_processes: int, max_bytes: int = CAP_BYTES) -> Forecast:
    """The forecast for a preset, its overrides applied, on `num_processes` GPUs (or CPU processes)."""
    settings = preset.settings
    with FakeTensorMode():
        model = GPT(settings.model, torch.bfloat16)
        kept_bytes = saved_bytes_per_sequence(model, settings.training.sequence_tokens)
    groups = {
        name: sum(parameter.numel() for parameter in group.values())
        for name, group in group_parameters(model, settings.training).items()
    }
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return Forecast(
        preset=preset.id,
        num_processes=num_processes,
        num_parameters=sum(groups.values()),
        parameters_by_group=groups,
        training_flops_per_token=flops_of(preset),
        memory=memory(groups, kept_bytes, settings.training, num_processes),
        speeds=tuple(speeds(preset, num_processes)),
        artifact_bytes_by_role=artifact_bytes(shapes, settings.quantization),
        max_bytes=max_bytes,
    )


def memory(groups: dict[str, int], kept_bytes: int, training: TrainingConfig, num_processes: int) -> Memory:
    """Bytes that one process holds at the end of a forward pass over its micro-batch.

    Weights, gradients, averages and AdamW's moments are float32; Muon's momentum is shared out over the processes, and
    so are AdamW's moments at ZeRO stage 1. `kept_bytes`: by the forward pass, a sequence.
    """
    num_parameters = sum(groups.values())
    momentum_bytes = groups["matrix"] * (2 if training.matrix.momentum_dtype == "bfloat16" else 4)
    moments_bytes = 8 * (groups["embedding"] + groups["scalar"])
    if training.zero_stage == 1:
        moments_bytes = math.ceil(moments_bytes / num_processes)
    averaged = bool(training.average_horizon or training.average_decay or training.swa_every_steps)
    of_rank = max(1, training.batch_tokens // training.sequence_tokens // num_processes)
    sequences = min(of_rank, max(1, training.micro_batch_tokens // training.sequence_tokens))
    return Memory(
        weights_bytes=4 * num_parameters,
        gradients_bytes=4 * num_parameters,
        optimizer_bytes=math.ceil(momentum_bytes / num_processes) + moments_bytes,
        average_bytes=4 * num_parameters if averaged else 0,
        activations_bytes=kept_bytes * sequences,
    )


def saved_bytes_per_sequence(model: GPT, sequence_tokens: int) -> int:
    """Bytes that the forward pass of one sequence keeps for backward, each storage counted once; nothing is computed.

    `model` is one of fake tensors on the CPU: there attention takes the same shape of kernel as on a GPU, which keeps
    no matrix of attention weights.
    """
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage  # kept alive, so that no other storage gets the same address
        return tensor

    ids = torch.zeros((1, sequence_tokens), dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.token_nll(ids, ids).mean()
    del loss
    return sum(storage.nbytes() for storage in saved.values())


def speeds(preset: Preset, num_processes: int) -> Iterator[Speed]:
    """The entry's own published speed, then on each hardware that of the measured run nearest in arithmetic a token."""
    training, expect = preset.settings.training, preset.expect
    if expect.step_milliseconds is not None and is_as_published(preset):
        rate = training.batch_tokens / (expect.step_milliseconds / 1000)
        yield _speed(training, expect.hardware or "as published", rate, "published by the entry, with its own program")
    nearest: dict[str, tuple[float, Preset, dict[str, Any]]] = {}
    for row in json.loads(MEASURED.read_text(encoding="utf-8"))["training"]:
        measured = load(row["preset"]).with_overrides(row["overrides"])
        distance = abs(math.log(flops_of(measured) / flops_of(preset)))
        if row["hardware"] not in nearest or distance < nearest[row["hardware"]][0]:
            nearest[row["hardware"]] = (distance, measured, row)
    for hardware, (_, measured, row) in nearest.items():
        rate = row["tokens_per_second_per_process"] * flops_of(measured) / flops_of(preset) * num_processes
        same = measured.settings.model == preset.settings.model
        how = "measured" if same else f"measured with {measured.id}, carried over by FLOP/token"
        yield _speed(training, f"{num_processes} x {hardware}", rate, f"{how} ({row['date']}, {row['source']})")


def flops_of(preset: Preset) -> float:
    """Arithmetic of training, a token."""
    return training_flops_per_token(preset.settings.model, preset.settings.training.sequence_tokens)


def is_as_published(preset: Preset) -> bool:
    """Whether the preset is one of ours whose network and batch no override has changed."""
    try:
        ours = load(preset.name).settings
    except InputError:  # a file of the user's
        return False
    given = preset.settings
    return ours.model == given.model and ours.training.batch_tokens == given.training.batch_tokens


def _speed(training: TrainingConfig, hardware: str, rate: float, basis: str) -> Speed:
    num_steps = training.max_steps
    if training.budget_seconds:
        seconds = training.budget_seconds - training.reserve_seconds
        num_steps = min(num_steps, int(seconds * rate / training.batch_tokens))
    return Speed(hardware, rate, num_steps, num_steps * training.batch_tokens, basis)


def artifact_bytes(shapes: dict[str, tuple[int, ...]], quantization: QuantizationConfig) -> dict[str, int]:
    """Expected coded bytes by role, with the code and the container."""
    table = json.loads(MEASURED.read_text(encoding="utf-8"))["coded_bits"]
    # Which matrices get fewer bits depends on the calibration; how many do, does not.
    plans = make_plans(shapes, quantization, dict.fromkeys(shapes, 0.0))
    bits: dict[str, float] = {}
    for name, plan in plans.items():
        bits[plan.role] = bits.get(plan.role, 0.0) + tensor_bits(shapes[name], plan, quantization, table)
    low_rank = quantization.low_rank
    if low_rank.num_tensors:
        largest = sorted((shape for shape in shapes.values() if len(shape) == 2), key=math.prod, reverse=True)
        bits["low rank"] = sum(
            low_rank.rank * (rows * low_rank.left_bits + columns * low_rank.right_bits)
            for rows, columns in largest[: low_rank.num_tensors]
        )
    sizes = {role: math.ceil(value / 8) for role, value in bits.items()}
    return {**sizes, "code": code_bytes(), "container": CONTAINER_BYTES}


@cache
def code_bytes() -> int:
    """Of the code archive, which is the same for every preset."""
    return len(code_archive.build())


def tensor_bits(
    shape: tuple[int, ...], plan: TensorPlan, quantization: QuantizationConfig, table: dict[str, Any]
) -> float:
    """Expected coded bits of one tensor, scales included."""
    size = math.prod(shape)
    if plan.method == "float":
        return size * float(table["float_bits"][plan.float_dtype])
    if plan.method in ("ternary", "binary"):
        symbol_bits = math.log2(3) if plan.method == "ternary" else 1.0
        return size * (symbol_bits + SCALE_BITS / quantization.group_size)
    role = table["roles"].get(plan.role, table["roles"]["mlp" if plan.role == "side" else "embedding"])
    reach = plan.clip_deviations if plan.clip_rule == "deviations" else role["maximum_over_deviation"]
    steps, bits = np.array(role["curve"]).T
    relative = math.log2(reach / plan.highest * plan.code_step)
    ends = np.log2(steps)
    value = float(np.interp(relative, ends, bits))
    value += max(0.0, float(ends[0]) - relative)  # halving a fine step costs one bit
    if relative > ends[-1]:
        value *= 2.0 ** -(relative - float(ends[-1]))
    return size * max(0.0, value * (1 - plan.pruned_fraction)) + SCALE_BITS * size / shape[-1]


def format_forecast(found: Forecast) -> str:
    """Text for a terminal."""
    groups = ", ".join(f"{count:,} {name}" for name, count in found.parameters_by_group.items())
    parts = {name.removesuffix("_bytes"): value for name, value in asdict(found.memory).items()}
    lines = [
        f"preset       {found.preset}, {found.num_processes} process{'es' if found.num_processes > 1 else ''}",
        f"parameters   {found.num_parameters:,} ({groups})",
        f"arithmetic   {found.training_flops_per_token / 1e6:,.1f} MFLOP a training token",
        f"memory       {found.memory.total_bytes / GIB:.2f} GiB a process at most: "
        + ", ".join(f"{name} {value / GIB:.2f}" for name, value in parts.items()),
        "             (activations as the forward pass keeps them without torch.compile)",
    ]
    for speed in found.speeds:
        lines.append(
            f"speed        {speed.hardware}: {speed.tokens_per_second:,.0f} tokens/s, {speed.num_steps:,} steps, "
            f"{speed.num_tokens:,} tokens"
        )
        lines.append(f"             {speed.basis}")
    headroom = found.max_bytes - found.artifact_bytes
    roles = ", ".join(f"{role} {size:,}" for role, size in found.artifact_bytes_by_role.items())
    lines += [
        f"artifact     {found.artifact_bytes:,} bytes expected, cap {found.max_bytes:,}: "
        + (f"{headroom:,} under it" if headroom >= 0 else f"{-headroom:,} OVER it"),
        f"             {roles}",
    ]
    return "\n".join(lines)


def print_forecast(options: argparse.Namespace, overrides: list[str]) -> int:
    """`albatross train PRESET --dry-run`; with --data and --out they are checked as for a run. Returns exit code 0."""
    preset = load(options.preset).with_overrides(overrides)
    if options.data is not None and options.out is not None:
        from launch.train import make_plan

        make_plan(options, overrides)
    found = forecast(preset, num_processes(options))
    print(json.dumps(found.to_json(), indent=2) if options.json else format_forecast(found))
    return exit_codes.OK


def num_processes(options: argparse.Namespace) -> int:
    """Processes that `albatross train` would start. InputError for a wrong number or hostfile."""
    if options.num_gpus is not None and options.num_gpus < 1:
        raise InputError(f"--num-gpus: accepts an integer of at least 1, got {options.num_gpus}")
    if options.hostfile is None:
        return options.num_gpus or processes.default_num_processes()
    slots = re.findall(r"^[^#\n]*\bslots=(\d+)", options.hostfile.read_text(encoding="utf-8"), re.MULTILINE)
    if not slots:
        raise InputError(f"{options.hostfile}: names no machine (a line is NAME slots=N)")
    return sum(options.num_gpus or int(count) for count in slots)
