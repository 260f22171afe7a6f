"""Learning rate and momentum as pure functions of the step and the clock."""

from __future__ import annotations

from trainer.config import MuonConfig, TrainingConfig


def learning_rate_multiplier(config: TrainingConfig, step: int, fraction: float) -> float:
    """1, then linearly down to `min_learning_rate` at the end of the run; all parameter groups share it.

    Args:
        step: steps done so far.
        fraction: the clock, share of the run that is over.
    """
    warmdown = config.warmdown_fraction
    if config.warmdown_steps:
        # The baseline's form: this many steps at the mean pace so far, as a share of the run.
        warmdown = config.warmdown_steps * fraction / step if step else 0.0
    remaining = 1 - fraction
    if warmdown <= 0 or remaining >= warmdown:
        return 1.0
    return max(remaining / warmdown, config.min_learning_rate)


def momentum(config: MuonConfig, step: int) -> float:
    """Linear from `momentum_start` to `momentum` over the warm-up (methods 3.7)."""
    done = min(step / config.momentum_warmup_steps, 1.0) if config.momentum_warmup_steps else 1.0
    return (1 - done) * config.momentum_start + done * config.momentum
