"""AdamW (Loshchilov and Hutter 2019) on lists of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def adamw_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    *,
    step: int,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    enabled: Tensor | None = None,
) -> None:
    """One step in place, with bias correction and decay `p ← p (1 - lr wd)` before the update.

    Args:
        step: number of this step, the first is 1.
        weight_decay: decoupled; 0 gives Adam.
        enabled: scalar 1 or 0 on the parameters' device, multiplied into every change of the parameters, so that a
            step can be called off without the host waiting for the device; moments are updated either way.
    """
    if not parameters:
        return
    beta1, beta2 = betas
    if weight_decay:
        decay = learning_rate * weight_decay
        torch._foreach_mul_(parameters, 1 - decay if enabled is None else 1 - decay * enabled)
    torch._foreach_lerp_(first_moments, gradients, 1 - beta1)
    torch._foreach_mul_(second_moments, beta2)
    torch._foreach_addcmul_(second_moments, gradients, gradients, 1 - beta2)
    denominators = torch._foreach_sqrt(second_moments)
    torch._foreach_div_(denominators, math.sqrt(1 - beta2**step))
    torch._foreach_add_(denominators, epsilon)
    updates = torch._foreach_div(first_moments, denominators)
    if enabled is not None:
        torch._foreach_mul_(updates, enabled)
    torch._foreach_add_(parameters, updates, alpha=-learning_rate / (1 - beta1**step))
