"""FORMAT.md says what the code does, as far as a program can tell."""

import re
from pathlib import Path

from artifact import limits, reader
from artifact.codecs import rans, rans_tables
from artifact.errors import ErrorCode
from tests.attacks import hostile_files

FORMAT = (Path(__file__).resolve().parents[2] / "proto/FORMAT.md").read_text()


def test_the_dump_is_a_file() -> None:
    lines = re.findall(r"^    [0-9a-f]{4}  ((?:[0-9a-f]{2} ?)+)$", FORMAT, re.MULTILINE)
    data = bytes.fromhex("".join(lines))
    assert data == hostile_files.good()
    assert reader.parse(data).arrays()["w"].tolist() == [[-8, -7, -6, -5], [-4, -3, -2, -1]]


def test_every_error_code_is_listed_and_no_other() -> None:
    section = FORMAT.split("## 9. Error codes")[1].split("## 10.")[0]
    assert re.findall(r"`([a-z0-9_]+)`", section) == [code.value for code in ErrorCode]


def test_limits_are_those_of_the_document() -> None:
    for text in (
        f"at most 2^{limits.MAX_FILE_BYTES.bit_length() - 1} bytes long: `file_too_long`",
        f"at most 2^{limits.MAX_MANIFEST_BYTES.bit_length() - 1} bytes long: `manifest_too_long`",
        f"at most {limits.MAX_CONFIGURATION_BYTES:,} bytes",
        f"at most {limits.MAX_CONFIGURATION_DEPTH} deep",
        f"at most {limits.MAX_NUM_GROUPS:,} groups",
        f"at most {limits.MAX_NUM_TENSORS:,} tensors",
        f"at most 2^{limits.MAX_NUM_WEIGHTS.bit_length() - 1} values",
        f"{limits.EXPANSION_ALLOWANCE:,} + {limits.EXPANSION_FACTOR:,} x `num_bytes`",
        f"{limits.RANS_SYMBOLS_PER_STEP} x {limits.BASE_RANS_STEPS:,} + symbols",
        f"`lanes` is 1..{rans.MAX_LANES:,}",
        f"1..{rans.MAX_LINES:,} lines",
        f"1..{rans.MAX_CONTEXTS}: `rans_header`",
        f"slot = x mod {rans_tables.TOTAL:,}",
        f"1..{rans_tables.MAX_FREQUENCY:,}",
    ):
        assert text in FORMAT, text
