"""The DeepSpeed engine around the network: the only file that imports deepspeed.

DeepSpeed runs forward and backward, accumulates gradients over micro-batches, and steps AdamW, sharding its state at
ZeRO stage 1. Reduction over ranks, clipping, the finite check and Muon are the trainer's (optimizer.py).

What stage 1 of DeepSpeed 0.19 does with this (runtime/zero/stage_1_and_2.py): it lays each AdamW group end to end in
one flat tensor, gives this rank's part to the optimizer, and gathers all parts after the step. Matrices are no
parameters of its optimizer, so it leaves their gradients 2-D and local. It would reduce AdamW's gradients itself, were
it not for `enable_backward_allreduce = False`; `overlapping_partition_gradients_reduce_epilogue`, which otherwise
ends that reduction, then only cuts this rank's part out of the gradients that the trainer has averaged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.monitor.config import get_monitor_config
from deepspeed.monitor.monitor import MonitorMaster
from torch import Tensor, nn

from model.network.gpt import GPT
from trainer.config import TrainingConfig
from trainer.deepspeed_config import engine_config, read_user_config
from trainer.ranks import Ranks
from trainer.trackers import events


class TrainingLoss(nn.Module):
    """Mean negative log-likelihood in nats: what the engine differentiates.

    With a `z_loss`, plus `z_loss * mean(logsumexp(logits)²)`, which keeps the logits from drifting.
    """

    def __init__(self, model: GPT, longest_document: int, z_loss: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.longest_document = longest_document
        self.z_loss = z_loss

    def forward(self, ids: Tensor, targets: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """A micro-batch of a loader; cu_seqlens with packed rows."""
        if not self.z_loss:
            return self.model.token_nll(ids, targets, cu_seqlens, longest_document=self.longest_document).mean()
        logits = self.model(ids, cu_seqlens, longest_document=self.longest_document)
        log_sums = torch.logsumexp(logits, dim=-1)
        chosen = logits.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)
        return (log_sums - chosen).mean() + self.z_loss * log_sums.square().mean()


class Engine:
    """Forward, backward and the AdamW step. The weights of rank 0 are broadcast to all at the start.

    Raises:
        InputError: the user's DeepSpeed JSON asks for what the trainer decides or does not support.
    """

    def __init__(
        self,
        model: GPT,
        adamw: torch.optim.Optimizer,
        config: TrainingConfig,
        ranks: Ranks,
        *,
        micro_batch_size: int,
        num_micro_batches: int,
    ) -> None:
        user = read_user_config(Path(config.deepspeed_config)) if config.deepspeed_config else {}
        settings = engine_config(
            user,
            micro_batch_size=micro_batch_size,
            num_micro_batches=num_micro_batches,
            num_ranks=ranks.size,
            zero_stage=config.zero_stage,
        )
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # DeepSpeed would compile its shared-memory collectives for CPUs (45 s); the trainer uses none of DeepSpeed's.
        deepspeed.ops.__compatible_ops__.pop("deepspeed_shm_comm", None)
        backend = "nccl" if ranks.device.type == "cuda" else "gloo"
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)
        self._engine: Any
        loss = TrainingLoss(model, config.sequence_tokens, config.z_loss)
        self._engine, *_ = deepspeed.initialize(model=loss, optimizer=adamw, config=settings)
        self._engine.enable_backward_allreduce = False
        self._is_sharded = config.zero_stage == 1
        self._model = model

    def compile(self) -> None:
        """torch.compile forward and backward, static shapes: a new graph for every shape and every switched phase."""
        # The default of 8 graphs is fewer than phases times shapes may be; past it, all runs uncompiled.
        torch._dynamo.config.recompile_limit = 64
        self._engine.module.compile(dynamic=False)

    def forward_backward(self, *batch: Tensor) -> Tensor:
        """Add a micro-batch to the gradients; returns its mean loss in nats, a scalar on the device."""
        loss: Tensor = self._engine(*batch)
        self._engine.backward(loss)
        return loss.detach()

    def next_micro_batch(self) -> None:
        """Between the micro-batches of a step."""
        self._engine.step()

    def step_adamw(self) -> None:
        """After the last micro-batch: step AdamW on the gradients as they stand on its parameters, clear them all."""
        if self._is_sharded:
            self._engine.optimizer.overlapping_partition_gradients_reduce_epilogue()
        self._engine.step()
        for parameter in self._model.parameters():
            parameter.grad = None

    def weights_were_replaced(self) -> None:
        """Tell DeepSpeed that the model's parameters were written from outside: stage 1 keeps a copy of its part."""
        if self._is_sharded:
            self._engine.optimizer.refresh_fp32_params()


def open_trackers(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], None]:
    """A function that hands rows of metrics to the trackers in `settings`; after an Engine, on every rank.

    The monitors are opened beside DeepSpeed's engine: opened by it, they would make the host wait for the loss of every
    step.
    """
    monitor = MonitorMaster(get_monitor_config(settings))
    return lambda row: monitor.write_events(events(row))
