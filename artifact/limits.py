"""Upper bounds that a reader enforces before it allocates anything. The values are part of proto/FORMAT.md."""

from typing import Final

MAX_FILE_BYTES: Final = 1 << 30
MAX_MANIFEST_BYTES: Final = 1 << 18
MAX_CONFIGURATION_BYTES: Final = 1 << 16
MAX_CONFIGURATION_DEPTH: Final = 16
MAX_NUM_GROUPS: Final = 4096
# Every tensor costs a reader half a kilobyte, even an empty one.
MAX_NUM_TENSORS: Final = 8192
MAX_NUM_WEIGHTS: Final = 1 << 32
MAX_NAME_BYTES: Final = 200
MAX_NUM_DIMENSIONS: Final = 8
MAX_LAYER_NUMBER: Final = 65_535
MAX_RANK: Final = 4096

# A stream of n bytes may stand for at most EXPANSION_ALLOWANCE + EXPANSION_FACTOR * n symbols. Without the rule a file
# of a kilobyte could ask for gigabytes and be right about it. The entropy coder's tables keep within the factor: no
# symbol costs less than 1/177 bit (FORMAT.md section 7), so only zstd on constant data ever meets it.
EXPANSION_FACTOR: Final = 2048
EXPANSION_ALLOWANCE: Final = 65_536

# A file may ask for so many steps of the entropy coder, each some 30 microseconds however few symbols it decodes, and
# for one more for so many symbols.
BASE_RANS_STEPS: Final = 16_384
RANS_SYMBOLS_PER_STEP: Final = 128
