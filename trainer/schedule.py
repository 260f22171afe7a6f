"""Learning rate and momentum as pure functions of the step and the clock."""

from __future__ import annotations

from trainer.config import MuonConfig, QATConfig, TrainingConfig


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


def weight_decay(config: MuonConfig, fraction: float) -> float:
    """The matrices' weight decay at clock `fraction`: constant, then linear to its final multiple (methods 3.9)."""
    start = config.weight_decay_taper_start
    if fraction <= start:
        return config.weight_decay
    done = (fraction - start) / (1 - start)
    return config.weight_decay * ((1 - done) + done * config.weight_decay_taper_final)


def recurrence_stage(config: TrainingConfig, step: int, fraction: float) -> int | None:
    """How many of the switched recurrence stages are on; None where nothing is switched and all passes run always."""
    if config.recurrence_start_fractions:
        return sum(fraction >= start for start in config.recurrence_start_fractions)
    if config.recurrence_start_steps:
        return sum(step >= start for start in config.recurrence_start_steps)
    return None


def soft_round_sharpness(config: QATConfig, steps_since_start: int) -> float:
    """α of soft rounding: linear over `soft_round_steps`, then constant (methods 4.2)."""
    done = min(steps_since_start / config.soft_round_steps, 1.0)
    first, last = config.soft_round_sharpness
    return (1 - done) * first + done * last
