"""Phases of a run: what changes the computation itself while it runs (depth recurrence, quantization-aware training).

Each phase is another compiled graph; all that a run can reach are known beforehand, so that all are compiled before
the clock starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from model.errors import InputError
from model.network.gpt import GPT
from trainer.config import TrainingConfig
from trainer.qat import QuantizationAware
from trainer.schedule import recurrence_stage, soft_round_sharpness


@dataclass(frozen=True)
class Phase:
    """What the forward pass does."""

    num_extra_passes: int
    """Of depth recurrence."""
    quantizes: bool
    """Whether weights are fake-quantized."""


class Phases:
    """The phases of one run on one model.

    Raises:
        InputError: the recurrence's starts are neither one nor as many as its extra passes, or the model does not fit
            the fake quantization asked for.
    """

    def __init__(self, model: GPT, config: TrainingConfig) -> None:
        self._model = model
        self._config = config
        self._most_passes = model.config.recurrence.num_extra_passes
        starts = config.recurrence_start_fractions or config.recurrence_start_steps
        if starts and len(starts) not in (1, self._most_passes):
            raise InputError(
                f"training.recurrence_start_fractions, recurrence_start_steps: accepts one start or "
                f"model.recurrence.num_extra_passes={self._most_passes} of them, got {len(starts)}"
            )
        self._num_starts = len(starts)
        try:
            self.qat = QuantizationAware(model, config.qat)
        except ValueError as error:
            raise InputError(str(error)) from None
        self._qat_start_step: int | None = None
        self.current = self._enter(Phase(self._passes(0), False))

    def reachable(self) -> list[Phase]:
        """Every phase that a run can come to, in no particular order but the same on every rank."""
        stages = range(self._num_starts + 1) if self._num_starts else (0,)
        quantizes = [False] if not self._config.qat.enabled else [True]
        if self._config.qat.enabled and self._config.qat.start_below_learning_rate:
            quantizes = [False, True]
        return [Phase(self._passes(stage), on) for on in quantizes for stage in stages]

    def advance(self, step: int, fraction: float, learning_rate_multiplier: float) -> str | None:
        """Make the model ready for the next step; returns a line for the log when the phase changes.

        Args:
            step: steps done so far.
            fraction: the clock.
        """
        config = self._config.qat
        if config.enabled and self._qat_start_step is None:
            threshold = config.start_below_learning_rate
            if not threshold or learning_rate_multiplier < threshold:
                self._qat_start_step = step
        if self._qat_start_step is not None:
            self.qat.sharpness.fill_(soft_round_sharpness(config, step - self._qat_start_step))
        stage = recurrence_stage(self._config, step, fraction) or 0
        wanted = Phase(self._passes(stage), self._qat_start_step is not None)
        if wanted == self.current:
            return None
        begins = wanted.num_extra_passes > self.current.num_extra_passes == 0
        if begins and self._model.config.recurrence.untied_mlp:
            self._model.copy_mlps_to_extra_passes()
        self.current = self._enter(wanted)
        return (
            f"phase: {wanted.num_extra_passes} extra passes, "
            f"weights {'fake-quantized' if wanted.quantizes else 'as they are'}"
        )

    def rehearse(self, phase: Phase) -> None:
        """Put the model into a phase without beginning it, to compile its graph."""
        self._enter(phase)

    def end_rehearsal(self) -> None:
        """Back to where the run is."""
        self._enter(self.current)

    def seed_noise(self, step: int) -> None:
        """Where the forward pass is random: the same numbers for every rank and micro-batch of a step, whatever came
        before, so that neither resuming nor the number of ranks changes a run."""
        if self.qat.is_random and self.qat.is_on:
            torch.manual_seed(self._config.seed * 1_000_003 + step)

    def counters(self) -> dict[str, Any]:
        """What a checkpoint needs; JSON-able."""
        return {
            "num_extra_passes": self.current.num_extra_passes,
            "quantizes": self.current.quantizes,
            "qat_start_step": self._qat_start_step,
        }

    def restore(self, counters: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._qat_start_step = counters["qat_start_step"]
        self.current = self._enter(Phase(counters["num_extra_passes"], counters["quantizes"]))

    def _passes(self, stage: int) -> int:
        if not self._num_starts:
            return self._most_passes
        return self._most_passes * stage if self._num_starts == 1 else stage

    def _enter(self, phase: Phase) -> Phase:
        self._model.set_extra_passes(phase.num_extra_passes)
        self.qat.switch(phase.quantizes)
        return phase
