"""A strict, table-driven walk over protobuf wire bytes, run before the protobuf library sees them.

The protobuf library accepts duplicate and unknown fields, overlong varints, any field order and explicit defaults, so
the same message has many encodings and a parser may see something else than another. Here every message has one
encoding (proto/FORMAT.md section 3).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from artifact.errors import ArtifactError, ErrorCode

VARINT: Final = 0
FIXED64: Final = 1
LENGTH: Final = 2
FIXED32: Final = 5

_MAX_VARINT_BYTES: Final = 5
_MAX_UINT32: Final = 0xFFFFFFFF

FieldKind = Literal["uint32", "bool", "enum", "fixed32", "fixed64", "bytes", "string", "packed", "message"]

_WIRE_TYPES: Final[dict[str, int]] = {
    "uint32": VARINT,
    "bool": VARINT,
    "enum": VARINT,
    "fixed32": FIXED32,
    "fixed64": FIXED64,
    "bytes": LENGTH,
    "string": LENGTH,
    "packed": LENGTH,
    "message": LENGTH,
}


@dataclass(frozen=True)
class Field:
    """One row of a message's table. `maximum` bounds enum values; `message` is the table of a nested message.

    A `required` field must be present. A field that is neither `required` nor repeated must be absent when it has its
    default value; `present_when_empty` marks byte strings that stand in the file even when empty.
    """

    name: str
    kind: FieldKind
    repeated: bool = False
    required: bool = False
    maximum: int = _MAX_UINT32
    present_when_empty: bool = False
    message: "dict[int, Field] | None" = None


Message = dict[int, Field]

_TENSOR_SET: Final[Message] = {
    1: Field("pattern", "string", required=True),
    2: Field("count", "uint32"),
    3: Field("indices", "packed"),
    4: Field("shape", "packed"),
}
_ENCODING: Final[Message] = {
    1: Field("kind", "enum", required=True, maximum=5),
    2: Field("float_type", "enum", required=True, maximum=5),
    3: Field("bits", "uint32"),
    4: Field("group_size", "uint32"),
    5: Field("scale_exponent", "uint32"),  # zigzag: any 32-bit value is a canonical sint32
    6: Field("order", "enum", maximum=1),
    7: Field("permuted", "bool"),
}
_PART: Final[Message] = {
    1: Field("codec", "enum", maximum=4),
    2: Field("num_bytes", "uint32"),
    3: Field("carried_bytes", "uint32"),
    4: Field("lanes", "uint32"),
}
_GROUP: Final[Message] = {
    1: Field("tensors", "message", repeated=True, required=True, message=_TENSOR_SET),
    2: Field("role", "enum", maximum=2),
    3: Field("encoding", "message", required=True, message=_ENCODING),
    4: Field("part", "message", repeated=True, required=True, message=_PART),
    5: Field("crc32", "fixed32"),
}
_TIE: Final[Message] = {
    1: Field("name", "string", required=True),
    2: Field("target", "string", required=True),
}
MANIFEST: Final[Message] = {
    1: Field("version", "uint32", required=True),
    2: Field("required_features", "packed"),
    3: Field("optional_features", "packed"),
    4: Field("tokenizer_sha256", "bytes", required=True),
    5: Field("configuration", "bytes", required=True),
    6: Field("group", "message", repeated=True, message=_GROUP),
    7: Field("tie", "message", repeated=True, message=_TIE),
    8: Field("code_bytes", "uint32"),
    9: Field("code_crc32", "fixed32"),
}
# The manifest is walked on its own, after its length has been checked: here it is a string of bytes.
ARTIFACT: Final[Message] = {
    1: Field("magic", "fixed64", required=True),
    2: Field("manifest", "bytes", required=True),
    3: Field("stream", "bytes", repeated=True),
    4: Field("code", "bytes", required=True, present_when_empty=True),
    5: Field("sha256", "bytes", required=True),
}


@dataclass(frozen=True)
class Span:
    """A field found by `walk`: its payload is `data[start:end]` (for varints: the varint itself)."""

    field: Field
    start: int
    end: int


def read_varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    """Return (value, position after it) of the varint at `position`; it must lie before `end` and be minimal."""
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if position + index >= end:
            raise ArtifactError(ErrorCode.WIRE_TRUNCATED, f"a number runs past byte {end}")
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if byte == 0 and index > 0:
                raise ArtifactError(ErrorCode.VARINT_NOT_MINIMAL, f"overlong number at byte {position}")
            return value, position + index + 1
    raise ArtifactError(ErrorCode.VARINT_TOO_LONG, f"number of more than {_MAX_VARINT_BYTES} bytes at byte {position}")


def walk(data: memoryview, message: Message, start: int, end: int) -> list[Span]:
    """Check the message in `data[start:end]` against its table, nested messages included, and return its fields.

    Raises ArtifactError with the code of the first rule broken, fields in file order, checks in the order of
    FORMAT.md section 3.
    """
    return list(_fields(data, message, start, end))


def _fields(data: memoryview, message: Message, start: int, end: int) -> Iterator[Span]:
    position = start
    previous = 0
    seen: set[int] = set()
    while position < end:
        tag_position = position
        tag, position = read_varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        field = message.get(number)
        if field is None:
            raise ArtifactError(ErrorCode.UNKNOWN_FIELD, f"unknown field {number} at byte {tag_position}")
        if wire_type != _WIRE_TYPES[field.kind]:
            raise ArtifactError(
                ErrorCode.WIRE_TYPE, f"field {field.name} at byte {tag_position} has wire type {wire_type}"
            )
        if number == previous and not field.repeated:
            raise ArtifactError(ErrorCode.DUPLICATE_FIELD, f"field {field.name} repeated at byte {tag_position}")
        if number < previous:
            raise ArtifactError(ErrorCode.FIELD_ORDER, f"field {field.name} at byte {tag_position} is out of order")
        previous = number
        seen.add(number)
        span = _payload(data, field, position, end)
        _check_value(data, span)
        yield span
        position = span.end
    for number, field in message.items():
        if field.required and number not in seen:
            raise ArtifactError(ErrorCode.MISSING_FIELD, f"field {field.name} is missing before byte {end}")


def _payload(data: memoryview, field: Field, position: int, end: int) -> Span:
    wire_type = _WIRE_TYPES[field.kind]
    if wire_type == VARINT:
        _, after = read_varint(data, position, end)
        return Span(field, position, after)
    if wire_type == LENGTH:
        length, position = read_varint(data, position, end)
    else:
        length = 8 if wire_type == FIXED64 else 4
    if length > end - position:
        raise ArtifactError(
            ErrorCode.WIRE_TRUNCATED, f"field {field.name} at byte {position} runs {length} bytes, past byte {end}"
        )
    return Span(field, position, position + length)


def _check_value(data: memoryview, span: Span) -> None:
    field, start, end = span.field, span.start, span.end
    if field.kind in ("uint32", "bool", "enum"):
        value, _ = read_varint(data, start, end)
        if value > (1 if field.kind == "bool" else field.maximum):
            raise ArtifactError(ErrorCode.VALUE_RANGE, f"field {field.name} has the value {value}")
        default = value == 0
    elif field.kind in ("fixed32", "fixed64"):
        default = not any(data[start:end])
    else:
        default = start == end and field.kind != "message" and not field.repeated
    if default and not field.present_when_empty:
        raise ArtifactError(ErrorCode.EXPLICIT_DEFAULT, f"field {field.name} spells out its default at byte {start}")
    if field.kind == "packed":
        while start < end:
            value, start = read_varint(data, start, end)
            if value > field.maximum:
                raise ArtifactError(ErrorCode.VALUE_RANGE, f"field {field.name} has the value {value}")
    elif field.kind == "string":
        try:
            bytes(data[start:end]).decode()
        except UnicodeDecodeError:
            raise ArtifactError(ErrorCode.UTF8, f"field {field.name} at byte {start} is not UTF-8") from None
    elif field.message is not None:
        for _ in _fields(data, field.message, start, end):
            pass
