"""Exponential moving average of the weights, its memory sized to the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter


class WeightAverage:
    """`average ← δ average + (1 - δ) weights` after every step, float32, starting from the initial weights.

    `δ = exp(-Δclock / horizon)`: whatever the number of steps, an old value fades to 1/e over `horizon` of the run. A
    fixed δ remembers the initialization in short runs and forgets too early in long ones.
    """

    def __init__(self, parameters: Mapping[str, Parameter], horizon: float) -> None:
        self._parameters = parameters
        self._horizon = horizon
        self.tensors = {name: p.detach().float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, clock_advance: float) -> None:
        """Take the present weights in; `clock_advance` is the share of the run that the step took."""
        decay = math.exp(-clock_advance / self._horizon)
        torch._foreach_lerp_(
            list(self.tensors.values()), [p.detach().float() for p in self._parameters.values()], 1 - decay
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights stand in the model while this lasts."""
        live = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._write(self.tensors)
        try:
            yield
        finally:
            self._write(live)

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])
