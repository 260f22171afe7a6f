"""DeepSpeed's configuration: ours, and what a user's JSON file may add to it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.errors import InputError

REFUSED: dict[str, str] = {
    "train_batch_size": "training.batch_tokens decides it",
    "train_micro_batch_size_per_gpu": "training.micro_batch_tokens decides it",
    "gradient_accumulation_steps": "it follows from training.batch_tokens and training.micro_batch_tokens",
    "gradient_clipping": "training.gradient_clip_norm decides it",
    "optimizer": "training.matrix, training.embedding and training.scalar decide it",
    "scheduler": "the learning rate follows the schedule in training",
    "fp16": "weights are float32 and activations bfloat16 on a GPU",
    "bf16": "weights are float32 and activations bfloat16 on a GPU",
    "amp": "weights are float32 and activations bfloat16 on a GPU",
    "torch_autocast": "weights are float32 and activations bfloat16 on a GPU",
    "data_types": "gradients are accumulated in float32",
    "gradient_predivide_factor": "the trainer averages gradients itself",
    "prescale_gradients": "the trainer averages gradients itself",
    "sparse_gradients": "the trainer averages gradients itself",
    "communication_data_type": "training.matrix.reduction_dtype decides it",
    "managed_gradient_accumulation": "the trainer counts micro-batches",
    "compile": "training.compile decides it",
    "tensor_parallel": "tensor parallelism is no goal at these sizes",
    "autotp_size": "tensor parallelism is no goal at these sizes",
    "pipeline": "pipeline parallelism is no goal at these sizes",
    "sequence_parallel_size": "sequence parallelism is no goal at these sizes",
    "checkpoint": "checkpoints are Albatross's own",
    "nebula": "checkpoints are Albatross's own",
    "elasticity": "the batch is the same at any number of processes",
    "autotuning": "it would change the batch",
    "compression_training": "training.qat decides what is quantized",
    "quantize_training": "training.qat decides what is quantized",
    "curriculum_learning": "data order is the loader's",
    "data_efficiency": "data order is the loader's",
    "progressive_layer_drop": "the network is the preset's",
    "activation_checkpointing": "the network is the preset's",
    "sparse_attention": "the network is the preset's",
    "eigenvalue": "nothing here uses it",
}
"""Keys of DeepSpeed's that the trainer decides or cannot honor, and why."""

ACCEPTED = (
    "zero_optimization",
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "flops_profiler",
    "comms_logger",
    "tensorboard",
    "wandb",
    "comet",
    "csv_monitor",
    "timers",
    "zero_allow_untested_optimizer",
    "disable_allgather",
    "seed",
)
ACCEPTED_ZERO = ("stage", "allgather_bucket_size", "allgather_partitions")
ZERO_REASONS = {
    "offload_optimizer": "AdamW's state is small and stays on the device",
    "offload_param": "it belongs to stage 3",
    "cpu_offload": "AdamW's state is small and stays on the device",
    "overlap_comm": "the trainer averages gradients itself",
    "contiguous_gradients": "the trainer averages gradients itself",
    "reduce_scatter": "the trainer averages gradients itself",
    "reduce_bucket_size": "the trainer averages gradients itself",
    "round_robin_gradients": "checkpoints need the parameters in order",
    "zenflow": "the trainer steps Muon itself",
}


def read_user_config(path: Path) -> dict[str, Any]:
    """A user's DeepSpeed JSON.

    Raises:
        InputError: no such file, no JSON object, or a key that the trainer decides, does not support or does not know;
            the message names the key and says why.
    """
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"training.deepspeed_config: {path} does not exist") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: accepts a JSON object, got {type(config).__name__}")
    for key in config:
        _check(path, key, key, ACCEPTED, REFUSED)
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise InputError(f"{path}: zero_optimization: accepts a JSON object, got {zero!r}")
    for key in zero:
        _check(path, key, f"zero_optimization.{key}", ACCEPTED_ZERO, ZERO_REASONS)
    if zero.get("stage", 0) not in (0, 1):
        raise InputError(
            f"{path}: zero_optimization.stage: accepts 0 or 1, got {zero['stage']!r} (stages 2 and 3 cut matrices "
            "into flat pieces, which Muon cannot orthogonalize)"
        )
    return config


def _check(path: Path, key: str, full_name: str, accepted: tuple[str, ...], refused: Mapping[str, str]) -> None:
    if key in refused:
        raise InputError(f"{path}: {full_name}: may not be set; {refused[key]}")
    if key not in accepted:
        near = difflib.get_close_matches(key, [*accepted, *refused], n=1)
        raise InputError(f"{path}: {full_name}: unknown key{f' (did you mean {near[0]}?)' if near else ''}")


def engine_config(
    user: Mapping[str, Any], *, micro_batch_size: int, num_micro_batches: int, num_ranks: int, zero_stage: int
) -> dict[str, Any]:
    """The whole configuration for `deepspeed.initialize`; the user's part as `read_user_config` gave it.

    Raises:
        InputError: the user's file and `training.zero_stage` name different stages.
    """
    zero = dict(user.get("zero_optimization", {}))
    if zero.get("stage", zero_stage) != zero_stage:
        raise InputError(
            f"training.deepspeed_config: zero_optimization.stage is {zero['stage']}, "
            f"but training.zero_stage is {zero_stage}"
        )
    zero["stage"] = zero_stage
    if zero_stage == 1:
        # The trainer reduces and clips, so DeepSpeed needs neither hooks and buckets for gradients nor their norm,
        # whose check would make the host wait for the device at every step.
        zero |= {"contiguous_gradients": False, "overlap_comm": False, "compute_grad_norm": False}
    return {
        "steps_per_print": 2**31 - 1,
        **user,
        "train_batch_size": micro_batch_size * num_micro_batches * num_ranks,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": num_micro_batches,
        # Not DeepSpeed's default, which is to clip at 1; the trainer clips all parameters together.
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        # DeepSpeed does not know GroupedAdamW; at stage 1 it sees flat parts, which suits its elementwise step.
        "zero_allow_untested_optimizer": True,
    }
