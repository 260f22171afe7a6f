"""What a report says about where its numbers come from: hashes, software, hardware, memory."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "protobuf", "zstandard", "sentencepiece")
READ_BYTES = 1 << 22


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def data_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every validation file of a data folder, by name."""
    return {path.name: file_sha256(path) for path in sorted(folder.glob("*_val_*")) if path.is_file()}


def software() -> dict[str, str]:
    """Versions of Python and of the packages that the evaluator uses."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine in a few words."""
    facts: dict[str, Any] = {
        "device": str(device),
        "system": f"{platform.system()} {platform.machine()}",
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["gpu_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    else:
        facts["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    return facts


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory: allocated on the GPU since the last reset, or of the whole process on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
