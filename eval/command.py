"""The command line of the evaluator: `python -m eval FILE --data DIR`, which `albatross evaluate` is too."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from artifact.errors import ArtifactError
from eval import report
from eval.arguments import OVERRIDE_PREFIX, Parser
from eval.config import MODES, EvalConfig, check_setting, with_overrides
from eval.modes import run_mode
from eval.parallel import run_processes
from eval.progress import Budget
from eval.ranks import Ranks
from eval.session import Session, open_session, pick_device
from model.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
EXIT_OK = 0
EXIT_INPUT = 2


def build_parser() -> Parser:
    """The parser of the evaluator's arguments."""
    parser = Parser(
        prog="albatross evaluate",
        description="Score an artifact in bits per byte of the original text, from artifact and data folder alone.",
        epilog="Any setting of the artifact's eval section can be replaced: --eval.ttt.learning-rate 0.02",
    )
    parser.add_argument("artifact", type=Path, metavar="FILE", help="the artifact")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="data folder with the validation shards"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="SentencePiece model (default: the data folder's)"
    )
    parser.add_argument(
        "--mode",
        nargs="+",
        choices=MODES,
        help="plain: fixed windows; sliding: overlapping windows; ttt: score-first test-time training "
        "(default: the artifact's own)",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="report.json to merge the result into")
    parser.add_argument("--budget-seconds", type=float, metavar="N", help="stop in time, with a report marked partial")
    parser.add_argument("--compare-frozen", action="store_true", help="with ttt: score the same windows unadapted too")
    parser.add_argument(
        "--num-processes", type=int, default=1, metavar="N", help="processes that share the work, one GPU each on cuda"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: cuda if available)")
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), help="of activations (default: bfloat16 on cuda, else float32)"
    )
    return parser


def main(argv: Sequence[str] | None = None, *, started: float | None = None) -> int:
    """Runs the evaluator; returns the exit code (0, or 2 if the input is wrong).

    `started`: time.monotonic() at the start of the process, from which --budget-seconds counts (default: now).
    """
    started = time.monotonic() if started is None else started
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    try:
        parser.check_options(argv)
        arguments, rest = parser.parse_known_args(argv)
        _check(arguments, _parse_overrides(rest))
        if arguments.num_processes == 1:
            evaluate(argv, started, Ranks(device=pick_device(arguments.device)))
        else:
            run_processes(evaluate, argv, started, arguments.num_processes, pick_device(arguments.device))
    except (InputError, ArtifactError, OSError) as error:
        print(f"albatross: error: {_one_line(error)}", file=sys.stderr)
        return EXIT_INPUT
    return EXIT_OK


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _parse_overrides(rest: Sequence[str]) -> dict[str, str]:
    """Reads `--eval.NAME VALUE` and `--eval.NAME=VALUE`; anything else is the user's mistake."""
    overrides: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        if not word.startswith(OVERRIDE_PREFIX):
            raise InputError(f"unknown argument {word!r}; see --help")
        name, separator, value = word.removeprefix(OVERRIDE_PREFIX).partition("=")
        if not separator:
            following = next(words, None)
            if following is None:
                raise InputError(f"{word} needs a value")
            value = following
        overrides[name] = value
    return overrides


def _apply_overrides(config: EvalConfig, overrides: dict[str, str]) -> EvalConfig:
    try:
        return with_overrides(config, overrides)
    except ValueError as error:
        raise InputError(f"--eval: {error}") from None


def _check(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Finds out what can be wrong before any work is done. Raises InputError."""
    if arguments.budget_seconds is not None and not arguments.budget_seconds > 0:
        raise InputError(f"--budget-seconds: must be above 0, not {arguments.budget_seconds}")
    if arguments.num_processes < 1:
        raise InputError(f"--num-processes: must be at least 1, not {arguments.num_processes}")
    if arguments.report is not None:
        report.load(arguments.report)
    for name in overrides:
        try:
            check_setting(name)
        except ValueError as error:
            raise InputError(f"--eval: {error}") from None


def evaluate(argv: Sequence[str], started: float, ranks: Ranks) -> None:
    """The work of one process: opens everything, runs the modes, and on rank 0 prints and reports the results."""
    arguments, rest = build_parser().parse_known_args(argv)
    overrides = _parse_overrides(rest)
    dtype = DTYPES[arguments.dtype or ("bfloat16" if ranks.device.type == "cuda" else "float32")]
    opening = time.monotonic()
    session = open_session(arguments.artifact, arguments.data, arguments.tokenizer, ranks, dtype)
    session.eval_config = _apply_overrides(session.eval_config, overrides)
    if session.eval_config.ttt.num_lanes % ranks.size:
        raise InputError(f"--num-processes: must divide ttt.num_lanes, {session.eval_config.ttt.num_lanes}")
    load_seconds = time.monotonic() - opening
    budget = Budget(arguments.budget_seconds, started)
    for mode in arguments.mode or [session.eval_config.mode]:
        section = run_mode(session, mode, budget, compare_frozen=arguments.compare_frozen)
        if ranks.rank != 0:
            continue
        section["load_seconds"] = load_seconds
        section["seconds_since_start"] = time.monotonic() - started
        section["overrides"] = dict(overrides)
        merged = None
        if arguments.report is not None:
            merged = report.update(arguments.report, report.SECTION_OF_MODE[mode], section)
        _print_section(session, mode, section, merged)


def _print_section(session: Session, mode: str, section: dict[str, Any], merged: dict[str, Any] | None) -> None:
    if section["num_scored_targets"] == 0:
        print(f"{mode}: the time budget ended before anything was scored (partial)", flush=True)
        return
    print(
        f"{mode}: val_loss:{section['val_loss_nats']:.6f} val_bpb:{section['bpb']:.6f} "
        f"targets:{section['num_scored_targets']}/{section['num_targets']} bytes:{section['num_bytes']} "
        f"seconds:{section['seconds']:.1f} tokens_per_second:{section['tokens_per_second']:.0f} "
        f"ledger:{section['ledger']} lossless:{_lower(section['lossless'])}"
        + (" partial:true" if section["partial"] else ""),
        flush=True,
    )
    if "frozen_bpb" in section:
        _print_gain("adaptation", section["improvement_over_frozen_bpb"], "the same windows with frozen weights")
    entry = (merged or {}).get(report.SECTION_OF_MODE[mode], {})
    if mode != "plain" and entry.get("improvement_over_plain_bpb") is not None:
        _print_gain(mode, entry["improvement_over_plain_bpb"], "plain scoring")


def _print_gain(what: str, gain: float, against: str) -> None:
    verb = "lowers" if gain >= 0 else "RAISES"
    print(f"{what} {verb} val_bpb by {abs(gain):.6f} against {against}", flush=True)


def _lower(value: bool | None) -> str:
    return "unknown" if value is None else str(value).lower()
