"""Muon shared out over ranks (Parallel Muon, methods 3.6).

Matrices of one shape form a stack. Each rank receives the averaged gradients of its part of every stack, keeps the
momentum of that part alone, orthogonalizes it, and the directions are gathered while the next stack is worked on.

Shapes: N matrices of a stack, P of them on one rank (stacks are padded with zeros to a multiple of the ranks),
R rows, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from model.optimizers.muon import direction, nesterov, step_scale
from model.optimizers.orthogonalize import coefficients
from trainer.config import MuonConfig
from trainer.ranks import Pending, Ranks


@dataclass
class _Stack:
    """Matrices of one shape, in the order of the model."""

    names: list[str]
    parameters: list[Parameter]
    momentum: Tensor
    """[P, R, C], of this rank's matrices."""
    gradients: Tensor
    """[P, R, C], of this rank's matrices, between reduction and step; empty otherwise."""
    reduction: Pending | None = None

    def owned(self, rank: int) -> range:
        """Numbers of the matrices that a rank owns, those past the end being padding."""
        per_rank = len(self.momentum)
        return range(rank * per_rank, min((rank + 1) * per_rank, len(self.names)))


class ParallelMuon:
    """Muon for the given matrices, float32 masters replicated on every rank.

    One step is `start_reduction`, `finish_reduction`, `scale_gradients` and `step`.

    Args:
        matrices: by name; the same on every rank.
        compile: compile the orthogonalization (on a GPU).
    """

    def __init__(self, matrices: Mapping[str, Parameter], config: MuonConfig, ranks: Ranks, *, compile: bool) -> None:
        self._config = config
        self._ranks = ranks
        self._tuples = coefficients(config.orthogonalization, config.num_iterations)
        self._direction = torch.compile(direction, dynamic=False) if compile else direction
        self._reduction_dtype: torch.dtype = getattr(torch, config.reduction_dtype)
        self.num_orthogonalized = 0
        """Matrices that this rank orthogonalized, over all steps."""
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name, parameter in matrices.items():
            by_shape[parameter.shape].append(name)
        self._stacks = [self._stack(names, matrices) for names in by_shape.values()]
        self._stacks.sort(key=lambda stack: -len(stack.names) * stack.parameters[0].numel())

    def _stack(self, names: list[str], matrices: Mapping[str, Parameter]) -> _Stack:
        first = matrices[names[0]]
        per_rank = -(-len(names) // self._ranks.size)
        momentum_dtype: torch.dtype = getattr(torch, self._config.momentum_dtype)
        return _Stack(
            names=names,
            parameters=[matrices[name] for name in names],
            momentum=torch.zeros(per_rank, *first.shape, dtype=momentum_dtype, device=first.device),
            gradients=torch.empty(0, device=first.device),
        )

    def start_reduction(self) -> None:
        """Send every stack's gradients on their way, the largest stack first, and take them off the parameters."""
        for stack in self._stacks:
            shape = stack.parameters[0].shape
            num_padded = len(stack.momentum) * self._ranks.size
            device = stack.momentum.device
            full = torch.empty(num_padded, *shape, dtype=self._reduction_dtype, device=device)
            gradients = [gradient_of(p) for p in stack.parameters]
            torch._foreach_copy_(list(full[: len(gradients)].unbind()), gradients)
            full[len(gradients) :].zero_()
            stack.gradients, stack.reduction = self._ranks.start_reduce_scatter(full)
            for parameter in stack.parameters:
                parameter.grad = None

    def finish_reduction(self) -> Tensor:
        """Wait for the averaged gradients; returns the squared norm of this rank's part, a float64 scalar."""
        total = torch.zeros((), dtype=torch.float64, device=self._ranks.device)
        for stack in self._stacks:
            if stack.reduction is not None:
                stack.reduction.wait()
                stack.gradients /= self._ranks.size
                stack.reduction = None
            total += torch.linalg.vector_norm(stack.gradients, dtype=torch.float32).double().square()
        return total

    def scale_gradients(self, factor: Tensor, is_finite: Tensor) -> None:
        """Multiply the gradients by `factor`, or set them to zero where they are not finite; both are scalars."""
        for stack in self._stacks:
            stack.gradients = torch.where(is_finite, stack.gradients * factor, 0)

    def step(self, *, learning_rate: float, momentum: float, weight_decay: float, enabled: Tensor) -> None:
        """Move the matrices; `enabled`, a float64 scalar 1 or 0, is multiplied into the whole step."""
        decay = 1 - learning_rate * weight_decay * enabled
        gathering: tuple[_Stack, Tensor, Pending | None] | None = None
        for stack in self._stacks:
            update = nesterov(stack.gradients, stack.momentum, momentum)
            stack.gradients = stack.gradients[:0].clone()
            steps = self._direction(update, self._tuples, row_normalize=self._config.row_normalize) * enabled
            self.num_orthogonalized += len(stack.owned(self._ranks.rank))
            full, pending = self._ranks.start_all_gather(steps)
            if gathering is not None:
                _move(*gathering, learning_rate, decay if weight_decay else None)
            gathering = stack, full, pending
        if gathering is not None:
            _move(*gathering, learning_rate, decay if weight_decay else None)

    def gather_state(self) -> dict[str, Tensor]:
        """`momentum/NAME` of every matrix, on the CPU of rank 0 and empty elsewhere. Called by every rank."""
        tensors = {}
        for stack in self._stacks:
            full, pending = self._ranks.start_all_gather(stack.momentum)
            if pending is not None:
                pending.wait()
            if self._ranks.is_first:
                tensors |= {f"momentum/{name}": full[i].cpu() for i, name in enumerate(stack.names)}
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over this rank's part of what `gather_state` gave, at whatever number of ranks."""
        for stack in self._stacks:
            owned = stack.owned(self._ranks.rank)
            for number in owned:
                stack.momentum[number - owned.start].copy_(tensors[f"momentum/{stack.names[number]}"])

    def state_tensors(self) -> list[Tensor]:
        """The state that lives on this rank."""
        return [stack.momentum for stack in self._stacks]


def _move(stack: _Stack, full: Tensor, pending: Pending | None, learning_rate: float, decay: Tensor | None) -> None:
    """Apply the gathered directions [N + padding, R, C] of a stack."""
    if pending is not None:
        pending.wait()
    if decay is not None:
        torch._foreach_mul_(stack.parameters, decay)
    steps = list(full[: len(stack.parameters)].float().unbind())
    torch._foreach_add_(stack.parameters, steps, alpha=-learning_rate * step_scale(*stack.parameters[0].shape))


def gradient_of(parameter: Parameter) -> Tensor:
    """The gradient; zeros for a parameter that the forward does not use yet (the MLPs of passes still switched off)."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
