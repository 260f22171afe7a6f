"""Decoding token by token: what earlier positions leave behind for later ones.

Shapes: B batch, T positions so far, K key/value heads, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import ModelConfig

LOOK_BACK = 3
"""Tokens that the embedding of one position depends on: smear gates see one back, hashed triples two."""


def can_decode(config: ModelConfig) -> bool:
    """Whether positions depend on earlier ones through attention and the embedding alone."""
    return config.smear.kind != "mean"


class History:
    """Keys and values of every attention of the forward, in the order of executions, for the positions so far."""

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity_tokens = capacity_tokens
        self._stored: list[tuple[Tensor, Tensor]] = []
        self._next = 0
        self.num_tokens = 0
        """Positions stored; the forward under way adds one."""

    def begin(self) -> None:
        """A forward of one more position begins. ValueError if there is no room for it."""
        if self.num_tokens == self._capacity_tokens:
            raise ValueError(f"a history of {self._capacity_tokens} tokens is full")
        self._next = 0
        self.num_tokens += 1

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v [B, 1, K, d] of the new position -> those of all positions [B, T, K, d]."""
        if self._next == len(self._stored):
            shape = (k.shape[0], self._capacity_tokens, *k.shape[2:])
            self._stored.append((k.new_empty(shape), v.new_empty(shape)))
        keys, values = self._stored[self._next]
        self._next += 1
        keys[:, self.num_tokens - 1], values[:, self.num_tokens - 1] = k[:, 0], v[:, 0]
        return keys[:, : self.num_tokens], values[:, : self.num_tokens]

    def attention_mask(self, window: int, device: torch.device) -> Tensor:
        """What the new position may attend to, bool [1, T]: the last `window` positions (0: all)."""
        mask = torch.ones(1, self.num_tokens, dtype=torch.bool, device=device)
        if window:
            mask[:, : max(0, self.num_tokens - window)] = False
        return mask
