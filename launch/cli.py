"""The command line `albatross`. What a command needs is imported when it runs."""

import argparse
import sys

from launch import exit_codes
from launch.arguments import check_names, root_parser
from launch.settings import split_overrides
from model.errors import InputError

# Commands that the extra `eval` alone is not enough for.
NEED_TRAINING = ("train", "pack", "presets", "report", "sweep", "submission")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns its exit code: 0 ok, 2 the input is wrong, 75 preempted; anything else is a bug."""
    given = sys.argv[1:] if arguments is None else arguments
    return exit_codes.run(lambda: _dispatch(given), extra="train" if given[:1] and given[0] in NEED_TRAINING else None)


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["evaluate"]:
        return _evaluate(arguments[1:])
    if arguments[:1] == ["compare"]:
        return _compare(arguments[1:])
    root = root_parser()
    overrides: list[str] = []
    if any(argument.startswith("--") and "." in argument.partition("=")[0] for argument in arguments):
        from launch.preset import Settings

        arguments, overrides = split_overrides(Settings, arguments)
    check_names(root, arguments)
    options = root.parse_args(arguments)
    if not hasattr(options, "command"):
        raise InputError("which command? (see albatross --help)")
    for override in overrides:
        section = override.removeprefix("--").partition(".")[0]
        if override.startswith("--") and section not in options.sections:
            raise InputError(f"{override}: albatross {options.command} takes no settings of section {section}")
    return COMMANDS[options.command](options, overrides)


def _evaluate(arguments: list[str]) -> int:
    from eval.command import main as evaluate

    return evaluate(arguments)


def _compare(arguments: list[str]) -> int:
    from eval.compare import main as compare

    return compare(arguments)


def _data(options: argparse.Namespace, overrides: list[str]) -> int:
    from launch.data.command import run

    return run(options)


def _train(options: argparse.Namespace, overrides: list[str]) -> int:
    if options.dry_run:
        from launch.forecast import print_forecast

        return print_forecast(options, overrides)
    missing = [name for name in ("data", "out") if getattr(options, name) is None]
    if missing:
        names = ", ".join(f"--{name}" for name in missing)
        raise InputError(f"the following arguments are required: {names} (see albatross train --help)")
    if options.json:
        raise InputError("--json: goes with --dry-run only")
    from launch.train import start

    return start(options, overrides)


def _pack(options: argparse.Namespace, overrides: list[str]) -> int:
    from launch.pack import pack, preview

    choices = {
        "max_bytes": options.max_bytes,
        "overrides": overrides,
        "data": options.data,
        "fit": options.fit,
        "log": lambda message: print(message, flush=True),
    }
    ledger = preview(options.run, **choices) if options.dry_run else pack(options.run, options.out, **choices)
    print(ledger.format_table())
    return exit_codes.OK


def _sweep(options: argparse.Namespace, overrides: list[str]) -> int:
    from launch.sweep import sweep

    return sweep(options, overrides)


def _submission(options: argparse.Namespace, overrides: list[str]) -> int:
    from launch.submission import submit

    return submit(options, overrides)


def _report(options: argparse.Namespace, overrides: list[str]) -> int:
    from launch.report.page import write

    size = write(options.runs, options.out)
    print(f"{options.out}: {size:,} bytes")
    return exit_codes.OK


def _inspect(options: argparse.Namespace, overrides: list[str]) -> int:
    from launch.inspection import inspect

    return inspect(options.file, show_bytes=options.bytes, as_json=options.json)


def _verify(options: argparse.Namespace, overrides: list[str]) -> int:
    from launch.inspection import verify

    return verify(options.file)


def _presets_list(options: argparse.Namespace, overrides: list[str]) -> int:
    from launch.catalogue import print_list

    return print_list(as_json=options.json)


def _presets_show(options: argparse.Namespace, overrides: list[str]) -> int:
    from launch.catalogue import print_one

    return print_one(options.name, as_json=options.json)


COMMANDS = {
    "data": _data,
    "train": _train,
    "pack": _pack,
    "sweep": _sweep,
    "submission": _submission,
    "report": _report,
    "inspect": _inspect,
    "verify": _verify,
    "presets list": _presets_list,
    "presets show": _presets_show,
}


if __name__ == "__main__":
    sys.exit(main())
