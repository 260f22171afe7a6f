"""Orthogonalization of matrices by polynomial iterations: the heart of Muon.

Each iteration maps every singular value s of X to `a s + b s³ + c s⁵` and leaves the singular vectors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Coefficients = Sequence[tuple[float, float, float]]
Method = Literal["newton_schulz", "polar_express"]

NEWTON_SCHULZ: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
"""Jordan et al. 2024: one tuple for every iteration; five map [0.01, 1] into [0.682, 1.134]."""

POLAR_EXPRESS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Amsel et al. 2025: a different tuple each iteration, minimax-optimal for five; [1e-3, 1] goes to [0.859, 1.141]."""


def coefficients(method: Method, num_iterations: int) -> Coefficients:
    """The tuples of `num_iterations` iterations.

    Raises:
        ValueError: Polar Express with more iterations than it has tuples.
    """
    if method == "newton_schulz":
        return (NEWTON_SCHULZ,) * num_iterations
    if num_iterations > len(POLAR_EXPRESS):
        raise ValueError(f"num_iterations: polar_express accepts at most {len(POLAR_EXPRESS)}, got {num_iterations}")
    return POLAR_EXPRESS[:num_iterations]


def orthogonalize(matrix: Tensor, tuples: Coefficients, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A matrix near the orthogonal polar factor of each matrix in [..., R, C]; result in `dtype`.

    Matrices are divided by their own Frobenius norm first, so the scale of the input does not matter.
    """
    x = matrix.to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for a, b, c in tuples:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


def normalize_rows(matrix: Tensor) -> Tensor:
    """Every row of [..., R, C] divided by its L2 norm (floor 1e-7): MuonEq-R's step before orthogonalization."""
    return matrix / matrix.float().norm(dim=-1, keepdim=True).clamp_min(1e-7).to(matrix.dtype)
