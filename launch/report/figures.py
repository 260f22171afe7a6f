"""The figures of a report, as specifications of Vega-Lite (and of Vega, for the treemap), without colours or sizes.

The page adds both, so that they follow the reader's theme and screen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.report import series
from launch.report.recorded import Run

VEGA_LITE = "https://vega.github.io/schema/vega-lite/v6.json"
VEGA = "https://vega.github.io/schema/vega/v6.json"
AXES = {
    "step": {"field": "step", "title": "training step"},
    "seconds": {"field": "seconds", "title": "training time in seconds"},
}
"""What curves can be drawn over; the page changes one for the other."""

Row = dict[str, Any]
Spec = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure: a specification and its data; `missing` says why there is no data, and what brings it."""

    id: str
    title: str
    caption: str
    rows: list[Row]
    missing: str
    spec: Spec = field(default_factory=dict)

    @property
    def has_axes(self) -> bool:
        """Whether it can be drawn over steps and over time."""
        return self.spec.get("encoding", {}).get("x", {}).get("field") in AXES

    def drawn(self) -> Spec:
        """The whole specification, data included."""
        if self.spec["$schema"] == VEGA:
            first, *others = self.spec["data"]
            return {**self.spec, "data": [{**first, "values": self.rows}, *others]}
        return {**self.spec, "data": {"values": self.rows}}


def figures(runs: Sequence[Run]) -> list[Figure]:
    """All figures of a report over `runs`, in reading order."""
    several = len(runs) > 1
    return [
        _staircase(runs, several),
        _training_loss(runs, several),
        _validation(runs, several),
        _learning_rates(runs, several),
        _speed(runs, several),
        _step_times(runs, several),
        *(_treemap(run, index, several) for index, run in enumerate(runs)),
        _bits_by_layer(runs, several),
        _running_bpb(runs, several),
        _gain_by_length(runs, several),
    ]


def _dashes(nominal: Spec) -> Spec:
    return {**nominal, "legend": {"symbolType": "stroke", "symbolSize": 400}}


def _number(name: str, title: str, **more: Any) -> Spec:
    return {"field": name, "type": "quantitative", "title": title, **more}


def _nominal(name: str, title: str, **more: Any) -> Spec:
    return {"field": name, "type": "nominal", "title": title, **more}


def _spec(encoding: Spec, layers: list[Spec], **more: Any) -> Spec:
    return {"$schema": VEGA_LITE, "encoding": encoding, "layer": layers, **more}


def _curves(x: Spec, y: Spec, series_encoding: Spec, tooltip: list[Spec], line: Spec | None = None) -> Spec:
    """Lines, and the point nearest to the pointer with its values."""
    hover = {"name": "hover", "select": {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"}}
    shown = {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0}
    return _spec(
        {"x": x, **series_encoding},
        [
            {"mark": {"type": "line", **(line or {})}, "encoding": {"y": y}},
            {
                "mark": {"type": "point", "filled": True, "size": 60},
                "params": [hover],
                "encoding": {"y": y, "opacity": shown, "tooltip": tooltip},
            },
        ],
    )


def _by_run(several: bool) -> Spec:
    return {"color": _nominal("run", "run", sort=None)} if several else {}


def _over_training(y: Spec, encoding: Spec, extra: Sequence[Spec] = (), line: Spec | None = None) -> Spec:
    tooltip = [_nominal("run", "run"), *extra, _number("step", "step"), _number("seconds", "seconds"), y]
    x = {**AXES["step"], "type": "quantitative", "scale": {"nice": False}}
    return _curves(x, y, encoding, tooltip, line)


def _training_loss(runs: Sequence[Run], several: bool) -> Figure:
    y = _number("train_loss", "nats per token", scale={"type": "log", "nice": False, "padding": 8})
    rows = series.training_loss(runs)
    return Figure(
        "loss",
        "Training loss",
        "Mean over a stretch of steps; logarithmic scale.",
        rows,
        "No steps in metrics.jsonl.",
        _over_training(y, _by_run(several)),
    )


def _validation(runs: Sequence[Run], several: bool) -> Figure:
    y = _number("val_bpb", "bits per byte", scale={"zero": False})
    spec = _over_training(y, _by_run(several), line={"point": True})
    return Figure(
        "validation",
        "Validation BPB during training",
        "Plain scoring, before quantization; the averaged weights where the run averages. The last point covers all "
        "validation text, earlier ones the share that training.validation_tokens allows.",
        series.validation(runs),
        "No validation in metrics.jsonl.",
        spec,
    )


def _learning_rates(runs: Sequence[Run], several: bool) -> Figure:
    group = _nominal("group", "optimizer group", sort=None)
    encoding = (
        {**_by_run(True), "strokeDash": _dashes(group)}
        if several
        else {"color": _dashes(group), "strokeDash": _dashes(group)}
    )
    y = _number("learning_rate", "learning rate")
    return Figure(
        "learning_rates",
        "Learning rates",
        "Matrices are Muon's, the embedding and the scalars AdamW's.",
        series.learning_rates(runs),
        "No learning rates in metrics.jsonl and config.toml.",
        _over_training(y, encoding, [group]),
    )


def _speed(runs: Sequence[Run], several: bool) -> Figure:
    y = _number("tokens_per_second", "tokens per second", scale={"zero": True}, axis={"format": "~s"})
    return Figure(
        "speed",
        "Training speed",
        "Tokens per second over all processes, by the clock that the time budget is counted on.",
        series.speed(runs),
        "No token counts in metrics.jsonl.",
        _over_training(y, _by_run(several)),
    )


def _step_times(runs: Sequence[Run], several: bool) -> Figure:
    rows = series.step_times(runs)
    part = _nominal("part", "part of the step", sort=None)
    y = _number("milliseconds", "milliseconds a step", scale={"zero": True})
    if several or len({row["part"] for row in rows}) == 1:
        encoding = {**_by_run(several), **({"strokeDash": _dashes(part)} if several else {})}
        spec = _over_training(y, encoding, [part])
        caption = "The whole of a step: the trainer timed no parts."
        if len({row["part"] for row in rows}) > 1:
            caption = "Milliseconds of each part of a step."
    else:
        stacked = {**y, "stack": "zero"}
        spec = _over_training(stacked, {"color": part}, [part])
        spec["layer"][0]["mark"] = {"type": "area", "opacity": 0.8}
        caption = "Milliseconds of each part of a step, one upon the other."
    return Figure("step_times", "Where a step's time goes", caption, rows, "No times in metrics.jsonl.", spec)


def _staircase(runs: Sequence[Run], several: bool) -> Figure:
    x = {
        "field": "stage",
        "type": "ordinal",
        "sort": {"field": "order"},
        "title": None,
        "axis": {"labelAngle": 0, "labelExpr": "split(datum.label, ' ')", "labelLimit": 0, "labelOverlap": False},
    }
    y = _number("bpb", "bits per byte", scale={"zero": False, "padding": 18})
    label = {"text": {"field": "bpb", "format": ".4f"}, "y": y}
    tooltip = [_nominal("run", "run"), _nominal("stage", "stage"), _number("bpb", "BPB", format=".6f")]
    layers = [
        {"mark": {"type": "line", "interpolate": "step"}, "encoding": {"y": y}},
        {"mark": {"type": "point", "filled": True, "size": 70}, "encoding": {"y": y, "tooltip": tooltip}},
        {"mark": {"type": "text", "dy": -12, "fontSize": 12}, "encoding": label},
    ]
    return Figure(
        "staircase",
        "From trained weights to the scored file",
        "Bits per byte of the validation text after each stage; lower is better.",
        series.staircase(runs),
        "No scores in report.json yet: run albatross evaluate with --report.",
        _spec({"x": x, **_by_run(several)}, layers),
    )


def _bits_by_layer(runs: Sequence[Run], several: bool) -> Figure:
    part = _nominal("part", "part")
    y = _number("bits_per_weight", "bits per weight", scale={"zero": False})
    x = {"field": "layer", "type": "ordinal", "title": "layer", "axis": {"labelAngle": 0}}
    tooltip = [_nominal("run", "run"), x, part, _number("weights", "weights", format=","), y]
    encoding = {"x": x, "y": y, "tooltip": tooltip, "strokeDash": _dashes(part)}
    encoding |= _by_run(True) if several else {"color": _dashes(part)}
    return Figure(
        "bits_by_layer",
        "Bits per weight, by layer",
        "Scales included. The matrices of all layers are coded together; a layer's share of those bytes goes by the "
        "entropy of its symbols.",
        series.bits_by_layer(runs),
        "No artifact in the run folder: albatross pack writes one.",
        _spec(encoding, [{"mark": {"type": "line"}}, {"mark": {"type": "point", "filled": True, "size": 60}}]),
    )


def _running_bpb(runs: Sequence[Run], several: bool) -> Figure:
    mode = _nominal("mode", "scoring", sort=None)
    x = _number("num_targets", "validation tokens", axis={"format": "~s"}, scale={"nice": False})
    y = _number("bpb", "bits per byte up to here", scale={"zero": False})
    encoding = (
        {**_by_run(True), "strokeDash": _dashes(mode)}
        if several
        else {"color": _dashes(mode), "strokeDash": _dashes(mode)}
    )
    tooltip = [_nominal("run", "run"), mode, _number("num_targets", "tokens", format=","), y]
    return Figure(
        "running_bpb",
        "Running BPB of the evaluation",
        "Over the validation text from its start, in the order of the text.",
        series.running_bpb(runs),
        "Not in report.json: run albatross evaluate (this version or later) with --report.",
        _curves(x, y, encoding, tooltip),
    )


def _gain_by_length(runs: Sequence[Run], several: bool) -> Figure:
    mode = _nominal("mode", "scoring", sort=None)
    x = {
        "field": "max_document_tokens",
        "type": "ordinal",
        "title": "tokens of the document, up to",
        "axis": {"labelAngle": 0, "format": "~s"},
    }
    y = _number("gain_bpb", "BPB saved against plain scoring")
    tooltip = [_nominal("run", "run"), mode, x, _number("num_documents", "documents"), y]
    encoding = {"x": x, "y": y, "tooltip": tooltip}
    if several:
        encoding |= {**_by_run(True), "strokeDash": _dashes(mode)}
        layers: list[Spec] = [{"mark": "line"}, {"mark": {"type": "point", "filled": True, "size": 60}}]
    else:
        encoding |= {"xOffset": {"field": "mode"}, "color": mode}
        layers = [{"mark": "bar"}]
    return Figure(
        "gain_by_length",
        "What adaptation saves, by length of document",
        "Above zero: better than plain scoring of the same tokens.",
        series.gain_by_length(runs),
        "Needs a plain and a ttt or sliding section in report.json: albatross evaluate --mode plain sliding ttt.",
        _spec(encoding, layers),
    )


def _treemap(run: Run, index: int, several: bool) -> Figure:
    rows = series.artifact_bytes(run)
    total = sum(row["bytes"] for row in rows)
    families = list(dict.fromkeys(row["family"] for row in rows))
    parents: list[Row] = [{"id": name, "parent": "artifact"} for name in families]
    nodes = [{"id": "artifact", "parent": None}, *parents]
    nodes += [{**row, "id": f"{row['family']}/{row['name']}", "parent": row["family"]} for row in rows]
    return Figure(
        f"treemap_{index}",
        f"Where the file's bytes are: {run.name}" if several else "Where the file's bytes are",
        f"{total:,} bytes; areas are proportional to bytes, colours tell families apart.",
        nodes if rows else [],
        "No artifact in the run folder: albatross pack writes one.",
        _treemap_spec(families),
    )


def _treemap_spec(families: list[str]) -> Spec:
    box = {"x": {"field": "x0"}, "y": {"field": "y0"}, "x2": {"field": "x1"}, "y2": {"field": "y1"}}
    size = "(datum.x1 - datum.x0)"
    tooltip = (
        "{'group': datum.name, 'family': datum.family, 'bytes': format(datum.bytes, ','), "
        "'share': format(datum.share, '.2%'), 'encoding': datum.encoding, "
        "'bits per weight': datum.bits_per_weight == null ? '' : datum.bits_per_weight}"
    )
    text = {
        "x": {"signal": "datum.x0 + 5"},
        "limit": {"signal": f"{size} - 8"},
        "opacity": {"signal": f"{size} > 34 && datum.y1 - datum.y0 > datum.needs ? 1 : 0"},
    }
    return {
        "$schema": VEGA,
        "autosize": {"type": "none"},
        "signals": [
            {
                "name": "width",
                "init": "containerSize()[0]",
                "on": [{"events": "window:resize", "update": "containerSize()[0]"}],
            },
            {"name": "height", "value": 360},
        ],
        "data": [
            {
                "name": "nodes",
                "transform": [
                    {"type": "stratify", "key": "id", "parentKey": "parent"},
                    {
                        "type": "treemap",
                        "field": "bytes",
                        "sort": {"field": "value", "order": "descending"},
                        "round": True,
                        "ratio": 1.4,
                        "paddingInner": 2,
                        "paddingOuter": 1,
                        "size": [{"signal": "width"}, {"signal": "height"}],
                    },
                ],
            },
            {"name": "leaves", "source": "nodes", "transform": [{"type": "filter", "expr": "datum.bytes != null"}]},
        ],
        "scales": [{"name": "color", "type": "ordinal", "domain": families, "range": "category"}],
        "marks": [
            {
                "type": "rect",
                "from": {"data": "leaves"},
                "encode": {
                    "update": {**box, "fill": {"scale": "color", "field": "family"}, "tooltip": {"signal": tooltip}}
                },
            },
            *(
                {
                    "type": "text",
                    "style": "on-mark",
                    "interactive": False,
                    "from": {"data": "leaves"},
                    "encode": {
                        "update": {
                            **text,
                            "opacity": {"signal": text["opacity"]["signal"].replace("datum.needs", str(needs))},
                            "y": {"signal": f"datum.y0 + {offset}"},
                            "text": {"signal": words},
                            "fontWeight": {"value": weight},
                        }
                    },
                }
                for needs, offset, words, weight in (
                    (20, 14, "datum.name", "bold"),
                    (36, 29, "format(datum.bytes, ',') + ' bytes'", "normal"),
                )
            ),
        ],
    }
