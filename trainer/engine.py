"""The DeepSpeed engine around the network: the only file that imports deepspeed.

DeepSpeed runs forward and backward and accumulates gradients over micro-batches. Their reduction over ranks, clipping
and the optimizer step are the trainer's (gradients.py, optimizer.py), at every number of ranks.
"""

from __future__ import annotations

import logging
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from model.network.gpt import GPT
from trainer.ranks import Ranks


class TrainingLoss(nn.Module):
    """Mean negative log-likelihood in nats: what the engine differentiates."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self.model.token_nll(ids, targets).mean()


def start_engine(
    model: GPT, optimizer: torch.optim.Optimizer, ranks: Ranks, *, micro_batch_size: int, num_micro_batches: int
) -> Any:
    """A DeepSpeed engine at ZeRO stage 0 with float32 parameters.

    Call it on a micro-batch for its loss, then `backward(loss)` and `step()`; every `num_micro_batches`-th `step()`
    runs the optimizer. The weights of rank 0 are broadcast to all.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed would compile its shared-memory collectives for CPUs (45 s); the trainer uses none of DeepSpeed's.
    deepspeed.ops.__compatible_ops__.pop("deepspeed_shm_comm", None)
    deepspeed.init_distributed(dist_backend="nccl" if ranks.device.type == "cuda" else "gloo", auto_mpi_discovery=False)
    engine, *_ = deepspeed.initialize(
        model=TrainingLoss(model),
        optimizer=optimizer,
        config={
            "train_batch_size": micro_batch_size * num_micro_batches * ranks.size,
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": num_micro_batches,
            "zero_optimization": {"stage": 0},
            "steps_per_print": 2**31 - 1,
        },
    )
    engine.enable_backward_allreduce = False
    return engine
