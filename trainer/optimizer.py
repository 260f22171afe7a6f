"""The training optimizer: Muon for the matrices, AdamW for the embeddings and for vectors and scalars.

DeepSpeed is given only AdamW's parameters and, at ZeRO stage 1, shards their state. Reduction over ranks, clipping
and the finite check are done here for all parameters, before anything moves, at both stages alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from model.network.gpt import GPT
from model.network.projection import Projection
from trainer.adamw import GroupedAdamW
from trainer.config import TrainingConfig
from trainer.gradients import clip_factor, clip_local_gradients
from trainer.parallel_muon import ParallelMuon, gradient_of
from trainer.ranks import Ranks

_OUTSIDE_BLOCKS = ("embedding_in", "embedding_out", "hash_projection", "value_projection")
"""Roles of projections that belong to no block."""


def group_parameters(model: GPT, config: TrainingConfig) -> dict[str, dict[str, Parameter]]:
    """Every parameter by name in exactly one of `matrix` (Muon), `embedding` and `scalar` (AdamW).

    `matrix`: weights of projections, those outside the blocks only if `matrix.outer_projections`; `embedding`: tables
    that are looked up, and a head of its own; `scalar`: everything else.
    """
    kinds: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, Projection):
            is_matrix = module.role != "head" and (
                config.matrix.outer_projections or module.role not in _OUTSIDE_BLOCKS
            )
            kinds[f"{name}.weight"] = "matrix" if is_matrix else "embedding" if module.role == "head" else "scalar"
    groups: dict[str, dict[str, Parameter]] = {"matrix": {}, "embedding": {}, "scalar": {}}
    for name, parameter in model.named_parameters():
        is_table = name == "embedding.weight" or name.endswith(".table")
        groups[kinds.get(name, "embedding" if is_table else "scalar")][name] = parameter
    return groups


class TrainingOptimizer:
    """One step of all groups: `reduce_gradients`, then `step_matrices`, then a step of `adamw` by the engine.

    State is saved by parameter name: `momentum/NAME` for matrices, `first/NAME` and `second/NAME` for the others;
    whole tensors, so that any number of ranks and either ZeRO stage can go on from it.
    """

    def __init__(self, model: GPT, config: TrainingConfig, ranks: Ranks) -> None:
        self.groups = group_parameters(model, config)
        self._config = config
        self._ranks = ranks
        on_gpu = ranks.device.type == "cuda"
        self.muon = ParallelMuon(self.groups["matrix"], config.matrix, ranks, compile=config.compile and on_gpu)
        self.adamw = GroupedAdamW(
            {kind: self.groups[kind] for kind in ("embedding", "scalar")},
            {"embedding": config.embedding, "scalar": config.scalar},
            ranks,
        )
        self._others = {**self.groups["embedding"], **self.groups["scalar"]}
        self._finite_so_far = torch.ones((), dtype=torch.bool, device=ranks.device)
        self.num_steps = 0

    @property
    def num_orthogonalized(self) -> int:
        """Matrices that this rank orthogonalized, over all steps."""
        return self.muon.num_orthogonalized

    @torch.no_grad()
    def reduce_gradients(self, loss: Tensor) -> Tensor:
        """Average all gradients over ranks, check and clip them; nothing here makes the host wait for the device.

        Once a loss or gradient is not finite, this step and all after it leave the weights as they are.

        Args:
            loss: this rank's mean loss, nats, a scalar.

        Returns:
            float64 [3]: mean loss over ranks, global gradient norm before clipping, 1 if finite until now (else 0).
        """
        max_norm = self._config.gradient_clip_norm
        is_global = self._config.gradient_clip_scope == "global"
        if max_norm and not is_global:
            parameters = {**self.groups["matrix"], **self._others}
            clip_local_gradients([gradient_of(p) for p in parameters.values()], max_norm)
        self.muon.start_reduction()
        flat = torch.cat([gradient_of(p).flatten() for p in self._others.values()])
        self._ranks.average(flat)
        sums = torch.stack((self.muon.finish_reduction(), loss.double()))
        self._ranks.sum(sums)
        norm = torch.sqrt(sums[0] + torch.linalg.vector_norm(flat).double().square())
        mean_loss = sums[1] / self._ranks.size
        self._finite_so_far = self._finite_so_far & torch.isfinite(mean_loss) & torch.isfinite(norm)
        factor = clip_factor(norm, max_norm if is_global else 0.0)
        self.muon.scale_gradients(factor, self._finite_so_far)
        flat = torch.where(self._finite_so_far, flat * factor, 0)
        for parameter, part in zip(
            self._others.values(), flat.split([p.numel() for p in self._others.values()]), strict=True
        ):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
        return torch.stack((mean_loss, norm, self._finite_so_far.double()))

    @torch.no_grad()
    def step_matrices(self, *, learning_rate_multiplier: float, momentum: float, weight_decay: float) -> None:
        """Move Muon's matrices, and make AdamW ready for the engine to step it."""
        self.num_steps += 1
        enabled = self._finite_so_far.double()
        self.muon.step(
            learning_rate=self._config.matrix.learning_rate * learning_rate_multiplier,
            momentum=momentum,
            weight_decay=weight_decay,
            enabled=enabled,
        )
        self.adamw.num_steps = self.num_steps
        self.adamw.learning_rate_multiplier = learning_rate_multiplier
        self.adamw.enabled = enabled

    def forget_outcomes(self) -> None:
        """Begin anew with the finite check (after steps that were only rehearsed)."""
        self._finite_so_far = torch.ones_like(self._finite_so_far)

    def gather_state(self) -> dict[str, Tensor]:
        """All state by name, whole, on the CPU of rank 0 and empty elsewhere. Called by every rank."""
        return self.muon.gather_state() | self.adamw.gather_state()

    def load_state(self, tensors: Mapping[str, Tensor], num_steps: int) -> None:
        """Continue from saved state; call it after the engine has been started, which may shard AdamW."""
        self.muon.load_state(tensors)
        self.adamw.load_state(tensors)
        self.num_steps = num_steps

    def state_tensors(self) -> list[Tensor]:
        """The state that lives on this rank, to measure, save or put back in place."""
        return self.muon.state_tensors() + self.adamw.state_tensors()
