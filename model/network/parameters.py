"""What kind of parameter each parameter is, for whoever treats kinds differently: optimizer groups, formats."""

from __future__ import annotations

from typing import Literal

from torch import nn

from model.network.embedding import TokenEmbedding
from model.network.hash_embedding import HashEmbedding
from model.network.projection import BLOCK_ROLES, Projection
from model.network.value_embedding import ValueEmbedding

Kind = Literal["matrix", "side_matrix", "table", "head", "scalar"]
"""matrix: of the blocks; side_matrix: projections of hash, value and narrow token tables; table: looked up by rows;
head: the output matrix where it is not the token table; scalar: vectors, gates and single numbers."""


def parameter_kinds(model: nn.Module) -> dict[str, Kind]:
    """The kind of every parameter, by name and in the order of `named_parameters`."""
    special: dict[str, Kind] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, Projection):
            kind: Kind = "matrix" if module.role in BLOCK_ROLES else "head" if module.role == "head" else "side_matrix"
            special[f"{prefix}weight"] = kind
        elif isinstance(module, TokenEmbedding):
            special[f"{prefix}weight"] = "table"
        elif isinstance(module, HashEmbedding | ValueEmbedding):
            special[f"{prefix}table"] = "table"
    return {name: special.get(name, "scalar") for name, _ in model.named_parameters()}
