"""Nats and bytes of scored targets, and the one place where they become bits per byte."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Tally:
    """Sums over scored targets: nats (float64), targets, and bytes of original UTF-8 text that they stand for."""

    nats: float = 0.0
    num_bytes: int = 0
    num_tokens: int = 0

    def add(self, nats: float, num_bytes: int, num_tokens: int) -> None:
        """Adds a batch of scored targets."""
        self.nats += float(nats)
        self.num_bytes += int(num_bytes)
        self.num_tokens += int(num_tokens)

    def merge(self, other: Tally) -> None:
        """Adds the sums of another tally, such as another rank's."""
        self.add(other.nats, other.num_bytes, other.num_tokens)

    @property
    def bpb(self) -> float:
        """Bits per byte: (sum of nats / ln 2) / bytes. NaN while no byte has been counted."""
        return self.nats / math.log(2.0) / self.num_bytes if self.num_bytes else math.nan

    @property
    def nats_per_token(self) -> float:
        """Mean loss in nats per target. NaN while nothing has been counted."""
        return self.nats / self.num_tokens if self.num_tokens else math.nan
