"""The one matrix product of the network. Whatever changes a product by its role (adapters, number formats, fake
quantization, Hessian taps) hooks in here and nowhere else.

Shapes: B batch, T time, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Role = Literal[
    "q",
    "k",
    "v",
    "qkv",
    "attn_out",
    "mlp_up",
    "mlp_gate",
    "mlp_down",
    "embedding",
    "embedding_in",
    "embedding_out",
    "hash_projection",
    "value_projection",
    "head",
]
"""What a matrix does. `qkv`: q, k and v in one; `mlp_gate`: the gate of SwiGLU; `embedding_in`, `embedding_out`: from a
narrow token table to the model's width and back; the others say what they say."""

WeightTransform = Callable[[Tensor], Tensor]
"""What the product sees in place of a float32 master: fake quantization, ternary weights, noise. Differentiable."""


class Adapter(Protocol):
    """A correction added to a product: x [B, T, I] -> [B, T, O]."""

    def __call__(self, x: Tensor) -> Tensor: ...


def project(x: Tensor, weight: Tensor, adapter: Adapter | None = None) -> Tensor:
    """`x Wᵀ` in x's type plus the adapter's correction; x [B, T, I], weight [O, I] (float32 master) -> [B, T, O]."""
    product = F.linear(x, weight.to(x.dtype))
    return product if adapter is None else product + adapter(x)


class Projection(nn.Module):
    """A weight matrix [O, I] without bias and the role it plays.

    `transform`, None at first, stands between the master weight and the product: set it for fake quantization.
    """

    def __init__(self, role: Role, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.role = role
        self.weight = nn.Parameter(torch.empty(num_outputs, num_inputs))
        self.transform: WeightTransform | None = None

    def forward(self, x: Tensor, adapter: Adapter | None = None) -> Tensor:
        weight = self.weight if self.transform is None else self.transform(self.weight)
        return project(x, weight, adapter)

    def extra_repr(self) -> str:
        return f"{self.role}, {self.weight.shape[1]} -> {self.weight.shape[0]}"
