"""Selective pruning: codes of ±1 set to zero where that costs least (methods.md 5.11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from artifact.content import QuantizedTensor, Tensor
from artifact.schema import Kind
from trainer.quantize.tensor_plan import role_of


def num_prunable(tensors: Mapping[str, Tensor]) -> int:
    """Codes ±1 in the matrices of the blocks."""
    return sum(int((np.abs(tensor.symbols) == 1).sum()) for tensor in _block_matrices(tensors).values())


def prune(tensors: Mapping[str, Tensor], num_codes: int) -> dict[str, Tensor]:
    """The tensors with the `num_codes` codes ±1 of smallest scale set to zero; ties in order of name, then position."""
    matrices = _block_matrices(tensors)
    places = []
    for number, name in enumerate(sorted(matrices)):
        tensor = matrices[name]
        rows, columns = np.nonzero(np.abs(tensor.symbols) == 1)
        places.append((tensor.scales.astype(np.float64)[rows] ** 2, np.full(len(rows), number), rows, columns))
    if not places:
        return dict(tensors)
    costs, numbers, rows, columns = (np.concatenate(arrays) for arrays in zip(*places, strict=True))
    chosen = np.argsort(costs, kind="stable")[:num_codes]
    pruned = dict(tensors)
    for number, name in enumerate(sorted(matrices)):
        here = chosen[numbers[chosen] == number]
        if len(here):
            symbols = matrices[name].symbols.copy()
            symbols[rows[here], columns[here]] = 0
            pruned[name] = replace(matrices[name], symbols=symbols)
    return pruned


def prune_to_fit(
    tensors: Mapping[str, Tensor], num_bytes: Callable[[Mapping[str, Tensor]], int], max_bytes: int
) -> dict[str, Tensor]:
    """The fewest pruned codes (to within 1 in 4096 of them all) that bring the size to `max_bytes`; all, if none do."""
    if num_bytes(tensors) <= max_bytes:
        return dict(tensors)
    total = num_prunable(tensors)
    too_few, enough = 0, total
    while enough - too_few > max(total // 4096, 1):
        middle = (too_few + enough) // 2
        if num_bytes(prune(tensors, middle)) <= max_bytes:
            enough = middle
        else:
            too_few = middle
    return prune(tensors, enough)


def _block_matrices(tensors: Mapping[str, Tensor]) -> dict[str, QuantizedTensor]:
    return {
        name: tensor
        for name, tensor in tensors.items()
        if isinstance(tensor, QuantizedTensor)
        and tensor.kind == Kind.SYMMETRIC
        and tensor.group_size == 0
        and tensor.symbols.ndim == 2
        and role_of(name) in ("attention", "mlp")
    }
