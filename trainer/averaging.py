"""Averages of the weights over a run: exponential moving average and stochastic weight averaging (methods 3.11, 3.12).

Every kind is one recursion `average ← average + ω (weights - average)` in float32 and differs in ω and in when it is
applied, so what is stored is always the average itself, ready to be packed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from trainer.config import TrainingConfig


class WeightAverage:
    """The averaged weights of one run.

    Moving average with decay δ: `ω = 1 - δ`, from the initial weights on. δ is fixed (`average_decay`; published runs
    of 5,000 steps use 0.9965) or sized to the run (`average_horizon`): `δ = exp(-Δclock / horizon)`, so that whatever
    the number of steps an old value fades to 1/e over that share of the run. A fixed δ remembers the initialization in
    short runs and forgets too early in long ones.

    With bias correction `ω = (1 - δ) / (1 - Π δ)`, the product over all steps so far: the weighted mean of the
    visited weights alone, the initial ones forgotten at the first step (Kingma and Ba 2015, section 3).

    Stochastic weight averaging (Izmailov et al. 2018): `ω = 1/n` for the n-th weights taken in, every
    `swa_every_steps` steps while the learning-rate multiplier is below `swa_below_learning_rate`: their plain mean.
    """

    def __init__(self, parameters: Mapping[str, Parameter], config: TrainingConfig) -> None:
        self._parameters = parameters
        self._config = config
        self._num_averaged = 0
        self._remembered = 1.0
        """Weight that the initial weights would have without bias correction: Π δ."""
        self._tensors = {name: p.detach().float().clone() for name, p in parameters.items()}

    @property
    def tensors(self) -> dict[str, Tensor] | None:
        """The average by parameter name, float32; None while nothing has been taken in (before SWA begins)."""
        return self._tensors if self._num_averaged or not self._config.swa_every_steps else None

    def update(self, *, step: int, clock_advance: float, learning_rate_multiplier: float) -> None:
        """Take the present weights in, if this step is one that counts.

        Args:
            step: number of the step just done, the first is 1.
            clock_advance: share of the run that the step took.
            learning_rate_multiplier: of that step.
        """
        config = self._config
        if config.swa_every_steps:
            if step % config.swa_every_steps or learning_rate_multiplier >= config.swa_below_learning_rate:
                return
            weight = 1 / (self._num_averaged + 1)
        else:
            decay = config.average_decay or math.exp(-clock_advance / config.average_horizon)
            self._remembered *= decay
            weight = 1 - decay
            if config.average_bias_correction:
                weight = weight / (1 - self._remembered) if weight else 0.0
        self._num_averaged += 1
        self._take_in(weight)

    @torch.no_grad()
    def _take_in(self, weight: float) -> None:
        torch._foreach_lerp_(
            list(self._tensors.values()), [p.detach().float() for p in self._parameters.values()], weight
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights stand in the model while this lasts (the live ones if there is no average yet)."""
        if self.tensors is None:
            yield
            return
        live = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._write(self._tensors)
        try:
            yield
        finally:
            self._write(live)

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])

    def counters(self) -> dict[str, Any]:
        """What a checkpoint needs beside the tensors; JSON-able and exact."""
        return {"num_averaged": self._num_averaged, "remembered": self._remembered}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor] | None, counters: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's average and counters; tensors None (no average yet): they keep their values."""
        self._num_averaged, self._remembered = counters["num_averaged"], counters["remembered"]
        if tensors is not None:
            for name, tensor in self._tensors.items():
                tensor.copy_(tensors[name])


def weight_average(parameters: Mapping[str, Parameter], config: TrainingConfig) -> WeightAverage | None:
    """The average that the configuration asks for, or None."""
    wanted = config.average_horizon or config.average_decay or config.swa_every_steps
    return WeightAverage(parameters, config) if wanted else None
