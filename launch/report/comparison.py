"""The headline figures of runs, side by side."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.compare import compare, format_comparison
from launch.report.differences import flat
from launch.report.recorded import Run
from launch.report.series import STAGES, stages
from model.errors import InputError

Row = dict[str, Any]


def headline(run: Run) -> Row:
    """The figures of one run that a reader looks for first; what is not recorded is left out."""
    last = run.steps[-1] if run.steps else {}
    final = next((name for name in reversed(STAGES) if _complete(run, name)), None)
    values: Row = {
        "run": run.name,
        "preset": run.preset or None,
        "seed": run.setting("training", "seed"),
        "steps": last.get("step"),
        "tokens": last.get("tokens"),
        "training seconds": _rounded(last.get("train_time_ms"), 1000, 1),
        "tokens per second": tokens_per_second(run),
        "BPB": None if final is None else round(run.report[final]["bpb"], 6),
        "BPB of": None if final is None else stages(run)[final],
        **{f"BPB {stage}": round(run.report[name]["bpb"], 6) for name, stage in STAGES.items() if _complete(run, name)},
        "artifact bytes": run.packed.ledger["total_bytes"] if run.packed else None,
        "hardware": hardware(run),
    }
    return {name: value for name, value in values.items() if value is not None}


def table(runs: Sequence[Run]) -> list[Row]:
    """One row a run, with the columns that any of them has."""
    rows = [headline(run) for run in runs]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, "") for name in columns} for row in rows]


def sides(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in nothing but their seed, together; in the order of the first of each."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = {name: value for name, value in flat(run.config).items() if name != "training.seed"}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    return list(groups.values())


def verdicts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(title, text) of `albatross compare` for the first side against every other, or why they can't be compared."""
    first, *others = sides(runs)
    results = []
    for other in others:
        title = f"{names(first)} against {names(other)}"
        try:
            text = format_comparison(compare([run.path for run in first], [run.path for run in other]))
        except InputError as error:
            text = f"not comparable: {error}"
        results.append((title, text))
    return results


def names(runs: Sequence[Run]) -> str:
    """The runs' names in one line."""
    return ", ".join(run.name for run in runs)


def tokens_per_second(run: Run) -> int | None:
    """Median over the steps, so that a slow first step does not count."""
    times = np.diff([row.get("train_time_ms", np.nan) for row in run.steps])
    tokens = np.diff([row.get("tokens", np.nan) for row in run.steps])
    rates = tokens[times > 0] / times[times > 0] * 1000
    return round(float(np.nanmedian(rates))) if np.isfinite(rates).any() else None


def hardware(run: Run) -> str | None:
    """GPUs, or processor, and processes of the run's first start."""
    record = run.environment
    if not record:
        return None
    devices = record.get("gpus") or [record.get("cpu") or "CPU"]
    processes = record.get("num_processes", 1)
    return f"{', '.join(sorted(set(devices)))}, {processes} process{'es' if processes != 1 else ''}"


def _complete(run: Run, section: str) -> bool:
    entry = run.report.get(section, {})
    return entry.get("bpb") is not None and not entry.get("partial", False)


def _rounded(value: float | None, divisor: float, digits: int) -> float | None:
    return None if value is None else round(value / divisor, digits)
