"""Files that a reader must refuse, each with the code it must give: at least one per rule of proto/FORMAT.md.

They are built from wire bytes, not with the writer, which could not write them. Hashes and checksums are right unless
they are the point.
"""

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from artifact.codecs import rans
from artifact.errors import ErrorCode

MAGIC = b"\x09ALBATRS\n"
ROWS, COLUMNS = 2, 4
SYMBOLS = bytes((0x10, 0x32, 0x54, 0x76))  # 8 symbols of 4 bits: 0..7
SCALES = bytes((0x00, 0x00, 0x3C, 0x3C))  # two float16 ones, low bytes first


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A varint field, left out when it is zero."""
    return varint(field << 3) + varint(value) if value else b""


def data(field: int, payload: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def fixed32(field: int, value: int) -> bytes:
    return varint(field << 3 | 5) + value.to_bytes(4, "little") if value else b""


def packed(field: int, values: Iterable[int]) -> bytes:
    payload = b"".join(varint(value) for value in values)
    return data(field, payload) if payload else b""


def tensor_set(
    pattern: bytes = b"w", count: int = 0, indices: Iterable[int] = (), shape: Any = (ROWS, COLUMNS)
) -> bytes:
    return data(1, data(1, pattern) + number(2, count) + packed(3, indices) + packed(4, shape))


def encoding(
    kind: int = 2,
    float_type: int = 2,
    bits: int = 4,
    group_size: int = 0,
    exponent: int = 0,
    order: int = 0,
    permuted: int = 0,
) -> bytes:
    zigzag = exponent << 1 if exponent >= 0 else (-exponent << 1) - 1
    values = (kind, float_type, bits, group_size, zigzag, order, permuted)
    return data(3, b"".join(number(index + 1, value) for index, value in enumerate(values)))


def part(codec: int, num_bytes: int, carried: int = 0, lanes: int = 0) -> bytes:
    return data(4, number(1, codec) + number(2, num_bytes) + number(3, carried) + number(4, lanes))


@dataclass(frozen=True)
class GroupParts:
    """A group message in pieces, and its stream."""

    tensors: bytes = tensor_set()
    role: int = 0
    encoding: bytes = encoding()
    parts: bytes = part(1, len(SYMBOLS)) + part(0, len(SCALES))
    stream: bytes = SYMBOLS + SCALES
    crc32: int | None = None
    extra: bytes = b""

    def message(self) -> bytes:
        crc32 = zlib.crc32(self.stream) if self.crc32 is None else self.crc32
        return data(
            6, self.tensors + number(2, self.role) + self.encoding + self.parts + fixed32(5, crc32) + self.extra
        )


@dataclass(frozen=True)
class File:
    """A file in pieces; `bytes()` frames it and computes the trailer."""

    version: bytes = number(1, 1)
    features: bytes = b""
    tokenizer: bytes = data(4, bytes(range(32)))
    configuration: bytes = data(5, b'{"preset":"tiny"}')
    groups: tuple[GroupParts, ...] = (GroupParts(),)
    ties: bytes = b""
    code: bytes = b"code"
    code_fields: bytes | None = None
    extra: bytes = b""
    streams: tuple[bytes, ...] | None = None
    head: bytes = MAGIC
    after_manifest: bytes = b""
    after_code: bytes = b""
    code_message: bytes | None = None

    def manifest(self) -> bytes:
        code_fields = self.code_fields
        if code_fields is None:
            code_fields = number(8, len(self.code)) + fixed32(9, zlib.crc32(self.code))
        groups = b"".join(group.message() for group in self.groups)
        return (
            self.version + self.features + self.tokenizer + self.configuration + groups + self.ties + code_fields
        ) + self.extra

    def body(self) -> bytes:
        streams = self.streams if self.streams is not None else tuple(group.stream for group in self.groups)
        code = data(4, self.code) if self.code_message is None else self.code_message
        framed = b"".join(data(3, stream) for stream in streams)
        return self.head + data(2, self.manifest()) + self.after_manifest + framed + code + self.after_code

    def bytes(self) -> bytes:
        return seal(self.body())


def seal(body: bytes) -> bytes:
    return body + b"\x2a\x20" + hashlib.sha256(body).digest()


def one_group(**changes: Any) -> bytes:
    return File(groups=(GroupParts(**changes),)).bytes()


def with_symbols(codec: int, coded: bytes, **changes: Any) -> bytes:
    """The ordinary group with its symbols coded by `codec` as `coded`."""
    parts = part(codec, len(coded)) + part(0, len(SCALES))
    return one_group(parts=parts, stream=coded + SCALES, **changes)


def rans_stream(lanes: int = 4, carried: bytes = SCALES) -> bytes:
    """The eight symbols in order; carries the scales if there is room."""
    return rans.encode(np.arange(8, dtype=np.uint8), rans.Lattice(ROWS, COLUMNS, lanes), 16, carried)


def with_rans(coded: bytes, carried: int = 4, lanes: int = 4, after: bytes = b"", **changes: Any) -> bytes:
    """The ordinary group with its symbols coded by RANS, the scales carried."""
    parts = part(3, len(coded), carried, lanes) + part(0, len(SCALES))
    return one_group(parts=parts, stream=coded + after, **changes)


def rans_model(contexts: int = 1, prior: int = 512, thresholds: bytes = b"", tables: bytes | None = None) -> bytes:
    """Header and tables of a stream of symbols 0..7, all equally frequent."""
    if tables is None:
        tables = (b"\x00\x07" + varint(2048) * 7) * contexts
    return bytes((contexts,)) + prior.to_bytes(2, "little") + thresholds + tables


def floats(values: bytes, float_type: int = 1, shape: Any = (1,), codec: int = 0) -> bytes:
    return one_group(
        tensors=tensor_set(shape=shape),
        encoding=encoding(kind=1, float_type=float_type, bits=0),
        parts=part(codec, len(values)),
        stream=values,
    )


def zstd_frame(blocks: bytes, size: int, descriptor: int = 0b1010_0000) -> bytes:
    """A single-segment frame with a four-byte content size."""
    return b"\x28\xb5\x2f\xfd" + bytes((descriptor,)) + size.to_bytes(4, "little") + blocks


def raw_block(payload: bytes, last: bool = True) -> bytes:
    return (len(payload) << 3 | last).to_bytes(3, "little") + payload


def repeated_block(byte: int, count: int, last: bool = True) -> bytes:
    return (count << 3 | 2 | last).to_bytes(3, "little") + bytes((byte,))


def good() -> bytes:
    """The file that the hostile ones deviate from; it is in order."""
    return File().bytes()


def frame_files() -> dict[str, tuple[bytes, ErrorCode]]:
    ordinary = good()
    flipped = bytearray(ordinary)
    flipped[40] ^= 1
    base = File()
    overlong_manifest = File(configuration=data(5, b'{"a":"' + b"x" * 300_000 + b'"}')).bytes()
    return {
        "empty": (b"", ErrorCode.FILE_TOO_SHORT),
        "header_only": (MAGIC, ErrorCode.FILE_TOO_SHORT),
        "other_magic": (seal(b"\x09ALBATRS\r" + base.body()[9:]), ErrorCode.MAGIC),
        "zip_file": (b"PK\x03\x04" + bytes(100), ErrorCode.MAGIC),
        "no_trailer": (base.body() + bytes(34), ErrorCode.TRAILER),
        "trailing_byte": (ordinary + b"\0", ErrorCode.TRAILER),
        "flipped_bit": (bytes(flipped), ErrorCode.SHA256),
        "wrong_sha256": (base.body() + b"\x2a\x20" + bytes(32), ErrorCode.SHA256),
        "stream_past_end": (seal(base.body() + b"\x1a\xff\x7f"), ErrorCode.FIELD_ORDER),
        "code_past_end": (seal(File(code_message=b"\x22\xff\x7f").body()), ErrorCode.WIRE_TRUNCATED),
        "code_missing": (File(code_message=b"").bytes(), ErrorCode.MISSING_FIELD),
        "code_twice": (File(after_code=data(4, b"")).bytes(), ErrorCode.DUPLICATE_FIELD),
        "manifest_twice": (File(after_manifest=data(2, b"\x08\x01")).bytes(), ErrorCode.DUPLICATE_FIELD),
        "manifest_missing": (seal(MAGIC + data(4, b"")), ErrorCode.MISSING_FIELD),
        "two_trailers": (seal(ordinary), ErrorCode.DUPLICATE_FIELD),
        "unknown_outer_field": (File(after_code=data(6, b"")).bytes(), ErrorCode.UNKNOWN_FIELD),
        "manifest_too_long": (overlong_manifest, ErrorCode.MANIFEST_TOO_LONG),
        "stream_missing": (File(streams=()).bytes(), ErrorCode.STREAM_COUNT),
        "stream_too_many": (File(streams=(SYMBOLS + SCALES, b"")).bytes(), ErrorCode.STREAM_COUNT),
        "stream_too_short": (File(streams=(SYMBOLS,)).bytes(), ErrorCode.STREAM_LENGTH),
        "stream_too_long": (File(streams=(SYMBOLS + SCALES + b"\0",)).bytes(), ErrorCode.STREAM_LENGTH),
        "stream_crc": (one_group(crc32=1), ErrorCode.CRC32),
        "code_length": (File(code_fields=number(8, 5) + fixed32(9, 1)).bytes(), ErrorCode.CODE_LENGTH),
        "code_crc": (File(code_fields=number(8, 4) + fixed32(9, 1)).bytes(), ErrorCode.CRC32),
    }


def wire_files() -> dict[str, tuple[bytes, ErrorCode]]:
    def manifest(**changes: Any) -> bytes:
        return File(**changes).bytes()

    return {
        "varint_overlong": (manifest(version=b"\x08\x81\x00"), ErrorCode.VARINT_NOT_MINIMAL),
        "tag_overlong": (manifest(version=b"\x88\x00\x01"), ErrorCode.VARINT_NOT_MINIMAL),
        "varint_long": (manifest(version=b"\x08\x81\x80\x80\x80\x80\x01"), ErrorCode.VARINT_TOO_LONG),
        "varint_beyond_32_bits": (manifest(version=b"\x08\xff\xff\xff\xff\x7f"), ErrorCode.VALUE_RANGE),
        "varint_cut": (manifest(extra=b"\x80"), ErrorCode.WIRE_TRUNCATED),
        "length_past_end": (manifest(code_fields=b"", ties=b"\x3a\x7f"), ErrorCode.WIRE_TRUNCATED),
        "fixed32_cut": (manifest(code_fields=b"\x4d\x01\x02"), ErrorCode.WIRE_TRUNCATED),
        "unknown_field": (manifest(extra=number(10, 1)), ErrorCode.UNKNOWN_FIELD),
        "field_zero": (manifest(version=b"\x00\x01"), ErrorCode.UNKNOWN_FIELD),
        "unknown_nested_field": (one_group(extra=number(6, 1)), ErrorCode.UNKNOWN_FIELD),
        "wire_type": (manifest(version=b"\x0d\x01\x00\x00\x00"), ErrorCode.WIRE_TYPE),
        "group_wire_type": (manifest(version=b"\x0b\x0c"), ErrorCode.WIRE_TYPE),
        "unpacked_list": (manifest(features=number(2, 1)), ErrorCode.WIRE_TYPE),
        "duplicate": (manifest(version=number(1, 1) * 2), ErrorCode.DUPLICATE_FIELD),
        "order": (manifest(extra=number(1, 1)), ErrorCode.FIELD_ORDER),
        "nested_order": (one_group(encoding=data(3, number(2, 2) + number(1, 2))), ErrorCode.FIELD_ORDER),
        "enum_range": (one_group(encoding=encoding(kind=6)), ErrorCode.VALUE_RANGE),
        "codec_range": (one_group(parts=part(5, 4) + part(0, 4)), ErrorCode.VALUE_RANGE),
        "role_range": (one_group(role=3), ErrorCode.VALUE_RANGE),
        "bool_range": (one_group(encoding=encoding(permuted=2)), ErrorCode.VALUE_RANGE),
        "list_value_range": (
            one_group(tensors=tensor_set(shape=(1 << 32, 1))),
            ErrorCode.VALUE_RANGE,
        ),
        "explicit_zero": (manifest(version=b"\x08\x00"), ErrorCode.EXPLICIT_DEFAULT),
        "explicit_zero_fixed32": (
            manifest(code=b"", code_fields=b"\x4d\x00\x00\x00\x00"),
            ErrorCode.EXPLICIT_DEFAULT,
        ),
        "empty_list": (manifest(features=b"\x12\x00"), ErrorCode.EXPLICIT_DEFAULT),
        "empty_name": (one_group(tensors=tensor_set(pattern=b"")), ErrorCode.EXPLICIT_DEFAULT),
        "utf8": (one_group(tensors=tensor_set(pattern=b"\xff")), ErrorCode.UTF8),
        "surrogate_utf8": (one_group(tensors=tensor_set(pattern=b"\xed\xa0\x80")), ErrorCode.UTF8),
        "version_missing": (manifest(version=b""), ErrorCode.MISSING_FIELD),
        "configuration_missing": (manifest(configuration=b""), ErrorCode.MISSING_FIELD),
        "encoding_missing": (one_group(encoding=b""), ErrorCode.MISSING_FIELD),
        "tensors_missing": (one_group(tensors=b""), ErrorCode.MISSING_FIELD),
    }


def manifest_files() -> dict[str, tuple[bytes, ErrorCode]]:
    def configuration(text: bytes) -> tuple[bytes, ErrorCode]:
        return File(configuration=data(5, text)).bytes(), ErrorCode.CONFIGURATION

    two = (GroupParts(), GroupParts())
    many_groups = GroupParts(tensors=tensor_set(shape=(0,)), parts=part(0, 0) + part(0, 0), stream=b"")
    return {
        "version_2": (File(version=number(1, 2)).bytes(), ErrorCode.VERSION),
        "required_feature": (File(features=packed(2, (7,))).bytes(), ErrorCode.REQUIRED_FEATURE),
        "features_unordered": (File(features=packed(2, (7, 3))).bytes(), ErrorCode.FEATURE_LIST),
        "optional_features_twice": (File(features=packed(3, (3, 3))).bytes(), ErrorCode.FEATURE_LIST),
        "tokenizer_short": (File(tokenizer=data(4, b"abc")).bytes(), ErrorCode.TOKENIZER_SHA256),
        "json_array": configuration(b"[]"),
        "json_space": configuration(b'{"a": 1}'),
        "json_order": configuration(b'{"b":1,"a":1}'),
        "json_duplicate_key": configuration(b'{"a":1,"a":2}'),
        "json_trailing": configuration(b"{}x"),
        "json_cut": configuration(b'{"a":1'),
        "json_needless_escape": configuration(b'{"a":"\\/"}'),
        "json_upper_case_escape": configuration(b'{"a":"\\u001F"}'),
        "json_long_escape": configuration(b'{"a":"\\u000a"}'),
        "json_leading_zero": configuration(b'{"a":01}'),
        "json_infinite": configuration(b'{"a":1e999}'),
        "json_nan": configuration(b'{"a":NaN}'),
        "json_utf8": configuration(b'{"a":"\xff"}'),
        "json_control": configuration(b'{"a":"\x01"}'),
        "json_deep": configuration(b'{"a":' + b"[" * 40 + b"]" * 40 + b"}"),
        "json_very_deep": configuration(b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
        "json_long_number": configuration(b'{"a":' + b"1" * 5000 + b"}"),
        "json_long": configuration(b'{"a":"' + b"x" * 65_536 + b'"}'),
        "too_many_groups": (File(groups=(many_groups,) * 4097).bytes(), ErrorCode.NUM_GROUPS),
        "pattern_characters": (one_group(tensors=tensor_set(pattern=b"../w\\x")), ErrorCode.PATTERN),
        "pattern_newline": (one_group(tensors=tensor_set(pattern=b"w\n")), ErrorCode.PATTERN),
        "pattern_two_places": (one_group(tensors=tensor_set(pattern=b"a.#.#", count=1)), ErrorCode.PATTERN),
        "pattern_long": (one_group(tensors=tensor_set(pattern=b"w" * 201)), ErrorCode.PATTERN),
        "layers_missing": (one_group(tensors=tensor_set(pattern=b"a.#")), ErrorCode.INDICES),
        "layers_unasked": (one_group(tensors=tensor_set(count=1)), ErrorCode.INDICES),
        "layers_both": (one_group(tensors=tensor_set(pattern=b"a.#", count=1, indices=(3,))), ErrorCode.INDICES),
        "layers_unordered": (one_group(tensors=tensor_set(pattern=b"a.#", indices=(4, 3))), ErrorCode.INDICES),
        "layers_run": (one_group(tensors=tensor_set(pattern=b"a.#", indices=(0, 1, 2))), ErrorCode.INDICES),
        "layers_large": (one_group(tensors=tensor_set(pattern=b"a.#", indices=(65_536,))), ErrorCode.INDICES),
        "layers_count_large": (one_group(tensors=tensor_set(pattern=b"a.#", count=65_537)), ErrorCode.INDICES),
        "too_many_tensors": (
            one_group(
                tensors=tensor_set(pattern=b"a.#", count=8192, shape=(0,)) + tensor_set(shape=(0,)),
                parts=part(0, 0) + part(0, 0),
                stream=b"",
            ),
            ErrorCode.NUM_TENSORS,
        ),
        "many_dimensions": (one_group(tensors=tensor_set(shape=(1,) * 9)), ErrorCode.SHAPE),
        "shape_overflow": (one_group(tensors=tensor_set(shape=(0xFFFFFFFF,) * 8)), ErrorCode.SHAPE),
        "shape_overflow_empty": (one_group(tensors=tensor_set(shape=(0xFFFFFFFF, 0xFFFFFFFF, 0))), ErrorCode.SHAPE),
        "bits_1": (one_group(encoding=encoding(bits=1)), ErrorCode.ENCODING),
        "bits_9": (one_group(encoding=encoding(bits=9)), ErrorCode.ENCODING),
        "ternary_bits": (one_group(encoding=encoding(kind=4, bits=2)), ErrorCode.ENCODING),
        "float_bits": (one_group(encoding=encoding(kind=1, bits=4)), ErrorCode.ENCODING),
        "float_log8": (one_group(encoding=encoding(kind=1, float_type=5, bits=0)), ErrorCode.ENCODING),
        "float_permuted": (one_group(encoding=encoding(kind=1, bits=0, permuted=1)), ErrorCode.ENCODING),
        "scales_float8": (one_group(encoding=encoding(float_type=4)), ErrorCode.ENCODING),
        "scale_exponent_unasked": (one_group(encoding=encoding(exponent=1)), ErrorCode.ENCODING),
        "scale_exponent_high": (one_group(encoding=encoding(float_type=5, exponent=113)), ErrorCode.ENCODING),
        "scale_exponent_low": (one_group(encoding=encoding(float_type=5, exponent=-127)), ErrorCode.ENCODING),
        "permuted_rows": (
            one_group(tensors=tensor_set(shape=(65_537, 0)), encoding=encoding(permuted=1)),
            ErrorCode.ENCODING,
        ),
        "part_missing": (one_group(parts=part(0, 8)), ErrorCode.PART_COUNT),
        "part_unasked": (one_group(parts=part(1, 4) + part(0, 4) + part(0, 0)), ErrorCode.PART_COUNT),
        "codec_zpaq": (one_group(parts=part(4, 4) + part(0, 4)), ErrorCode.CODEC),
        "too_many_weights": (
            one_group(tensors=tensor_set(pattern=b"a.#", count=2, shape=(65_536, 65_536))),
            ErrorCode.NUM_WEIGHTS,
        ),
        "expansion": (one_group(tensors=tensor_set(shape=(1024, 1024))), ErrorCode.EXPANSION),
        "expansion_scales": (one_group(tensors=tensor_set(shape=(1 << 30, 0))), ErrorCode.EXPANSION),
        "duplicate_tensor": (File(groups=two).bytes(), ErrorCode.DUPLICATE_TENSOR),
        "duplicate_through_pattern": (
            File(
                groups=(
                    GroupParts(tensors=tensor_set(pattern=b"a.1")),
                    GroupParts(tensors=tensor_set(pattern=b"a.#", indices=(1,))),
                )
            ).bytes(),
            ErrorCode.DUPLICATE_TENSOR,
        ),
        "low_rank_alone": (one_group(role=1), ErrorCode.LOW_RANK),
        "low_rank_half": (File(groups=(GroupParts(), GroupParts(role=1))).bytes(), ErrorCode.LOW_RANK),
        "low_rank_shapes": (
            File(groups=(GroupParts(), GroupParts(role=1), GroupParts(role=2))).bytes(),
            ErrorCode.LOW_RANK,
        ),
        "tie_to_nothing": (File(ties=data(7, data(1, b"v") + data(2, b"u"))).bytes(), ErrorCode.TIE),
        "tie_over_tensor": (File(ties=data(7, data(1, b"w") + data(2, b"w"))).bytes(), ErrorCode.TIE),
        "tie_name": (File(ties=data(7, data(1, b"v v") + data(2, b"w"))).bytes(), ErrorCode.TIE),
        "ties_unordered": (
            File(ties=data(7, data(1, b"v") + data(2, b"w")) + data(7, data(1, b"a") + data(2, b"w"))).bytes(),
            ErrorCode.TIE,
        ),
    }


def stream_files() -> dict[str, tuple[bytes, ErrorCode]]:
    eight = bytes(range(8))
    frame = zstd_frame(raw_block(eight), 8)
    lengths = {"zstd_long": 9, "zstd_short": 7}
    files = {
        "raw_short": (with_symbols(0, eight[:7]), ErrorCode.RAW_LENGTH),
        "raw_symbol": (with_symbols(0, eight[:7] + b"\x10"), ErrorCode.SYMBOL_RANGE),
        "bitpack_long": (with_symbols(1, SYMBOLS + b"\0"), ErrorCode.BITPACK_LENGTH),
        "bitpack_padding": (
            with_symbols(1, b"\xff\xff", tensors=tensor_set(shape=(2, 2)), encoding=encoding(bits=3)),
            ErrorCode.BITPACK_PADDING,
        ),
        "ternary_padding": (
            with_symbols(1, b"\x00\xf2", encoding=encoding(kind=4, bits=0)),
            ErrorCode.BITPACK_PADDING,
        ),
        "ternary_byte": (
            with_symbols(1, b"\xf3\x00", encoding=encoding(kind=4, bits=0)),
            ErrorCode.SYMBOL_RANGE,
        ),
        "ternary_symbol": (
            with_symbols(0, b"\3" * 8, encoding=encoding(kind=4, bits=0)),
            ErrorCode.SYMBOL_RANGE,
        ),
        "zstd_empty": (with_symbols(2, b""), ErrorCode.ZSTD_HEADER),
        "zstd_magic": (with_symbols(2, b"\x27" + frame[1:]), ErrorCode.ZSTD_HEADER),
        "zstd_skippable": (with_symbols(2, b"\x50\x2a\x4d\x18\0\0\0\0" + frame), ErrorCode.ZSTD_HEADER),
        "zstd_dictionary": (with_symbols(2, zstd_frame(raw_block(eight), 8, 0b1010_0001)), ErrorCode.ZSTD_HEADER),
        "zstd_checksum": (with_symbols(2, zstd_frame(raw_block(eight), 8, 0b1010_0100)), ErrorCode.ZSTD_HEADER),
        "zstd_reserved": (with_symbols(2, zstd_frame(raw_block(eight), 8, 0b1010_1000)), ErrorCode.ZSTD_HEADER),
        "zstd_sizeless": (with_symbols(2, b"\x28\xb5\x2f\xfd\x00\x58" + raw_block(eight)), ErrorCode.ZSTD_HEADER),
        "zstd_window": (
            with_symbols(2, b"\x28\xb5\x2f\xfd\x80\x90" + (8).to_bytes(4, "little") + raw_block(eight)),
            ErrorCode.ZSTD_HEADER,
        ),
        "zstd_header_cut": (with_symbols(2, frame[:7]), ErrorCode.ZSTD_HEADER),
        "zstd_size": (with_symbols(2, zstd_frame(raw_block(eight), 9)), ErrorCode.ZSTD_SIZE),
        "zstd_cut": (with_symbols(2, frame[:-1]), ErrorCode.ZSTD_FRAME),
        "zstd_no_block": (with_symbols(2, frame[:9]), ErrorCode.ZSTD_FRAME),
        "zstd_extra": (with_symbols(2, frame + b"\0"), ErrorCode.ZSTD_FRAME),
        "zstd_two_frames": (with_symbols(2, frame + frame), ErrorCode.ZSTD_FRAME),
        "zstd_reserved_block": (with_symbols(2, zstd_frame(b"\x47\x00\x00" + eight, 8)), ErrorCode.ZSTD_FRAME),
        "zstd_symbol": (with_symbols(2, zstd_frame(repeated_block(16, 8), 8)), ErrorCode.SYMBOL_RANGE),
        "float_infinite": (floats(b"\x00\x00\x80\x7f"), ErrorCode.NOT_FINITE),
        "float_nan": (floats(b"\x01\x00\xc0\xff"), ErrorCode.NOT_FINITE),
        "float16_infinite": (floats(b"\x00\x7c", float_type=2), ErrorCode.NOT_FINITE),
        "bfloat16_infinite": (floats(b"\x80\x7f", float_type=3), ErrorCode.NOT_FINITE),
        "float8_nan": (floats(b"\xff", float_type=4), ErrorCode.NOT_FINITE),
        "scale_infinite": (
            one_group(stream=SYMBOLS + b"\x00\x00\x3c\x7c"),
            ErrorCode.NOT_FINITE,
        ),
        "weight_overflow": (
            one_group(
                encoding=encoding(float_type=1),
                parts=part(1, 4) + part(0, 8),
                stream=SYMBOLS + b"\xff\xff\xff\xff\x7f\x7f\x7f\x7f",
            ),
            ErrorCode.NOT_FINITE,
        ),
        "permutation_twice": (
            one_group(
                encoding=encoding(permuted=1),
                parts=part(1, 4) + part(0, 4) + part(0, 4),
                stream=SYMBOLS + SCALES + b"\x01\x01\x00\x00",
            ),
            ErrorCode.PERMUTATION,
        ),
        "permutation_outside": (
            one_group(
                encoding=encoding(permuted=1),
                parts=part(1, 4) + part(0, 4) + part(0, 4),
                stream=SYMBOLS + SCALES + b"\x00\x01\x00\x01",
            ),
            ErrorCode.PERMUTATION,
        ),
    }
    for name, stated in lengths.items():
        # The header is right, the blocks hold more or fewer bytes.
        files[name] = with_symbols(2, zstd_frame(repeated_block(1, stated), 8)), ErrorCode.ZSTD_FRAME
    return files


def rans_files() -> dict[str, tuple[bytes, ErrorCode]]:
    stream = rans_stream()
    states = b"\0\0\x01\0" * 4
    header, table, broken = ErrorCode.RANS_HEADER, ErrorCode.RANS_TABLE, ErrorCode.RANS_STREAM

    def tables(payload: bytes) -> bytes:
        return with_rans(rans_model(tables=payload) + states)

    return {
        "rans_no_lanes": (with_rans(stream, carried=0, lanes=0, after=SCALES), ErrorCode.LANES),
        "rans_many_lanes": (with_rans(stream, lanes=16_385), ErrorCode.LANES),
        "rans_carries_too_much": (with_rans(stream, lanes=1), ErrorCode.LANES),
        "rans_carries_what_is_not_there": (with_rans(stream, carried=5), ErrorCode.LANES),
        "rans_without_symbols": (
            one_group(tensors=tensor_set(shape=(4, 0)), parts=part(3, 0, 0, 4) + part(0, 8), stream=bytes(8)),
            ErrorCode.LANES,
        ),
        "rans_many_lines": (
            one_group(
                tensors=tensor_set(shape=(65_537, 1)),
                parts=part(3, 100, 0, 1) + part(0, 2 * 65_537),
                stream=bytes(100 + 2 * 65_537),
            ),
            ErrorCode.LANES,
        ),
        "rans_many_steps": (
            one_group(
                tensors=tensor_set(shape=(65_536, 3)),
                parts=part(3, 100, 0, 1) + part(0, 2 * 65_536),
                stream=bytes(100 + 2 * 65_536),
            ),
            ErrorCode.LANES,
        ),
        "lanes_of_another_codec": (one_group(parts=part(1, 4, 0, 1) + part(0, 4)), ErrorCode.LANES),
        "rans_of_scales": (one_group(parts=part(1, 4) + part(3, 4, 0, 1)), ErrorCode.CODEC),
        "rans_of_values": (floats(bytes(4), codec=3), ErrorCode.CODEC),
        "rans_empty": (with_rans(b"", after=b""), header),
        "rans_no_context": (with_rans(b"\0" + stream[1:]), header),
        "rans_many_contexts": (with_rans(bytes((33,)) + stream[1:]), header),
        "rans_prior": (with_rans(rans_model(prior=32_769) + states), header),
        "rans_thresholds_cut": (with_rans(b"\x09\0\0\x01"), header),
        "rans_thresholds_unordered": (with_rans(rans_model(3, thresholds=b"\5\0\5\0") + states), header),
        "rans_threshold_zero": (with_rans(rans_model(2, thresholds=b"\0\0") + states), header),
        "rans_table_cut": (with_rans(stream[:6]), table),
        "rans_table_order": (tables(b"\x07\x07"), table),
        "rans_table_alphabet": (tables(b"\x00\x10" + b"\x01" * 16), table),
        "rans_table_overlong": (tables(b"\x00\x01\x81\x00"), table),
        "rans_table_long": (tables(b"\x00\x01\x81\x81\x01"), table),
        "rans_table_first_zero": (tables(b"\x00\x02\x00\x80\x40"), table),
        "rans_table_last_zero": (tables(b"\x00\x02" + varint(8192) + varint(8192)), table),
        "rans_table_over": (tables(b"\x00\x02" + varint(16000) + varint(16000)), table),
        "rans_table_certain": (tables(b"\x00\x01" + varint(16_321)), table),
        "rans_table_certain_last": (tables(b"\x00\x01" + varint(63)), table),
        "rans_states_cut": (with_rans(stream[: len(rans_model()) + 10]), broken),
        "rans_half_word": (with_rans(stream + b"\0"), broken),
        "rans_word_missing": (with_rans(rans_model() + b"\0\0\x01\0" * 4), broken),
        "rans_word_too_many": (with_rans(stream + b"\0\0"), broken),
        "rans_state_small": (with_rans(rans_model() + b"\xff\xff\0\0" * 4), broken),
        "rans_state_wrong": (with_rans(stream[:-1] + bytes((stream[-1] ^ 0x80,))), broken),
        "rans_carries_unasked": (with_rans(stream, carried=0, after=SCALES), broken),
    }


def bombs() -> dict[str, tuple[bytes, ErrorCode]]:
    """About a kilobyte each, declaring or expanding to a gigabyte."""
    gigabyte = 1 << 30
    shape = (32_768, 32_768)
    many_blocks = b"".join(repeated_block(0, 131_072, last=False) for _ in range(240))
    declared = zstd_frame(many_blocks, gigabyte)
    eight = part(2, len(declared)) + part(0, len(SCALES))
    return {
        "bomb_declared_in_manifest": (
            one_group(tensors=tensor_set(shape=shape), parts=eight, stream=declared + SCALES),
            ErrorCode.EXPANSION,
        ),
        "bomb_declared_in_frame": (one_group(parts=eight, stream=declared + SCALES), ErrorCode.ZSTD_SIZE),
        "bomb_in_blocks": (with_symbols(2, zstd_frame(many_blocks, 8)), ErrorCode.ZSTD_FRAME),
        "bomb_of_tensors": (
            one_group(tensors=tensor_set(pattern=b"a.#", count=8192, shape=(128, 1024))),
            ErrorCode.EXPANSION,
        ),
        "bomb_of_scales": (
            one_group(tensors=tensor_set(shape=shape), encoding=encoding(group_size=1)),
            ErrorCode.EXPANSION,
        ),
    }


def hostile_files() -> dict[str, tuple[bytes, ErrorCode]]:
    """Name -> (bytes, code)."""
    return {**frame_files(), **wire_files(), **manifest_files(), **stream_files(), **rans_files(), **bombs()}


def variants() -> dict[str, bytes]:
    """Unusual files that are in order: rules must not refuse more than they say."""
    base = File()
    return {
        "no_groups": File(groups=()).bytes(),
        "no_code": File(code=b"").bytes(),
        "optional_features": replace(base, features=packed(3, (3, 9))).bytes(),
        "empty_configuration": File(configuration=data(5, b"{}")).bytes(),
        "rans": with_rans(rans_stream()),
        "rans_one_lane": with_rans(rans_stream(1, SCALES[:2]), carried=2, lanes=1, after=SCALES[2:]),
        "rans_carrying_nothing": with_rans(rans_stream(4, b""), carried=0, after=SCALES),
        "rans_idle_lanes": with_rans(rans_stream(7), lanes=7),
        "zstd_raw_block": with_symbols(2, zstd_frame(raw_block(bytes(range(8))), 8)),
    }
