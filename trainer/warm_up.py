"""Leaving no trace: everything that a warm-up before the clock changes is put back (methods 3.10).

The published entries forgot the sharded momentum, which thus began with forty steps of stale gradients (11.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def preserved(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Tensors (in place) and all random generators are afterwards what they were before, to the bit."""
    device_type = tensors[0].device.type
    before = [t.detach().clone() for t in tensors]
    random = random_state(device_type)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        restore_random_state(random, device_type)


def random_state(device_type: str) -> Tensor:
    """State of torch's generators, of the CPU and then of the GPU where there is one: uint8, on the CPU."""
    states = [torch.get_rng_state()]
    if device_type == "cuda":
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


def restore_random_state(state: Tensor, device_type: str) -> None:
    """Put back what `random_state` gave; the state of a GPU is left out where there is none, or none was saved."""
    num_cpu = torch.get_rng_state().numel()
    torch.set_rng_state(state[:num_cpu])
    if device_type == "cuda" and state.numel() > num_cpu:
        torch.cuda.set_rng_state(state[num_cpu:])
