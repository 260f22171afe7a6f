"""Compares two sets of runs: are the first ones better, by how much, and is it more than chance?

The challenge's rule: a new record must beat the old one by at least 0.005 nats per token, shown at p < 0.01 over
several seeds. So two one-sided Welch tests are made, against "no better" and against "better by 0.005 nats or less".
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval import report
from eval.arguments import Parser
from model.errors import InputError

RECORD_MARGIN_NATS = 0.005
RECORD_P = 0.01
EVALUATED = ("post_ttt", "post_quantization_sliding", "post_quantization")
FRACTION_FLOOR = 1e-300
FRACTION_PRECISION = 1e-15


@dataclass(frozen=True)
class Summary:
    """BPB and nats per token over the runs of one side."""

    num_runs: int
    mean_bpb: float
    std_bpb: float | None
    mean_nats: float
    std_nats: float | None


@dataclass(frozen=True)
class WelchTest:
    """One-sided Welch test that the first sample's mean is below the second's by more than a margin."""

    t: float
    degrees_of_freedom: float
    p: float


@dataclass(frozen=True)
class Comparison:
    """The result; tests are None if a side has fewer than 2 runs or no spread at all."""

    section: str
    first: Summary
    second: Summary
    improvement_bpb: float
    improvement_nats: float
    better: WelchTest | None
    better_by_margin: WelchTest | None

    @property
    def is_record(self) -> bool:
        """Whether the challenge's rule is met."""
        return self.better_by_margin is not None and self.better_by_margin.p < RECORD_P


def student_t_survival(t: float, degrees_of_freedom: float) -> float:
    """P(T > t) of Student's t, through the regularized incomplete beta function (Numerical Recipes 6.4, 6.14)."""
    x = degrees_of_freedom / (degrees_of_freedom + t * t)
    tail = 0.5 * _regularized_beta(0.5 * degrees_of_freedom, 0.5, x)
    return tail if t >= 0 else 1.0 - tail


def _regularized_beta(a: float, b: float, x: float) -> float:
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1.0) / (a + b + 2.0):
        return math.exp(log_front) * _beta_fraction(a, b, x) / a
    return 1.0 - math.exp(log_front) * _beta_fraction(b, a, 1.0 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1.0 / max(1.0 - (a + b) * x / (a + 1.0), FRACTION_FLOOR)
    value = d
    for m in range(1, 1000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + numerator * d
            d = 1.0 / (d if abs(d) > FRACTION_FLOOR else FRACTION_FLOOR)
            c = 1.0 + numerator / c
            c = c if abs(c) > FRACTION_FLOOR else FRACTION_FLOOR
            value *= d * c
        if abs(d * c - 1.0) < FRACTION_PRECISION:
            break
    return value


def welch_test(first: Sequence[float], second: Sequence[float], margin: float) -> WelchTest | None:
    """Tests whether the mean of `first` is below that of `second` by more than `margin`; None without spread."""
    if min(len(first), len(second)) < 2:
        return None
    a, b = statistics.variance(first) / len(first), statistics.variance(second) / len(second)
    if a + b == 0.0:
        return None
    t = (statistics.fmean(second) - statistics.fmean(first) - margin) / math.sqrt(a + b)
    degrees = (a + b) ** 2 / (a * a / (len(first) - 1) + b * b / (len(second) - 1))
    return WelchTest(t, degrees, student_t_survival(t, degrees))


def load_sections(path: Path) -> dict[str, dict[str, Any]]:
    """The evaluated sections of a run: `path` is a run folder with a report.json, or a report. Raises InputError."""
    file = path / "report.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such report")
    content = report.load(file)
    sections = {name: content[name] for name in EVALUATED if isinstance(content.get(name), dict)}
    if not sections:
        raise InputError(f"{file}: holds no evaluation")
    return sections


def compare(first: Sequence[Path], second: Sequence[Path], section: str | None = None) -> Comparison:
    """Compares the runs of both sides on one section (default: the furthest that all have).

    Raises InputError for a run without the section or with a partial one, for runs on different validation data or
    tokenizers, and for a mixture of legal results with ones that adapted on text before scoring it.
    """
    paths = [*first, *second]
    runs = [load_sections(path) for path in paths]
    common = [name for name in EVALUATED if all(name in run for run in runs)]
    if section is None:
        if not common:
            raise InputError("the runs have no evaluated section in common")
        section = common[0]
    entries: list[dict[str, Any]] = []
    for path, run in zip(paths, runs, strict=True):
        if section not in run:
            raise InputError(f"{path}: has no section {section}")
        entries.append(run[section])
        _check_entry(path, section, entries)
    nats = [float(entry["val_loss_nats"]) for entry in entries]
    bpb = [float(entry["bpb"]) for entry in entries]
    cut = len(first)
    summaries = [_summarize(bpb[:cut], nats[:cut]), _summarize(bpb[cut:], nats[cut:])]
    return Comparison(
        section=section,
        first=summaries[0],
        second=summaries[1],
        improvement_bpb=summaries[1].mean_bpb - summaries[0].mean_bpb,
        improvement_nats=summaries[1].mean_nats - summaries[0].mean_nats,
        better=welch_test(nats[:cut], nats[cut:], 0.0),
        better_by_margin=welch_test(nats[:cut], nats[cut:], RECORD_MARGIN_NATS),
    )


def _check_entry(path: Path, section: str, entries: Sequence[dict[str, Any]]) -> None:
    entry, reference = entries[-1], entries[0]
    if entry.get("partial", True) or entry.get("bpb") is None or entry.get("val_loss_nats") is None:
        raise InputError(f"{path}: {section} is partial; only complete evaluations can be compared")
    if entry.get("legal", True) != reference.get("legal", True):
        raise InputError(f"{path}: {section} mixes legal results with ones adapted on text before scoring it")
    for key, what in (("data_sha256", "validation data"), ("tokenizer_sha256", "tokenizer"), ("num_bytes", "bytes")):
        if entry.get(key) != reference.get(key):
            raise InputError(f"{path}: {section} is over another {what} than the first run's; nats can't be compared")


def _summarize(bpb: Sequence[float], nats: Sequence[float]) -> Summary:
    several = len(bpb) > 1
    return Summary(
        num_runs=len(bpb),
        mean_bpb=statistics.fmean(bpb),
        std_bpb=statistics.stdev(bpb) if several else None,
        mean_nats=statistics.fmean(nats),
        std_nats=statistics.stdev(nats) if several else None,
    )


def format_comparison(result: Comparison) -> str:
    """A short table and the verdict in words."""
    lines = [f"section {result.section}", f"{'':8}{'runs':>5}{'bpb':>12}{'std':>11}{'nats/token':>13}{'std':>11}"]
    for name, side in (("first", result.first), ("second", result.second)):
        stds = [f"{value:.6f}" if value is not None else "-" for value in (side.std_bpb, side.std_nats)]
        lines.append(
            f"{name:8}{side.num_runs:>5}{side.mean_bpb:>12.6f}{stds[0]:>11}{side.mean_nats:>13.6f}{stds[1]:>11}"
        )
    lines.append(f"improvement: {result.improvement_bpb:.6f} bpb, {result.improvement_nats:.6f} nats per token")
    tests = (("better at all", result.better), (f"by more than {RECORD_MARGIN_NATS} nats", result.better_by_margin))
    for question, test in tests:
        if test is None:
            lines.append(f"{question}: not testable; Welch's t needs 2 or more differing runs on each side")
        else:
            degrees = f"{test.degrees_of_freedom:.1f} degrees of freedom"
            lines.append(f"{question}: Welch t = {test.t:.3f}, {degrees}, p = {test.p:.3g}")
    rule = f"the challenge's rule (at least {RECORD_MARGIN_NATS} nats better at p < {RECORD_P})"
    lines.append(f"{rule}: {'met' if result.is_record else 'not met'}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """`albatross compare A... --vs B...`; returns the exit code (0, or 2 if the input is wrong)."""
    parser = Parser(prog="albatross compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="run folders or reports")
    parser.add_argument("--vs", nargs="+", type=Path, required=True, metavar="RUN_DIR", help="what to compare with")
    parser.add_argument("--section", choices=EVALUATED, help="default: the furthest one that all runs have")
    parser.add_argument("--json", action="store_true", help="print JSON")
    try:
        arguments = parser.parse_args(argv)
        result = compare(arguments.runs, arguments.vs, arguments.section)
    except (InputError, OSError) as error:
        print(f"albatross: error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(asdict(result) | {"is_record": result.is_record}, indent=2))
    else:
        print(format_comparison(result))
    return 0
