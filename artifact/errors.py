"""The closed list of reasons why an artifact is refused.

Each rule of proto/FORMAT.md has one code; another reader of the format must report the same code for the same file.
"""

from enum import StrEnum


class ErrorCode(StrEnum):
    """Reason codes, in the order in which FORMAT.md checks them."""

    # The file as a whole.
    MAGIC = "magic"
    FILE_TOO_SHORT = "file_too_short"
    FILE_TOO_LONG = "file_too_long"
    TRAILER = "trailer"
    SHA256 = "sha256"
    # The protobuf wire format, message by message, field by field.
    WIRE_TRUNCATED = "wire_truncated"
    VARINT_TOO_LONG = "varint_too_long"
    VARINT_NOT_MINIMAL = "varint_not_minimal"
    UNKNOWN_FIELD = "unknown_field"
    WIRE_TYPE = "wire_type"
    DUPLICATE_FIELD = "duplicate_field"
    FIELD_ORDER = "field_order"
    VALUE_RANGE = "value_range"
    EXPLICIT_DEFAULT = "explicit_default"
    UTF8 = "utf8"
    MISSING_FIELD = "missing_field"
    # The manifest.
    MANIFEST_TOO_LONG = "manifest_too_long"
    VERSION = "version"
    FEATURE_LIST = "feature_list"
    REQUIRED_FEATURE = "required_feature"
    TOKENIZER_SHA256 = "tokenizer_sha256"
    CONFIGURATION = "configuration"
    NUM_GROUPS = "num_groups"
    STREAM_COUNT = "stream_count"
    PATTERN = "pattern"
    INDICES = "indices"
    SHAPE = "shape"
    NUM_TENSORS = "num_tensors"
    ENCODING = "encoding"
    PART_COUNT = "part_count"
    CODEC = "codec"
    NUM_WEIGHTS = "num_weights"
    EXPANSION = "expansion"
    LANES = "lanes"
    STREAM_LENGTH = "stream_length"
    DUPLICATE_TENSOR = "duplicate_tensor"
    LOW_RANK = "low_rank"
    TIE = "tie"
    CODE_LENGTH = "code_length"
    CRC32 = "crc32"
    # The streams, when they are decoded.
    RAW_LENGTH = "raw_length"
    BITPACK_LENGTH = "bitpack_length"
    BITPACK_PADDING = "bitpack_padding"
    ZSTD_HEADER = "zstd_header"
    ZSTD_SIZE = "zstd_size"
    ZSTD_FRAME = "zstd_frame"
    RANS_HEADER = "rans_header"
    RANS_TABLE = "rans_table"
    RANS_STREAM = "rans_stream"
    SYMBOL_RANGE = "symbol_range"
    NOT_FINITE = "not_finite"
    PERMUTATION = "permutation"
    # Writing.
    CONTENT = "content"
    OVER_BUDGET = "over_budget"


class ArtifactError(Exception):
    """An artifact cannot be read or written. `code` says why; the text is one line, then `details` (a table) if any."""

    def __init__(self, code: ErrorCode, message: str, details: str = "") -> None:
        super().__init__(f"{message} [{code.value}]" + ("\n" + details if details else ""))
        self.code = code
