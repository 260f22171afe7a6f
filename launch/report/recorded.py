"""What a run folder records, read for drawing: metrics, report, settings, and where the artifact's bytes are."""

import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifact.content import QuantizedTensor, Tensor
from artifact.errors import ArtifactError
from artifact.inspection import entropy_bits
from artifact.reader import Artifact, read
from artifact.schema import Role
from launch.run_folder import RunFolder
from model.errors import InputError

LAYER = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True)
class TensorBytes:
    """One stored tensor's share of its group's coded bytes."""

    name: str
    num_weights: int
    coded_bytes: float

    @property
    def layer(self) -> int | None:
        """The block that the tensor belongs to; None outside the blocks."""
        match = LAYER.match(self.name)
        return int(match[1]) if match else None

    @property
    def part(self) -> str:
        """`attention`, `mlp`, or the tensor's name outside the blocks."""
        match = LAYER.match(self.name)
        return re.split(r"[._]", match[2])[0] if match else self.name


@dataclass(frozen=True)
class PackedRun:
    """An artifact's byte ledger, and its tensors' shares of it."""

    ledger: dict[str, Any]
    """As `artifact.ledger.Ledger.to_json` gives it."""
    sha256: str
    tensors: tuple[TensorBytes, ...]


@dataclass(frozen=True)
class Run:
    """One run. What the folder does not hold is empty or None."""

    name: str
    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    report: dict[str, Any]
    steps: tuple[dict[str, float], ...]
    """Rows of metrics.jsonl about training steps, one a step, in order."""
    validations: tuple[dict[str, float], ...]
    packed: PackedRun | None

    @property
    def preset(self) -> str:
        return str(self.config.get("id", ""))

    def setting(self, *keys: str, default: Any = None) -> Any:
        """A value of config.toml, such as `setting("training", "matrix", "learning_rate")`."""
        table: Any = self.config
        for key in keys:
            if not isinstance(table, Mapping) or key not in table:
                return default
            table = table[key]
        return table


def load_runs(paths: list[Path]) -> list[Run]:
    """Reads run folders. Runs are called by their folders' names, or by their paths where two names are the same.

    Raises:
        InputError: a path that is no run folder, is given twice, or holds a file that cannot be read.
    """
    resolved = [path.resolve() for path in paths]
    for path in paths:
        if resolved.count(path.resolve()) > 1:
            raise InputError(f"{path}: is given twice")
    names = [path.name for path in resolved]
    return [
        load_run(path, name if names.count(name) == 1 else str(path))
        for path, name in zip(resolved, names, strict=True)
    ]


def load_run(path: Path, name: str) -> Run:
    """Reads one run folder. Raises InputError."""
    folder = RunFolder(path)
    if not folder.metrics.is_file() and not folder.report.is_file():
        raise InputError(f"{path}: is not a run folder (it has neither {folder.metrics.name} nor {folder.report.name})")
    rows = _read_rows(folder.metrics)
    return Run(
        name=name,
        path=path,
        config=_read_config(folder.config),
        environment=_read_json(folder.environment),
        report=_read_json(folder.report),
        steps=_by_step(row for row in rows if "train_loss" in row),
        validations=_by_step(row for row in rows if "val_bpb" in row),
        packed=_read_artifact(folder.artifact),
    )


def _by_step(rows: Any) -> tuple[dict[str, float], ...]:
    """A resumed run repeats the steps after its checkpoint: the later row of a step is what counts."""
    latest = {int(row["step"]): row for row in rows}
    return tuple(latest[step] for step in sorted(latest))


def _read_rows(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):  # a run that was killed while it wrote
                break
            raise InputError(f"{path}: line {number} is not JSON") from None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise InputError(f"{path}: line {number} is not a row of metrics (it has no step)")
        rows.append(row)
    return rows


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: accepts a JSON object, got {type(value).__name__}")
    return value


def _read_config(path: Path) -> dict[str, Any]:
    """The table as it stands, so that a run of an older version, with other settings, can still be shown."""
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from None


def _read_artifact(path: Path) -> PackedRun | None:
    if not path.is_file():
        return None
    try:
        artifact = read(path)
        return PackedRun(artifact.ledger().to_json(), artifact.sha256, tuple(apportioned(artifact)))
    except ArtifactError as error:
        raise InputError(f"{path}: {error}") from None


def apportioned(artifact: Artifact) -> list[TensorBytes]:
    """Each weight tensor's share of the coded bytes, its low-rank correction included.

    A group's tensors are coded together, so a tensor has no bytes of its own: the group's bytes are shared out by the
    order-0 entropy of each tensor's symbols (by the number of values where they are floating-point). Shares add up to
    the groups' bytes.
    """
    stored = artifact.tensors()
    shares: dict[str, float] = {}
    for group, row in zip(artifact.manifest.groups, artifact.ledger().rows, strict=False):
        names = [name for name, _ in group.tensors()]
        bits = [_ideal_bits(_part(stored[name], group.role)) for name in names]
        for name, part in zip(names, bits, strict=True):
            share = part / sum(bits) if sum(bits) else 1 / len(names)
            shares[name] = shares.get(name, 0.0) + row.coded_bytes * share
    return [TensorBytes(name, math.prod(stored[name].shape), share) for name, share in shares.items()]


def _part(tensor: Tensor, role: Role) -> Tensor:
    """What a group of this role holds of the tensor."""
    if role == Role.WEIGHT:
        return tensor
    assert isinstance(tensor, QuantizedTensor)
    assert tensor.low_rank is not None
    return tensor.low_rank.left if role == Role.LOW_RANK_LEFT else tensor.low_rank.right


def _ideal_bits(tensor: Tensor) -> float:
    if isinstance(tensor, QuantizedTensor):
        return (entropy_bits([tensor]) or 0.0) + 8.0 * tensor.scales.size
    return float(tensor.values.size)
