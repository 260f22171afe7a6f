"""What happens to gradients between backward and the optimizers: clipping, the finite check, and how its outcome
reaches the host without the device ever waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class NonFiniteGradient(Exception):
    """The loss or the averaged gradient holds NaN or infinity; no weight was touched."""


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What to multiply gradients of global L2 norm `norm` by, so that it is at most `max_norm` (0: no clipping)."""
    return torch.clamp(max_norm / (norm + 1e-6), max=1.0) if max_norm else torch.ones_like(norm)


def clip_local_gradients(gradients: Sequence[Tensor], max_norm: float) -> None:
    """Scale one rank's own gradients, before they are averaged, to an L2 norm of at most `max_norm`.

    Every rank gets another factor, so this is not clipping by the global norm: it is what the published entries with
    sharded Muon do.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, clip_factor(norm, max_norm))


@dataclass(frozen=True)
class StepOutcome:
    """Of one optimizer step, over all ranks."""

    step: int
    """The first is 1."""
    loss_nats: float
    gradient_norm: float
    """Before clipping."""
    is_finite: bool
    """Of this step and all before it: from the first step that is not, no weight moves."""


class Outcomes:
    """Outcomes on their way from the device: each is read when the next step has been queued, so that the device
    always has work. On a CPU there is nothing to wait for and each is read at once."""

    def __init__(self, device: torch.device) -> None:
        self._lag = 1 if device.type == "cuda" else 0
        self._waiting: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, status: Tensor) -> None:
        """Take in the status of a step: loss, gradient norm and 1 if finite, float64 [3] on the device."""
        if not self._lag:
            self._waiting.append((step, status, None))
            return
        host = torch.empty(status.shape, dtype=status.dtype, pin_memory=True)
        host.copy_(status, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._waiting.append((step, host, event))

    def ready(self, *, everything: bool = False) -> Iterator[StepOutcome]:
        """Outcomes that are due, oldest first; `everything`: the last ones too."""
        while len(self._waiting) > (0 if everything else self._lag):
            step, status, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            loss, norm, finite = status.tolist()
            yield StepOutcome(step, loss, norm, finite == 1)
