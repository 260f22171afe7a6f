"""The manifest as checked, frozen data: groups of tensors, their encodings and the parts of their streams.

`from_wire` is the only way in for a reader and applies the rules of proto/FORMAT.md section 5 in their order.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from artifact import artifact_pb2, canonical_json, limits
from artifact.codecs.rans import MAX_LANES, MAX_LINES, Lattice, StepBudget
from artifact.codecs.registry import READABLE, expands_too_far
from artifact.content import TENSOR_NAME, matrix_shape, num_scales
from artifact.errors import ArtifactError, ErrorCode
from artifact.floats import LOG8_MAX_EXPONENT, LOG8_MIN_EXPONENT, NUM_BYTES
from artifact.schema import VERSION, Codec, FloatType, Kind, Order, Role

PLACEHOLDER: Final = "#"
_PATTERN: Final = re.compile(r"[A-Za-z0-9_./#-]+", re.ASCII)
_MAX_PERMUTED_ROWS: Final = 65_536
_ROLE_NAMES: Final = {Role.WEIGHT: "", Role.LOW_RANK_LEFT: " (left factor)", Role.LOW_RANK_RIGHT: " (right factor)"}


@dataclass(frozen=True)
class TensorSet:
    """Tensors of one shape: one named `pattern`, or one for every layer number put in the place of `#`."""

    pattern: str
    layers: Sequence[int]
    shape: tuple[int, ...]

    @property
    def num_tensors(self) -> int:
        return len(self.layers) if PLACEHOLDER in self.pattern else 1

    @property
    def tensor_size(self) -> int:
        """Values of one tensor."""
        rows, columns = matrix_shape(self.shape)
        return rows * columns

    def names(self) -> list[str]:
        if PLACEHOLDER not in self.pattern:
            return [self.pattern]
        return [self.pattern.replace(PLACEHOLDER, str(layer)) for layer in self.layers]


@dataclass(frozen=True)
class Encoding:
    """How the tensors of a group are represented (fields as in artifact.proto)."""

    kind: Kind
    float_type: FloatType
    bits: int = 0
    group_size: int = 0
    scale_exponent: int = 0
    order: Order = Order.ROWS
    permuted: bool = False

    @property
    def alphabet(self) -> int:
        """Number of different symbols in the first part of the stream."""
        if self.kind == Kind.FLOAT:
            return 256
        return {Kind.TERNARY: 3, Kind.BINARY: 2}.get(self.kind, 1 << self.bits)


@dataclass(frozen=True)
class Part:
    """Consecutive bytes of a stream that one codec decodes."""

    codec: Codec
    num_bytes: int
    carried_bytes: int = 0
    lanes: int = 0


@dataclass(frozen=True)
class PartShape:
    """What a part must decode to: `num_symbols` symbols below `alphabet`."""

    name: str
    num_symbols: int
    alphabet: int


@dataclass(frozen=True)
class Group:
    """Tensors coded together."""

    tensor_sets: tuple[TensorSet, ...]
    role: Role
    encoding: Encoding
    parts: tuple[Part, ...]
    crc32: int

    @property
    def label(self) -> str:
        """Short name for tables: the first pattern, and how many more there are."""
        more = len(self.tensor_sets) - 1
        return self.tensor_sets[0].pattern + (f" +{more} more" if more else "") + _ROLE_NAMES[self.role]

    @property
    def num_tensors(self) -> int:
        return sum(tensors.num_tensors for tensors in self.tensor_sets)

    @property
    def num_weights(self) -> int:
        return sum(tensors.num_tensors * tensors.tensor_size for tensors in self.tensor_sets)

    @property
    def stream_bytes(self) -> int:
        return sum(part.num_bytes - part.carried_bytes for part in self.parts)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every tensor in stream order."""
        for tensor_set in self.tensor_sets:
            for name in tensor_set.names():
                yield name, tensor_set.shape


def lattice_of(tensor_set: TensorSet, order: Order, lanes: int) -> Lattice:
    """Lattice of a quantized group's symbols: lines are rows (or columns) of all matrices side by side."""
    rows, columns = matrix_shape(tensor_set.shape)
    lines, positions = (columns, rows) if order == Order.COLUMNS else (rows, columns)
    return Lattice(lines, tensor_set.num_tensors * positions, lanes)


def part_shapes(tensor_sets: Sequence[TensorSet], encoding: Encoding) -> list[PartShape]:
    """The parts that a group's stream consists of, in their order."""
    num_weights = sum(tensors.num_tensors * tensors.tensor_size for tensors in tensor_sets)
    if encoding.kind == Kind.FLOAT:
        return [PartShape("values", num_weights * NUM_BYTES[encoding.float_type], 256)]
    scales = sum(tensors.num_tensors * num_scales(tensors.shape, encoding.group_size) for tensors in tensor_sets)
    shapes = [
        PartShape("symbols", num_weights, encoding.alphabet),
        PartShape("scales", scales * NUM_BYTES[encoding.float_type], 256),
    ]
    if encoding.kind == Kind.ASYMMETRIC:
        shapes.append(PartShape("zero_points", scales, encoding.alphabet))
    if encoding.permuted:
        rows = sum(tensors.num_tensors * matrix_shape(tensors.shape)[0] for tensors in tensor_sets)
        shapes.append(PartShape("permutation", 2 * rows, 256))
    return shapes


@dataclass(frozen=True)
class Manifest:
    """The manifest of a file whose rules have all been checked."""

    configuration: dict[str, Any]
    configuration_bytes: int
    tokenizer_sha256: str
    groups: tuple[Group, ...]
    ties: tuple[tuple[str, str], ...]
    code_bytes: int
    code_crc32: int


def from_wire(data: memoryview, stream_bytes: Sequence[int], code_bytes: int) -> Manifest:
    """Manifest from wire bytes that `wire.walk` has passed, checked against the lengths of the streams and the code."""
    message = artifact_pb2.Manifest.FromString(bytes(data))
    if message.version != VERSION:
        raise ArtifactError(ErrorCode.VERSION, f"format version {message.version}; this reader knows {VERSION}")
    for features in (message.required_features, message.optional_features):
        if any(a >= b for a, b in itertools.pairwise(features)):
            raise ArtifactError(ErrorCode.FEATURE_LIST, "feature numbers are not in ascending order")
    if message.required_features:
        raise ArtifactError(ErrorCode.REQUIRED_FEATURE, f"needs features {list(message.required_features)}")
    if len(message.tokenizer_sha256) != 32:
        raise ArtifactError(ErrorCode.TOKENIZER_SHA256, f"tokenizer hash of {len(message.tokenizer_sha256)} bytes")
    configuration = canonical_json.decode(message.configuration)
    if len(message.group) > limits.MAX_NUM_GROUPS:
        raise ArtifactError(ErrorCode.NUM_GROUPS, f"{len(message.group)} groups, more than {limits.MAX_NUM_GROUPS}")
    if len(message.group) != len(stream_bytes):
        raise ArtifactError(ErrorCode.STREAM_COUNT, f"{len(message.group)} groups but {len(stream_bytes)} streams")
    groups = _groups(message.group, stream_bytes)
    names = _check_names(groups)
    ties = _ties(message.tie, names)
    if message.code_bytes != code_bytes:
        raise ArtifactError(
            ErrorCode.CODE_LENGTH, f"{code_bytes} bytes of code, the manifest says {message.code_bytes}"
        )
    return Manifest(
        configuration=configuration,
        configuration_bytes=len(message.configuration),
        tokenizer_sha256=message.tokenizer_sha256.hex(),
        groups=groups,
        ties=ties,
        code_bytes=code_bytes,
        code_crc32=message.code_crc32,
    )


def _groups(messages: Sequence[Any], stream_bytes: Sequence[int]) -> tuple[Group, ...]:
    groups = []
    num_tensors = num_weights = 0
    steps = StepBudget()
    for message, length in zip(messages, stream_bytes, strict=True):
        tensor_sets = []
        for tensors in message.tensors:
            tensor_set = _tensor_set(tensors)
            num_tensors += tensor_set.num_tensors
            if num_tensors > limits.MAX_NUM_TENSORS:
                raise ArtifactError(ErrorCode.NUM_TENSORS, f"more than {limits.MAX_NUM_TENSORS} tensors")
            tensor_sets.append(tensor_set)
        encoding = _encoding(message.encoding, tensor_sets)
        shapes = part_shapes(tensor_sets, encoding)
        if len(message.part) != len(shapes):
            raise ArtifactError(ErrorCode.PART_COUNT, f"{len(message.part)} parts instead of {len(shapes)}")
        parts = tuple(Part(Codec(part.codec), part.num_bytes, part.carried_bytes, part.lanes) for part in message.part)
        group = Group(tuple(tensor_sets), Role(message.role), encoding, parts, message.crc32)
        for part, shape in zip(parts, shapes, strict=True):
            if part.codec not in READABLE and (part.codec, shape.name) != (Codec.RANS, "symbols"):
                raise ArtifactError(ErrorCode.CODEC, f"{group.label}: codec {part.codec.name} for {shape.name}")
        num_weights += group.num_weights
        if num_weights > limits.MAX_NUM_WEIGHTS:
            raise ArtifactError(ErrorCode.NUM_WEIGHTS, f"more than {limits.MAX_NUM_WEIGHTS} weights")
        for part, shape in zip(parts, shapes, strict=True):
            if expands_too_far(part.num_bytes, shape.num_symbols):
                raise ArtifactError(
                    ErrorCode.EXPANSION,
                    f"{group.label}: {part.num_bytes} bytes of {shape.name} claim to hold {shape.num_symbols} symbols",
                )
        _check_lanes(group, steps)
        if group.stream_bytes != length:
            raise ArtifactError(
                ErrorCode.STREAM_LENGTH, f"{group.label}: stream of {length} bytes, parts of {group.stream_bytes}"
            )
        groups.append(group)
    return tuple(groups)


def _check_lanes(group: Group, steps: StepBudget) -> None:
    """Check the fields that only RANS has, and that decoding does not take too many steps."""
    for index, part in enumerate(group.parts):
        if part.codec == Codec.RANS:
            lattice = lattice_of(group.tensor_sets[0], group.encoding.order, part.lanes)
            following = sum(later.num_bytes for later in group.parts[index + 1 :])
            valid = 1 <= part.lanes <= MAX_LANES and part.carried_bytes <= min(2 * part.lanes, following)
            valid = valid and 1 <= lattice.num_lines <= MAX_LINES and lattice.width > 0
            valid = valid and steps.allow(lattice)
            if valid:
                steps.spend(lattice)
        else:
            valid = part.lanes == part.carried_bytes == 0
        if not valid:
            raise ArtifactError(ErrorCode.LANES, f"{group.label}: {part} does not fit the group")


def _tensor_set(message: Any) -> TensorSet:
    pattern: str = message.pattern
    if len(pattern) > limits.MAX_NAME_BYTES or not _PATTERN.fullmatch(pattern) or pattern.count(PLACEHOLDER) > 1:
        raise ArtifactError(ErrorCode.PATTERN, f"{pattern[: limits.MAX_NAME_BYTES]!r} is no name of tensors")
    indices: tuple[int, ...] = tuple(message.indices)
    count: int = message.count
    has_placeholder = PLACEHOLDER in pattern
    if has_placeholder == (count == 0 and not indices) or (count and indices):
        raise ArtifactError(ErrorCode.INDICES, f"{pattern}: layer numbers and name pattern do not fit")
    ascending = all(a < b for a, b in itertools.pairwise(indices))
    # A run from 0 has a shorter spelling, the count.
    if indices and (not ascending or indices[-1] > limits.MAX_LAYER_NUMBER or indices[-1] == len(indices) - 1):
        raise ArtifactError(ErrorCode.INDICES, f"{pattern}: layer numbers are not in canonical form")
    if count > limits.MAX_LAYER_NUMBER + 1:
        raise ArtifactError(ErrorCode.INDICES, f"{pattern}: {count} layers")
    shape: tuple[int, ...] = tuple(message.shape)
    # Zero counts as one here: an empty tensor must not have absurd other dimensions.
    if len(shape) > limits.MAX_NUM_DIMENSIONS or math.prod(max(n, 1) for n in shape) > limits.MAX_NUM_WEIGHTS:
        raise ArtifactError(ErrorCode.SHAPE, f"{pattern}: shape {shape} is too large")
    return TensorSet(pattern, indices or range(count), shape)


def _encoding(message: Any, tensor_sets: Sequence[TensorSet]) -> Encoding:
    encoding = Encoding(
        kind=Kind(message.kind),
        float_type=FloatType(message.float_type),
        bits=message.bits,
        group_size=message.group_size,
        scale_exponent=message.scale_exponent,
        order=Order(message.order),
        permuted=message.permuted,
    )
    kind, float_type = encoding.kind, encoding.float_type
    if kind == Kind.FLOAT:
        valid = float_type != FloatType.LOG8 and encoding == Encoding(kind, float_type)
    else:
        valid = float_type != FloatType.FLOAT8_E4M3 and len(tensor_sets) == 1
        valid &= 2 <= encoding.bits <= 8 if kind in (Kind.SYMMETRIC, Kind.ASYMMETRIC) else encoding.bits == 0
        if float_type == FloatType.LOG8:
            valid &= LOG8_MIN_EXPONENT <= encoding.scale_exponent <= LOG8_MAX_EXPONENT
        else:
            valid &= encoding.scale_exponent == 0
        if encoding.permuted:
            valid &= all(matrix_shape(tensors.shape)[0] <= _MAX_PERMUTED_ROWS for tensors in tensor_sets)
    if not valid:
        raise ArtifactError(ErrorCode.ENCODING, f"{tensor_sets[0].pattern}: the fields of {encoding} do not fit")
    return encoding


def _check_names(groups: Sequence[Group]) -> set[str]:
    """Check that names are unique per role and that corrections fit; return the names of the weights."""
    shapes: dict[Role, dict[str, tuple[int, ...]]] = {role: {} for role in Role}
    kinds: dict[str, Kind] = {}
    for group in groups:
        for name, shape in group.tensors():
            if name in shapes[group.role] or len(name) > limits.MAX_NAME_BYTES:
                raise ArtifactError(ErrorCode.DUPLICATE_TENSOR, f"tensor {name} occurs twice, or its name is too long")
            shapes[group.role][name] = shape
            if group.role == Role.WEIGHT:
                kinds[name] = group.encoding.kind
    left, right = shapes[Role.LOW_RANK_LEFT], shapes[Role.LOW_RANK_RIGHT]
    for name in (*left, *right):
        weight, a, b = shapes[Role.WEIGHT].get(name, ()), left.get(name, ()), right.get(name, ())
        fits = len(weight) == len(a) == len(b) == 2 and (a[0], b[1]) == weight and a[1] == b[0]
        if not fits or not 1 <= a[1] <= limits.MAX_RANK or kinds[name] == Kind.FLOAT:
            raise ArtifactError(ErrorCode.LOW_RANK, f"{name}: correction {a} x {b} of a tensor {weight}")
    return set(shapes[Role.WEIGHT])


def _ties(messages: Sequence[Any], names: set[str]) -> tuple[tuple[str, str], ...]:
    ties = [(message.name, message.target) for message in messages]
    if any(a >= b for (a, _), (b, _) in itertools.pairwise(ties)):
        raise ArtifactError(ErrorCode.TIE, "tied names are not in ascending order")
    for name, target in ties:
        if len(name) > limits.MAX_NAME_BYTES or not TENSOR_NAME.fullmatch(name) or name in names or target not in names:
            raise ArtifactError(ErrorCode.TIE, f"{name[: limits.MAX_NAME_BYTES]!r} cannot be tied")
    return tuple(ties)
