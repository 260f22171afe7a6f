"""Coded bytes of an artifact's symbols, group by group: our codecs beside general compressors and the order-0 entropy.

    python benchmarks/codecs.py FILE.albatross [--orders rows,columns] [--json FILE]
    python benchmarks/codecs.py WEIGHTS.npz [--clip-rule deviations] ...      quantizes first

Every compressor gets one byte per symbol, in each of the given orders, and its best counts. brotli and zpaq (PyPI
packages) and lrzip (a program) take part where they are installed. Below the table: seconds to write and to read the
whole file and the peak memory of a process that does only that.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import lzma
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import zstandard  # noqa: E402

from artifact import reader, writer  # noqa: E402
from artifact.codecs import bitpack  # noqa: E402
from artifact.content import Content, QuantizedTensor, Tensor, matrix_shape, symbol_range  # noqa: E402
from artifact.schema import Kind, Role  # noqa: E402

TIMING = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from artifact import reader, writer
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
wall, cpu = time.perf_counter(), time.process_time()
artifact = reader.read(sys.argv[2])
if sys.argv[3] == "read":
    artifact.arrays()
else:
    content = artifact.content()
    wall, cpu = time.perf_counter(), time.process_time()
    writer.encode(content)
seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
print(json.dumps({**seconds, "peak_bytes": peak()}))
"""


def compressors() -> dict[str, Callable[[bytes], int]]:
    """Name -> coded length; those whose package or program is missing are left out."""
    found: dict[str, Callable[[bytes], int]] = {
        "zstd-22": lambda data: len(zstandard.ZstdCompressor(level=22).compress(data)),
        "lzma-9": lambda data: len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    if importlib.util.find_spec("brotli"):
        brotli = importlib.import_module("brotli")
        found["brotli-11"] = lambda data: len(brotli.compress(data, quality=11, lgwin=24))
    if importlib.util.find_spec("zpaq"):
        zpaq = importlib.import_module("zpaq")
        found["zpaq-5"] = lambda data: len(zpaq.compress(data, level=5, threads=1))
    if shutil.which("lrzip"):
        found["lrzip -z"] = lrzip_bytes
    return found


def lrzip_bytes(data: bytes) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "symbols"
        path.write_bytes(data)
        subprocess.run(["lrzip", "-z", "-L", "9", "-q", str(path)], check=True)
        return (Path(folder) / "symbols.lrz").stat().st_size


def unsigned(tensor: QuantizedTensor) -> np.ndarray[Any, Any]:
    low, _ = symbol_range(tensor.kind, tensor.bits)
    offset = -1 if tensor.kind == Kind.BINARY else low
    return (tensor.symbols.astype(np.int16) - offset).astype(np.uint8).reshape(matrix_shape(tensor.shape))


def measure(artifact: reader.Artifact, orders: list[str]) -> list[dict[str, Any]]:
    """One row per group of quantized tensors."""
    tensors: dict[str, Tensor] = artifact.tensors()
    rows = []
    for group in artifact.manifest.groups:
        if group.role != Role.WEIGHT or group.encoding.kind == Kind.FLOAT:
            continue
        matrices = [unsigned(t) for name, _ in group.tensors() if isinstance(t := tensors[name], QuantizedTensor)]
        counts = np.bincount(np.concatenate([matrix.reshape(-1) for matrix in matrices]), minlength=256)
        used = counts[counts > 0]
        num_symbols, part = int(counts.sum()), group.parts[0]
        laid_out = {
            "rows": b"".join(matrix.tobytes() for matrix in matrices),
            "columns": b"".join(np.ascontiguousarray(matrix.T).tobytes() for matrix in matrices),
        }
        row: dict[str, Any] = {
            "group": group.label,
            "num_symbols": num_symbols,
            "entropy": float(-(used * np.log2(used / num_symbols)).sum() / 8),
            f"ours ({part.codec.name.lower()})": part.num_bytes - part.carried_bytes,
            "bitpack": bitpack.num_bytes(num_symbols, group.encoding.alphabet),
        }
        for name, compress in compressors().items():
            row[name] = min(compress(laid_out[order]) for order in orders)
        row["scales etc."] = sum(part.num_bytes for part in group.parts[1:])
        rows.append(row)
        print(format_row(row), flush=True)
    return rows


def format_row(row: dict[str, Any]) -> str:
    cells = [f"{row['group']:36}", f"{row['num_symbols']:>11,}"]
    for name, value in row.items():
        if name in ("group", "num_symbols"):
            continue
        share = "" if name in ("entropy", "scales etc.") else f" {value / row['entropy']:.4f}"
        cells.append(f"{name} {value:,.0f}{share}")
    return "  ".join(cells)


def timed(path: Path, what: str) -> dict[str, float]:
    command = [sys.executable, "-c", TIMING, str(ROOT), str(path), what]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def quantized_file(weights: Path, clip_rule: Any, folder: str) -> Path:
    # Here and not above: the trainer needs torch, which the measurements do not.
    from trainer import export
    from trainer.quantize.config import QuantizationConfig

    arrays = {name: array.astype(np.float32) for name, array in np.load(weights).items()}
    config = QuantizationConfig(clip_rule=clip_rule, scale_dtype="log8")
    path = Path(folder) / "weights.albatross"
    writer.write(path, Content({}, "00" * 32, export.quantize(arrays, config)))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--clip-rule", default="deviations")
    parser.add_argument("--orders", default="rows,columns")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.file
        if path.suffix == ".npz":
            path = quantized_file(path, options.clip_rule, folder)
        heading = {
            "date": datetime.now(UTC).date().isoformat(),
            "file": options.file.name,
            "clip_rule": options.clip_rule if options.file.suffix == ".npz" else None,
            "total_bytes": path.stat().st_size,
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "python": platform.python_version(),
        }
        print("; ".join(f"{key} {value}" for key, value in heading.items()))
        rows = measure(reader.read(path), options.orders.split(","))
        total: dict[str, Any] = {"group": "total"}
        for row in rows:
            for key, value in row.items():
                if key != "group":
                    total[key] = total.get(key, 0) + value
        print(format_row(total))
        speeds = {what: timed(path, what) for what in ("write", "read")}
    for what, speed in speeds.items():
        print(
            f"{what}: {speed['seconds']:.2f} s ({speed['cpu_seconds']:.2f} s of CPU), "
            f"peak memory {speed['peak_bytes'] / 1e6:.0f} MB"
        )
    if options.json:
        options.json.write_text(json.dumps({**heading, "rows": rows, "total": total, **speeds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
