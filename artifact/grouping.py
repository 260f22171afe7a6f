"""Which tensors are coded together: the same name but for the layer number, the same shape, the same encoding."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from artifact.content import PlainTensor, QuantizedTensor, Tensor
from artifact.floats import LOG8_MAX_EXPONENT, LOG8_MIN_EXPONENT
from artifact.limits import MAX_LAYER_NUMBER
from artifact.manifest import PLACEHOLDER, Encoding, TensorSet
from artifact.schema import FloatType, Kind, Role

_LAYER_NUMBER: Final = re.compile(r"(?<![^.])(0|[1-9][0-9]{0,4})(?![^.])", re.ASCII)
_LOG8_OCTAVES: Final = 16


@dataclass(frozen=True)
class GroupedTensors:
    """One group before it is coded; `tensors` are in the order of the names in `tensor_sets`."""

    role: Role
    encoding: Encoding
    tensor_sets: tuple[TensorSet, ...]
    tensors: tuple[Tensor, ...]


_Sets = dict[tuple[Role, Encoding, str, tuple[int, ...]], dict[int, Tensor]]


def encoding_of(tensor: Tensor) -> Encoding:
    """Encoding of a tensor in the manifest, but for the exponent of LOG8 scales, which a whole group shares."""
    if isinstance(tensor, PlainTensor):
        assert tensor.float_type is not None
        return Encoding(Kind.FLOAT, tensor.float_type)
    return Encoding(
        kind=tensor.kind,
        float_type=tensor.scale_type,
        bits=tensor.bits,
        group_size=tensor.group_size,
        permuted=tensor.row_order is not None,
    )


def group_tensors(tensors: Mapping[str, Tensor]) -> list[GroupedTensors]:
    """Groups in the order of their role, encoding kind and first name; the order of the mapping does not matter.

    Plain tensors of one float type make one group: each is small, and a group costs some 50 bytes of the container.
    """
    sets: _Sets = {}
    for role, name, tensor in _with_factors(tensors):
        pattern, layer = split_name(name)
        sets.setdefault((role, encoding_of(tensor), pattern, tensor.shape), {})[layer] = tensor
    sets = _with_scale_exponents(sets)
    groups: dict[tuple[object, ...], list[tuple[TensorSet, list[Tensor]]]] = {}
    for (role, encoding, pattern, shape), by_layer in sorted(sets.items(), key=lambda item: _sort_key(*item[0])):
        layers = tuple(sorted(by_layer))
        if len(layers) == 1:  # a pattern for one tensor would only cost bytes
            tensor_set = TensorSet(pattern.replace(PLACEHOLDER, str(layers[0])), (), shape)
        else:
            tensor_set = TensorSet(pattern, layers, shape)
        key = (role, encoding) if encoding.kind == Kind.FLOAT else (role, encoding, pattern, shape)
        groups.setdefault(key, []).append((tensor_set, [by_layer[layer] for layer in layers]))
    return [
        GroupedTensors(
            role=key[0],  # type: ignore[arg-type]
            encoding=key[1],  # type: ignore[arg-type]
            tensor_sets=tuple(tensor_set for tensor_set, _ in members),
            tensors=tuple(tensor for _, members_tensors in members for tensor in members_tensors),
        )
        for key, members in groups.items()
    ]


def _with_scale_exponents(sets: _Sets) -> _Sets:
    """Give each set with LOG8 scales the exponent of its smallest scale; split sets that span more than 16 octaves.

    All LOG8 grids coincide where they overlap, so a tensor's own exponent does not matter.
    """
    result: _Sets = {}
    for (role, encoding, pattern, shape), by_layer in sets.items():
        if encoding.float_type != FloatType.LOG8:
            result[role, encoding, pattern, shape] = by_layer
            continue
        octaves = {layer: _octaves(tensor) for layer, tensor in by_layer.items()}
        lowest = min(low for low, _ in octaves.values())
        fits = max(high for _, high in octaves.values()) - lowest < _LOG8_OCTAVES
        for layer, tensor in by_layer.items():
            exponent = min(lowest if fits else octaves[layer][0], LOG8_MAX_EXPONENT)
            key = (role, replace(encoding, scale_exponent=exponent), pattern, shape)
            result.setdefault(key, {})[layer] = tensor
    return result


def _octaves(tensor: Tensor) -> tuple[int, int]:
    """Exponents of the smallest and the largest scale."""
    assert isinstance(tensor, QuantizedTensor)
    scales = tensor.scales.astype(np.float32)
    if scales.size == 0:
        return 0, 0
    # frexp's mantissa is below 1, ours at least 1.
    exponents = np.frexp(scales)[1] - 1
    return max(int(exponents.min()), LOG8_MIN_EXPONENT), int(exponents.max())


def split_name(name: str) -> tuple[str, int]:
    """(pattern, layer number): the first dot-separated part that is a number becomes `#`; -1 where there is none."""
    match = _LAYER_NUMBER.search(name)
    if match is None or int(match.group()) > MAX_LAYER_NUMBER:
        return name, -1
    return name[: match.start()] + PLACEHOLDER + name[match.end() :], int(match.group())


def _with_factors(tensors: Mapping[str, Tensor]) -> list[tuple[Role, str, Tensor]]:
    result: list[tuple[Role, str, Tensor]] = []
    for name, tensor in tensors.items():
        result.append((Role.WEIGHT, name, tensor))
        if isinstance(tensor, QuantizedTensor) and tensor.low_rank is not None:
            result.append((Role.LOW_RANK_LEFT, name, tensor.low_rank.left))
            result.append((Role.LOW_RANK_RIGHT, name, tensor.low_rank.right))
    return result


def _sort_key(role: Role, encoding: Encoding, pattern: str, shape: tuple[int, ...]) -> tuple[object, ...]:
    fields = (encoding.float_type, encoding.bits, encoding.group_size, encoding.scale_exponent, encoding.permuted)
    # Quantized matrices first: their streams are the bulk of the file.
    return (role, encoding.kind == Kind.FLOAT, pattern, shape, encoding.kind, fields)
