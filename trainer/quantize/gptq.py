"""GPTQ: quantize a matrix column by column, each column's error fed to those still to come (methods.md 5.3).

Minimizes `tr(E H Eᵀ)`, E the error of the weights and H = Σ x xᵀ over calibration inputs: the squared error of the
matrix's outputs (Frantar et al. 2022). Same-shape matrices go through the loop together, on CPU or GPU.

Shapes: N matrices, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from trainer.quantize.config import GPTQConfig

_T = TypeVar("_T")
_MAX_DAMPING = 1e3
_FACTORED_AT_ONCE = 1 << 23
"""Elements of the Hessians that are factored together, in float64: enough to keep a GPU busy, not to fill a memory."""


def quantize(
    weights: Tensor,
    hessians: Tensor,
    scales: Tensor,
    *,
    lowest: int,
    highest: int,
    config: GPTQConfig,
    code_step: int = 1,
    names: Sequence[str] = (),
    factored: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Codes int8 [N, R, C] of `weights` [N, R, C].

    A column whose inputs were all zero gets the code 0: it contributes nothing.

    Args:
        hessians: symmetric [N, C, C], or [1, C, C] for one that all matrices share.
        scales: positive steps [N, R].
        lowest, highest: range of the codes.
        names: of the matrices, for error messages.
        factored: the result of `column_order_and_factor`, if it is at hand.

    Raises:
        ValueError: a Hessian holds values that are not finite, or is not positive semi-definite.
    """
    order, factor = factored or column_order_and_factor(hessians, config, names)
    weights = weights.to(torch.float32)
    dead = (hessians.diagonal(dim1=-2, dim2=-1) == 0)[:, None, :]
    work = _permute_columns(torch.where(dead, 0.0, weights), order)
    scales = scales.to(torch.float32)
    codes = torch.empty_like(work, dtype=torch.int8)
    num_columns = work.shape[-1]
    for start in range(0, num_columns, config.block_size):
        stop = min(start + config.block_size, num_columns)
        errors = _quantize_block(
            work[..., start:stop], factor[:, start:stop, start:stop], scales, codes[..., start:stop],
            (lowest, highest, code_step),
        )  # fmt: skip
        work[..., stop:] -= errors @ factor[:, start:stop, stop:]
    inverse = torch.argsort(order, dim=-1)
    return _permute_columns(codes, inverse)


class Factors:
    """Orders and factors of Hessians that have been factored once: they depend on neither weights nor steps."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, GPTQConfig], tuple[Tensor, Tensor, Tensor]] = {}

    def get(self, names: Sequence[str], hessians: Mapping[str, Tensor], config: GPTQConfig) -> tuple[Tensor, Tensor]:
        """(order [N, C], factor [N, C, C]) of the named Hessians, all of one size; the new ones factored together."""
        keys = [(id(hessians[name]), config) for name in names]
        missing = {key: name for key, name in zip(keys, names, strict=True) if key not in self._known}
        at_once = max(1, _FACTORED_AT_ONCE // hessians[names[0]].numel())
        for batch in _batches(list(missing.items()), at_once):
            stacked = torch.stack([hessians[name] for _, name in batch])
            orders, factors = column_order_and_factor(stacked, config, [name for _, name in batch])
            for (key, name), order, factor in zip(batch, orders, factors, strict=True):
                # The Hessian is kept so that its id stays its own.
                self._known[key] = order, factor, hessians[name]
        found = [self._known[key] for key in keys]
        return torch.stack([order for order, _, _ in found]), torch.stack([factor for _, factor, _ in found])


def _quantize_block(block: Tensor, factor: Tensor, scales: Tensor, codes: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Fill `codes` [N, R, b] from `block`, which is changed on the way; returns the scaled errors [N, R, b]."""
    lowest, highest, code_step = grid
    errors = torch.empty_like(block)
    for j in range(block.shape[-1]):
        column = block[..., j]
        code = torch.round(column / scales)
        if code_step > 1:
            code = torch.round(code / code_step) * code_step
        code = code.clamp(lowest, highest)
        codes[..., j] = code.to(torch.int8)
        error = (column - code * scales) / factor[:, j, j, None]
        block[..., j + 1 :] -= error[..., None] * factor[:, j, None, j + 1 :]
        errors[..., j] = error
    return errors


def column_order_and_factor(hessians: Tensor, config: GPTQConfig, names: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
    """(order of the columns [N, C], upper triangular U [N, C, C] float32 with H⁻¹ = Uᵀ U), H damped and in that order.

    Damping is raised tenfold, matrix by matrix, while a Hessian cannot be factored.
    """
    if not torch.isfinite(hessians).all():
        bad = int((~torch.isfinite(hessians)).flatten(1).any(dim=1).nonzero()[0])
        raise ValueError(f"the Hessian of {_name(names, bad)} holds a value that is not finite")
    damped = hessians.to(torch.float64, copy=True)
    diagonal = damped.diagonal(dim1=-2, dim2=-1)
    diagonal[diagonal == 0] = 1.0
    unit = diagonal.mean(dim=-1, keepdim=True)
    if config.activation_order:
        order = torch.argsort(diagonal, dim=-1, descending=True, stable=True)
    else:
        order = torch.arange(damped.shape[-1], device=damped.device).expand(len(damped), -1)
    rows = damped.gather(1, order[:, :, None].expand_as(damped))
    ordered = rows.gather(2, order[:, None, :].expand_as(damped))
    added = torch.full_like(unit, config.damping) * unit
    ordered.diagonal(dim1=-2, dim2=-1).add_(added)
    damping = torch.full((len(ordered),), max(config.damping, 1e-10), dtype=torch.float64, device=ordered.device)
    while True:
        # U = J L⁻¹ J for the lower Cholesky factor L of J H J, J the reversal: one factorization instead of two.
        lower, info = torch.linalg.cholesky_ex(ordered.flip(1, 2))
        failed = info > 0
        if not bool(failed.any()):
            break
        if float(damping[failed].max()) > _MAX_DAMPING:
            raise ValueError(f"the Hessian of {_name(names, int(failed.nonzero()[0]))} is not positive semi-definite")
        more = torch.where(failed, 9 * damping, torch.zeros_like(damping))
        ordered.diagonal(dim1=-2, dim2=-1).add_(more[:, None] * unit)
        damping = torch.where(failed, 10 * damping, damping)
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    inverse = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
    return order, inverse.flip(1, 2).to(torch.float32)


def output_error(error: Tensor, hessian: Tensor) -> Tensor:
    """`e H eᵀ` of every row: the squared error of each output over the calibration inputs; [..., R, C] -> [..., R]."""
    return ((error @ hessian.to(error.dtype)) * error).sum(dim=-1)


def _permute_columns(matrix: Tensor, order: Tensor) -> Tensor:
    return matrix.gather(2, order[:, None, :].expand_as(matrix)) if len(order) == len(matrix) else matrix[..., order[0]]


def _batches(items: list[_T], size: int) -> list[list[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else f"matrix {index}"
