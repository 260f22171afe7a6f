"""The training optimizer: Muon for the matrices of the blocks, AdamW for the embedding and for vectors and scalars.

Every rank holds all state and the averaged gradient. Orthogonalization, the expensive part, is shared out: rank r
does every r-th matrix, and one sum over ranks brings the directions together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from model.network.gpt import GPT
from model.network.projection import Projection
from model.optimizers.adamw import adamw_step
from model.optimizers.muon import direction, nesterov, step_scale
from model.optimizers.orthogonalize import coefficients
from trainer.config import AdamConfig, TrainingConfig
from trainer.ranks import Ranks


def group_parameters(model: GPT) -> dict[str, dict[str, Parameter]]:
    """Every parameter by name in exactly one of `matrix`, `embedding` and `scalar`."""
    matrices = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Projection)}
    groups: dict[str, dict[str, Parameter]] = {"matrix": {}, "embedding": {}, "scalar": {}}
    for name, parameter in model.named_parameters():
        kind = "matrix" if name in matrices else "embedding" if name == "embedding.weight" else "scalar"
        groups[kind][name] = parameter
    return groups


class TrainingOptimizer(torch.optim.Optimizer):
    """One step of all groups, with the learning rate multiplier and momentum set beforehand by the schedule.

    State is kept by parameter name: `momentum/NAME` for matrices, `first/NAME` and `second/NAME` for the others.
    """

    def __init__(self, model: GPT, config: TrainingConfig, ranks: Ranks) -> None:
        self.groups = group_parameters(model)
        super().__init__([{"params": list(group.values()), "name": kind} for kind, group in self.groups.items()], {})
        self._config = config
        self._ranks = ranks
        self._tuples = coefficients(config.matrix.orthogonalization, config.matrix.num_iterations)
        self.learning_rate_multiplier = 1.0
        self.momentum = config.matrix.momentum
        self.num_steps = 0
        self.num_orthogonalized = 0
        """Matrices that this rank orthogonalized, over all steps."""
        dtype = getattr(torch, config.matrix.momentum_dtype)
        self.tensors: dict[str, Tensor] = {}
        for name, parameter in self.groups["matrix"].items():
            self.tensors[f"momentum/{name}"] = torch.zeros_like(parameter, dtype=dtype)
        for kind in ("embedding", "scalar"):
            for name, parameter in self.groups[kind].items():
                self.tensors[f"first/{name}"] = torch.zeros_like(parameter)
                self.tensors[f"second/{name}"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.num_steps += 1
        self._step_matrices()
        self._step_adamw("embedding", self._config.embedding)
        self._step_adamw("scalar", self._config.scalar)

    def load_tensors(self, tensors: dict[str, Tensor], num_steps: int) -> None:
        """Continue from saved state."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
        self.num_steps = num_steps

    def _step_matrices(self) -> None:
        config = self._config.matrix
        learning_rate = config.learning_rate * self.learning_rate_multiplier
        updates = {
            name: nesterov(_gradient(parameter), self.tensors[f"momentum/{name}"], self.momentum)
            for name, parameter in self.groups["matrix"].items()
        }
        for name, step in self._directions(updates).items():
            parameter = self.groups["matrix"][name]
            if config.weight_decay:
                parameter.mul_(1 - learning_rate * config.weight_decay)
            parameter.add_(step, alpha=-learning_rate * step_scale(*parameter.shape))

    def _directions(self, updates: dict[str, Tensor]) -> dict[str, Tensor]:
        """The orthogonalized direction of every update, this rank doing its share, matrices of one shape at once."""
        mine: dict[torch.Size, list[str]] = defaultdict(list)
        for index, name in enumerate(updates):
            if index % self._ranks.size == self._ranks.rank:
                mine[updates[name].shape].append(name)
        directions = {}
        for names in mine.values():
            stacked = torch.stack([updates[name] for name in names])
            steps = direction(stacked, self._tuples, row_normalize=self._config.matrix.row_normalize)
            directions.update(zip(names, steps, strict=True))
            self.num_orthogonalized += len(names)
        if self._ranks.size == 1:
            return directions
        sizes = [update.numel() for update in updates.values()]
        flat = torch.zeros(sum(sizes), dtype=torch.bfloat16, device=self._ranks.device)
        parts = dict(zip(updates, flat.split(sizes), strict=True))
        for name, step in directions.items():
            parts[name].copy_(step.flatten())
        self._ranks.sum(flat)  # exact: all ranks but one contribute zeros
        return {name: part.view_as(updates[name]) for name, part in parts.items()}

    def _step_adamw(self, kind: str, config: AdamConfig) -> None:
        group = self.groups[kind]
        adamw_step(
            list(group.values()),
            [_gradient(parameter) for parameter in group.values()],
            [self.tensors[f"first/{name}"] for name in group],
            [self.tensors[f"second/{name}"] for name in group],
            step=self.num_steps,
            learning_rate=config.learning_rate * self.learning_rate_multiplier,
            betas=config.betas,
            epsilon=config.epsilon,
            weight_decay=config.weight_decay,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"tensors": self.tensors, "num_steps": self.num_steps}


def _gradient(parameter: Parameter) -> Tensor:
    assert parameter.grad is not None, "a parameter that the forward never uses"
    return parameter.grad
