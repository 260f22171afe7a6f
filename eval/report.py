"""report.json: one section for each way an artifact was scored, merged over several runs.

The sections are `pre_quantization` (the trainer's weights), `post_quantization` (plain), `post_quantization_sliding`
and `post_ttt`; each holds a `bpb`. At the top, `val_loss` and `val_bpb` repeat the section that went furthest along
that list, as the challenge's submission.json wants. eval/report.schema.json is the JSON schema.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.errors import InputError

SCHEMA_VERSION = 1
SECTIONS = ("pre_quantization", "post_quantization", "post_quantization_sliding", "post_ttt")
SECTION_OF_MODE = {"plain": "post_quantization", "sliding": "post_quantization_sliding", "ttt": "post_ttt"}


def load(path: Path) -> dict[str, Any]:
    """The report at `path`, or an empty one if there is none. Raises InputError if it isn't a JSON object."""
    if not path.exists():
        return {"schema_version": SCHEMA_VERSION}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON report ({error})") from None
    if not isinstance(report, dict):
        raise InputError(f"{path}: not a JSON report (its top level is no object)")
    return report


def update(path: Path | str, section: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Puts `data` under `section` in the report at `path`, keeping the rest, and returns the whole report.

    The file is replaced in one step: after a crash or on a full disk the old one is intact. Raises ValueError for an
    unknown section or data without a `bpb`, InputError if the present file is not a report.
    """
    if section not in SECTIONS:
        raise ValueError(f"section must be one of {', '.join(SECTIONS)}, not {section!r}")
    if "bpb" not in data:
        raise ValueError(f"section {section} needs a bpb")
    path = Path(path)
    report = load(path)
    report["schema_version"] = SCHEMA_VERSION
    report[section] = dict(data)
    _compare_sections(report)
    for name in SECTIONS:
        entry = report.get(name)
        if entry and entry.get("bpb") is not None and not entry.get("partial", False):
            report["val_bpb"] = entry["bpb"]
            if entry.get("val_loss_nats") is not None:
                report["val_loss"] = entry["val_loss_nats"]
    _write(path, report)
    return report


def _compare_sections(report: dict[str, Any]) -> None:
    """Restates in each section that scored the artifact by how much it is better than plain scoring of it."""
    plain = report.get("post_quantization")
    if not plain:
        return
    for name in ("post_quantization_sliding", "post_ttt"):
        entry = report.get(name)
        if not entry:
            continue
        comparable = _same_targets(plain, entry)
        entry["improvement_over_plain_bpb"] = plain["bpb"] - entry["bpb"] if comparable else None


def _same_targets(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two sections scored the same artifact on the same targets, all of them."""
    keys = ("artifact_sha256", "tokenizer_sha256", "data_sha256", "num_targets", "num_bytes")
    known = all(first.get(key) is not None and first.get(key) == second.get(key) for key in keys)
    return known and not first.get("partial", True) and not second.get("partial", True)


def _write(path: Path, report: Mapping[str, Any]) -> None:
    text = json.dumps(_finite(report), indent=2, sort_keys=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _finite(value: Any) -> Any:
    """JSON knows no NaN: a figure that doesn't exist is null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
