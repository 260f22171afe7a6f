"""Numbers of a run in the form in which they are drawn: few enough points, each the mean of what it stands for."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from launch.report.recorded import Run

MAX_POINTS = 2400
"""Of one figure, over all its runs."""
STAGES = {
    "pre_quantization": "trained",
    "post_quantization": "quantized",
    "post_quantization_sliding": "sliding window",
    "post_ttt": "test-time training",
}
ADAPTATIONS = ("post_quantization_sliding", "post_ttt")
OPTIMIZER_GROUPS = ("matrix", "embedding", "scalar")

Row = dict[str, Any]


def binned(rows: Sequence[Mapping[str, float]], fields: Sequence[str], num_bins: int) -> list[Row]:
    """Means of `fields` over equally long stretches of rows; step, seconds and tokens are those of a stretch's end."""
    if not rows:
        return []
    bounds = np.unique(np.linspace(0, len(rows), min(num_bins, len(rows)) + 1).round().astype(int))
    points = []
    for start, end in pairwise(bounds.tolist()):
        point = position(rows[end - 1])
        for field in fields:
            values = [row[field] for row in rows[start:end] if row.get(field) is not None]
            if values:
                point[field] = significant(float(np.mean(values)))
        points.append(point)
    return points


def position(row: Mapping[str, float]) -> Row:
    """Where a row stands on each of the axes that curves are drawn over."""
    return {"step": row["step"], "seconds": significant(row.get("train_time_ms", 0.0) / 1000)}


def significant(value: float, digits: int = 6) -> float:
    """The value to so many significant digits: a page needs no more, and shorter numbers make it smaller."""
    return float(f"{value:.{digits}g}")


def training_loss(runs: Sequence[Run]) -> list[Row]:
    """`loss`, the mean training loss in nats per token over a stretch of steps."""
    return _over_runs(runs, lambda run, bins: binned(run.steps, ["train_loss"], bins))


def validation(runs: Sequence[Run]) -> list[Row]:
    """`val_bpb` at every validation during training."""
    return [
        {"run": run.name, **position(row), "val_bpb": significant(row["val_bpb"])}
        for run in runs
        for row in run.validations
    ]


def learning_rates(runs: Sequence[Run]) -> list[Row]:
    """`learning_rate` of each group of the optimizer: the setting times the schedule's multiplier."""
    base = {
        (run.name, group): run.setting("training", group, "learning_rate") for run in runs for group in OPTIMIZER_GROUPS
    }
    return [
        {
            "run": point["run"],
            "step": point["step"],
            "seconds": point["seconds"],
            "group": group,
            "learning_rate": significant(base[point["run"], group] * point["learning_rate_multiplier"]),
        }
        for point in _over_runs(runs, lambda run, bins: binned(run.steps, ["learning_rate_multiplier"], min(bins, 200)))
        for group in OPTIMIZER_GROUPS
        if base[point["run"], group] is not None and "learning_rate_multiplier" in point
    ]


def speed(runs: Sequence[Run]) -> list[Row]:
    """`tokens_per_second` over stretches of steps, of the clock that the budget is counted on."""

    def of_one(run: Run, num_bins: int) -> list[Row]:
        rows = [row for row in run.steps if "tokens" in row and "train_time_ms" in row]
        bounds = np.unique(np.linspace(0, len(rows) - 1, min(num_bins, len(rows))).round().astype(int)) if rows else []
        points = []
        for first, last in pairwise(int(bound) for bound in bounds):
            seconds = (rows[last]["train_time_ms"] - rows[first]["train_time_ms"]) / 1000
            if seconds > 0:
                rate = (rows[last]["tokens"] - rows[first]["tokens"]) / seconds
                points.append({**position(rows[last]), "tokens_per_second": significant(rate)})
        return points

    return _over_runs(runs, of_one, num_bins=240)


def step_times(runs: Sequence[Run]) -> list[Row]:
    """`milliseconds` of a step by `part`: the parts that the trainer timed, else the step as a whole."""

    def of_one(run: Run, num_bins: int) -> list[Row]:
        rows = [dict(row) for row in run.steps if "train_time_ms" in row]
        parts = sorted({key for row in rows for key in row if key.endswith("_ms") and key != "train_time_ms"})
        if not parts:
            for before, row in pairwise(rows):
                row["step_ms"] = (row["train_time_ms"] - before["train_time_ms"]) / max(row["step"] - before["step"], 1)
            rows, parts = rows[1:], ["step_ms"]
        return [
            {
                "step": point["step"],
                "seconds": point["seconds"],
                "part": part.removesuffix("_ms"),
                "milliseconds": point[part],
            }
            for point in binned(rows, parts, num_bins)
            for part in parts
            if part in point
        ]

    return _over_runs(runs, of_one, num_bins=160)


def staircase(runs: Sequence[Run]) -> list[Row]:
    """`bpb` after every stage that a run has been through, in order."""
    rows = []
    for run in runs:
        for order, (section, stage) in enumerate(stages(run).items()):
            bpb = run.report.get(section, {}).get("bpb")
            if section == "live":
                bpb = run.report["pre_quantization"]["live_bpb"]
            if bpb is not None:
                rows.append({"run": run.name, "stage": stage, "order": order, "bpb": significant(bpb, 7)})
    return rows


def stages(run: Run) -> dict[str, str]:
    """Section of report.json -> the stage in words; `live` is the weights before averaging, where they were scored."""
    averaged = any(run.setting("training", key) for key in ("average_horizon", "average_decay", "swa_every_steps"))
    names = dict(STAGES)
    if averaged:
        names["pre_quantization"] = "averaged"
    if run.report.get("pre_quantization", {}).get("live_bpb") is not None:
        names = {"live": "trained", **names}
    return names


def running_bpb(runs: Sequence[Run]) -> list[Row]:
    """`bpb` of the validation text from its start up to `num_targets`, per way of scoring."""
    return [
        {
            "run": run.name,
            "mode": STAGES[section],
            "num_targets": point["num_targets"],
            "bpb": significant(point["bpb"]),
        }
        for run in runs
        for section in STAGES
        for point in run.report.get(section, {}).get("running_bpb", [])
        if point["bpb"] is not None
    ]


def gain_by_length(runs: Sequence[Run]) -> list[Row]:
    """`gain_bpb`, BPB of plain scoring less BPB of adapted scoring, by length of document."""
    rows = []
    for run in runs:
        plain = _buckets(run, "post_quantization")
        for section in ADAPTATIONS:
            for length, bucket in _buckets(run, section).items():
                base = plain.get(length)
                if base is None or base["num_bytes"] != bucket["num_bytes"]:
                    continue  # not the same targets: one of the two is partial
                rows.append(
                    {
                        "run": run.name,
                        "mode": STAGES[section],
                        "max_document_tokens": length,
                        "num_documents": bucket["num_documents"],
                        "gain_bpb": significant(base["bpb"] - bucket["bpb"]),
                    }
                )
    return rows


def _buckets(run: Run, section: str) -> dict[int, Row]:
    return {bucket["max_document_tokens"]: bucket for bucket in run.report.get(section, {}).get("length_buckets", [])}


def bits_by_layer(runs: Sequence[Run]) -> list[Row]:
    """`bits_per_weight` of each layer's attention and MLP matrices, and of the parts outside the blocks."""
    rows = []
    for run in runs:
        sums: dict[tuple[int | None, str], list[float]] = {}
        for tensor in run.packed.tensors if run.packed else ():
            if tensor.part not in ("attention", "mlp") and tensor.layer is not None:
                continue
            entry = sums.setdefault((tensor.layer, tensor.part), [0.0, 0.0])
            entry[0] += tensor.coded_bytes
            entry[1] += tensor.num_weights
        rows += [
            {
                "run": run.name,
                "layer": layer,
                "part": part,
                "weights": int(num_weights),
                "bits_per_weight": significant(8 * coded_bytes / num_weights, 4),
            }
            for (layer, part), (coded_bytes, num_weights) in sums.items()
            if layer is not None and num_weights
        ]
    return rows


def artifact_bytes(run: Run) -> list[Row]:
    """Every row of an artifact's byte ledger, with the family that the treemap puts it in."""
    if run.packed is None:
        return []
    total = run.packed.ledger["total_bytes"]
    return [
        {
            "name": row["name"].removeprefix("blocks.#."),
            "family": family(row["name"]),
            "bytes": row["coded_bytes"],
            "share": significant(row["coded_bytes"] / total, 4),
            "encoding": row["encoding"],
            "bits_per_weight": None if row["bits_per_weight"] is None else significant(row["bits_per_weight"], 4),
        }
        for row in run.packed.ledger["rows"]
    ]


def family(group: str) -> str:
    """What a row of the byte ledger belongs to: attention, mlp, embedding, other weights, or the file itself."""
    if group in ("configuration", "code", "container"):
        return group if group == "code" else "container"
    if " +" in group:
        return "small tensors"
    name = group.removeprefix("blocks.#.")
    first = name.split(".")[0]
    return first if first in ("attention", "mlp", "embedding") else "other weights"


def _over_runs(runs: Sequence[Run], of_one: Any, num_bins: int = MAX_POINTS) -> list[Row]:
    share = max(30, min(num_bins, MAX_POINTS // len(runs), 1200))
    return [{"run": run.name, **row} for run in runs for row in of_one(run, share)]
