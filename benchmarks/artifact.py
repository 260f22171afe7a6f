"""The artifact: seconds and peak memory to pack a run, and to read the file back into float32 weights.

    python benchmarks/artifact.py RUN_DIR [--json FILE] [--quantization.FIELD VALUE]

Packing is `albatross pack` as a user would type it, start of Python and import of PyTorch included. Reading is
artifact.reader in a process of its own, without PyTorch; its seconds are those of `read` (checks, SHA-256) and of
`arrays` (decoding and dequantizing).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from measure import albatross, publish, run

from launch.preset import Settings
from launch.settings import split_overrides

READ = """
import json, sys, time
from artifact.reader import read
start = time.perf_counter()
artifact = read(sys.argv[1])
checked = time.perf_counter()
num_weights = sum(array.size for array in artifact.arrays().values())
end = time.perf_counter()
print(json.dumps([checked - start, end - checked, num_weights]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments, overrides = split_overrides(Settings, sys.argv[1:])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.albatross")
        packing, _ = run(albatross("pack", options.run.resolve(), "--out", path, *overrides))
        reading, output = run([sys.executable, "-c", READ, path])
        size_bytes = path.stat().st_size
    read_seconds, arrays_seconds, num_weights = json.loads(output)
    rows = [
        {"step": "pack", "seconds": packing.wall_seconds, "CPU seconds": packing.cpu_seconds},
        {"step": "read and check", "seconds": read_seconds, "CPU seconds": reading.cpu_seconds},
        {"step": "decode to float32", "seconds": arrays_seconds, "CPU seconds": reading.cpu_seconds},
    ]
    for row, cost in zip(rows, (packing, reading, reading), strict=True):
        row |= {"peak MB": cost.peak_memory_bytes / 1e6, "weights": num_weights, "bytes": size_bytes}
    publish("artifact", rows, options.json)


if __name__ == "__main__":
    main()
