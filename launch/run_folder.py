"""A run folder: where each file of a run lies, and the record of what the run was started with."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.preset import Preset, load_file
from launch.settings import format_toml, to_table
from model.errors import InputError

RECORDED_PACKAGES = ("albatross", "deepspeed", "numpy", "protobuf", "sentencepiece", "torch", "zstandard")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. Nothing is read or written before a method is called."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved preset, as TOML that loads as a preset."""
        return self.path / "config.toml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def artifact(self) -> Path:
        return self.path / "artifact.albatross"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    def check_unused_or_same(self, preset: Preset, resume: str) -> None:
        """InputError unless the folder is free for a new run, or holds the run of the same settings to be resumed."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is not a folder")
        if not self.config.exists() or not (self.metrics.exists() and self.metrics.stat().st_size):
            return
        if resume == "no":
            raise InputError(
                f"{self.path}: holds a run already; continue it with --resume auto, or choose another --out"
            )
        before = load_file(self.config).settings
        for section in ("model", "training"):
            old, new = to_table(getattr(before, section)), to_table(getattr(preset.settings, section))
            for key in (key for key in new if new[key] != old[key]):
                raise InputError(f"{section}.{key}: is {new[key]!r}, but the run in {self.path} has {old[key]!r}")

    def start(self, preset: Preset, data: dict[str, Any], num_processes: int, *, resumed: bool = False) -> None:
        """Creates the folder with config.toml and environment.json; `data` describes the data folder.

        A resumed run keeps the record of its first start and adds one of this start.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config, format_toml(preset.to_table()))
        record = {**environment(), "num_processes": num_processes, "data": data}
        if resumed and self.environment.is_file():
            first = json.loads(self.environment.read_text(encoding="utf-8"))
            record = {**first, "resumed": [*first.get("resumed", []), record]}
        write_text(self.environment, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    def recorded_data(self) -> dict[str, Any]:
        """What `start` was told of the data folder. InputError if the folder holds no run."""
        try:
            return dict(json.loads(self.environment.read_text(encoding="utf-8"))["data"])
        except FileNotFoundError:
            raise InputError(f"{self.path}: is not a run folder (it has no {self.environment.name})") from None
        except (ValueError, KeyError) as error:
            raise InputError(f"{self.environment}: cannot be read: {error!r}") from None


def find(path: Path) -> RunFolder:
    """The run folder that `path` is, or that the checkpoint `path` lies in. InputError if there is none."""
    if not path.exists():
        raise InputError(f"{path}: no such run folder or checkpoint")
    for folder in (path, *path.resolve().parents):
        if RunFolder(folder).config.is_file():
            return RunFolder(folder)
    raise InputError(f"{path}: is neither a run folder nor a checkpoint in one (no config.toml here or above)")


def write_text(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def environment() -> dict[str, Any]:
    """What this process runs on: command, time, code version, packages, processor, memory, GPUs."""
    return {
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in RECORDED_PACKAGES if (version := package_version(name))},
        **hardware(),
    }


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory, GPUs (none without torch)."""
    return {
        "cpu": cpu_name(),
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpu_names(),
    }


def cpu_name() -> str:
    """The processor's name as Linux gives it, elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def gpu_names() -> list[str]:
    """Names of the GPUs that torch sees; empty where torch is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Commit of the checkout that this code runs from, with `+changes` if files differ; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("+changes" if status.strip() else "")
