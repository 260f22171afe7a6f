"""AdamW for everything that is no matrix of Muon's: the one optimizer that DeepSpeed is given.

At ZeRO stage 0 it holds the parameters themselves. At stage 1 DeepSpeed replaces each group's parameters by one flat
tensor, this rank's part of them laid end to end; the step is the same elementwise arithmetic, so both stages move
every weight by the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from model.optimizers.adamw import adamw_step
from trainer.config import AdamConfig
from trainer.ranks import Ranks

MOMENTS = ("first", "second")


class GroupedAdamW(torch.optim.Optimizer):
    """AdamW over named groups; the trainer sets `num_steps`, `learning_rate_multiplier` and `enabled` before a step.

    DeepSpeed calls `step` once for all groups at stage 0 and once for each at stage 1.

    Args:
        groups: parameters by name, in each group.
        configs: settings of each group.
    """

    def __init__(
        self, groups: Mapping[str, Mapping[str, Parameter]], configs: Mapping[str, AdamConfig], ranks: Ranks
    ) -> None:
        present = {kind: dict(group) for kind, group in groups.items() if group}
        super().__init__([{"params": list(group.values()), "name": kind} for kind, group in present.items()], {})
        self._groups = present
        self._configs = dict(configs)
        self._ranks = ranks
        self.num_steps = 0
        self.learning_rate_multiplier = 1.0
        self.enabled = torch.ones((), dtype=torch.float64, device=ranks.device)
        """Scalar 1 or 0 on the device, multiplied into the whole step."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            config = self._configs[group["name"]]
            parameters: list[Tensor] = group["params"]
            moments = [self._moments(p) for p in parameters]
            adamw_step(
                parameters,
                [p.grad for p in parameters if p.grad is not None],
                [m["first"] for m in moments],
                [m["second"] for m in moments],
                step=self.num_steps,
                learning_rate=config.learning_rate * self.learning_rate_multiplier,
                betas=config.betas,
                epsilon=config.epsilon,
                weight_decay=config.weight_decay,
                enabled=self.enabled,
            )

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        for name in MOMENTS:
            if name not in state:
                state[name] = torch.zeros_like(parameter, requires_grad=False)
        return state

    def gather_state(self) -> dict[str, Tensor]:
        """`first/NAME` and `second/NAME`, on the CPU of rank 0 and empty elsewhere. Called by every rank."""
        tensors: dict[str, Tensor] = {}
        for group in self.param_groups:
            names = self._groups[group["name"]]
            for moment in MOMENTS:
                if self._is_sharded(group):
                    full, pending = self._ranks.start_all_gather(self._moments(group["params"][0])[moment])
                    if pending is not None:
                        pending.wait()
                    values = _cut(full, names)
                else:
                    values = {name: self._moments(p)[moment] for name, p in zip(names, group["params"], strict=True)}
                if self._ranks.is_first:
                    # Cloned: a view would drag its whole flat tensor into the checkpoint.
                    tensors |= {f"{moment}/{name}": value.to("cpu", copy=True) for name, value in values.items()}
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over (this rank's part of) what `gather_state` gave, at whatever number of ranks and ZeRO stage."""
        for group in self.param_groups:
            names = self._groups[group["name"]]
            for moment in MOMENTS:
                saved = [tensors[f"{moment}/{name}"] for name in names]
                if not self._is_sharded(group):
                    for parameter, value in zip(group["params"], saved, strict=True):
                        self._moments(parameter)[moment].copy_(value)
                    continue
                part = self._moments(group["params"][0])[moment]
                padding = part.numel() * self._ranks.size - sum(value.numel() for value in saved)
                flat = torch.cat([*(value.flatten() for value in saved), torch.zeros(padding)])
                part.copy_(flat[self._ranks.rank * part.numel() :][: part.numel()])

    def _is_sharded(self, group: Mapping[str, Any]) -> bool:
        """Whether DeepSpeed has put a flat part in place of the group's parameters."""
        own = next(iter(self._groups[group["name"]].values()))
        return group["params"][0] is not own

    def state_tensors(self) -> list[Tensor]:
        """The state that lives on this rank."""
        return [self._moments(p)[name] for group in self.param_groups for p in group["params"] for name in MOMENTS]


def _cut(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that lie end to end in `flat`, padding at the end dropped."""
    total = sum(p.numel() for p in like.values())
    parts = flat[:total].split([p.numel() for p in like.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(like.items(), parts, strict=True)}
