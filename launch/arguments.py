"""The arguments of every subcommand. Imports nothing heavy: `albatross inspect` needs the artifact tools alone."""

import argparse
from pathlib import Path
from typing import Any

from eval.arguments import Parser
from launch.data import command as data_command
from launch.settings import nearest
from model.errors import InputError

CAP_BYTES = 16_000_000
SECTIONS = ("model", "training", "quantization", "eval")
DESCRIPTION = "Train language models against a byte budget, pack them, and score the file in bits per byte."
OVERRIDES = (
    "Settings of the preset can be overridden: --SECTION.FIELD VALUE, for example --model.num-layers 4. "
    "`albatross presets show PRESET` lists them. Sections: "
)


def root_parser() -> Parser:
    """The parser of the whole command line. Subcommands set `command` (their words) and `sections` (overridable)."""
    root = Parser(prog="albatross", description=DESCRIPTION)
    commands = root.add_subparsers(metavar="COMMAND")
    data_command.add_arguments(_leaf(commands, "data", "make and check data folders"))
    train = _leaf(commands, "train", "train a preset", SECTIONS)
    add_run_options(train, required=False)
    add_launcher_options(train)
    add_dry_run_option(train, "what the run would take and come to; starts nothing, needs neither --data nor --out")
    add_json_option(train)
    add_pack_options(_leaf(commands, "pack", "pack a run into an artifact", ("quantization", "eval")))
    # These two have parsers of their own in eval, which also runs without launch; here for --help and suggestions.
    commands.add_parser("evaluate", help="score an artifact in bits per byte", add_help=False)
    commands.add_parser("compare", help="whether runs score better than others, and how surely", add_help=False)
    inspect = _leaf(commands, "inspect", "what an artifact holds")
    inspect.add_argument("file", type=Path, metavar="FILE")
    inspect.add_argument("--bytes", action="store_true", help="the byte ledger: where every byte of the file went")
    add_json_option(inspect)
    _leaf(commands, "verify", "read an artifact to the last byte, strictly").add_argument(
        "file", type=Path, metavar="FILE"
    )
    presets = commands.add_parser("presets", help="the presets").add_subparsers(metavar="COMMAND")
    add_json_option(_leaf(presets, "presets list", "every preset with its figures"))
    show = _leaf(presets, "presets show", "one preset, resolved")
    show.add_argument("name", metavar="NAME")
    add_json_option(show)
    add_sweep_options(_leaf(commands, "sweep", "runs over a grid or list of settings", SECTIONS))
    add_submission_options(_leaf(commands, "submission", "the challenge's folder, every figure scored again"))
    add_report_options(_leaf(commands, "report", "one page with the figures of runs, to look at in a browser"))
    return root


def _leaf(commands: Any, words: str, summary: str, sections: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    epilog = OVERRIDES + ", ".join(sections) if sections else None
    leaf = commands.add_parser(words.split()[-1], help=summary, description=summary, epilog=epilog)
    leaf.set_defaults(command=words, sections=sections)
    return leaf


def add_run_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The options that `albatross train` and every rank share. A dry run takes no data and writes nothing."""
    parser.add_argument("preset", metavar="PRESET", help="a preset's name or id, or the path of a .toml file")
    parser.add_argument("--data", type=Path, required=required, metavar="DIR", help="data folder (albatross data)")
    parser.add_argument("--out", type=Path, required=required, metavar="RUN_DIR", help="run folder")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="SentencePiece model (default: the data folder's)"
    )
    parser.add_argument(
        "--resume",
        default="no",
        metavar="no|auto|CHECKPOINT",
        help="auto: continue from the newest valid checkpoint in RUN_DIR, or start anew if there is none (default: no)",
    )
    parser.add_argument(
        "--replay-clock",
        type=Path,
        metavar="RUN_DIR",
        help="take each step's clock from this earlier run's metrics.jsonl",
    )
    parser.add_argument("--tensorboard", action="store_true", help="metrics to RUN_DIR/tensorboard/ too")
    parser.add_argument("--csv", action="store_true", help="metrics to RUN_DIR/csv/ too, a file each")
    parser.add_argument("--wandb", metavar="PROJECT", help="metrics to this project of Weights & Biases too")


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """The options about processes, of `albatross train` alone."""
    parser.add_argument(
        "--num-gpus", type=int, metavar="N", help="processes on this machine (default: one a GPU; on CPU 1)"
    )
    parser.add_argument("--gpus", metavar="I,J", help="which GPUs of this machine, by number (default: the first)")
    parser.add_argument(
        "--hostfile", type=Path, metavar="F", help="machines to train on, in the deepspeed launcher's form"
    )


def add_pack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_DIR|CHECKPOINT", type=Path, help="a run folder, or one checkpoint in it")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the artifact (default: artifact.albatross in the run)"
    )
    parser.add_argument(
        "--max-bytes", type=int, default=CAP_BYTES, metavar="N", help="cap on the file's size (default: %(default)s)"
    )
    parser.add_argument(
        "--fit", action="store_true", help="choose the quantizer's rate so that the file lands just under --max-bytes"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="data folder whose training tokens calibrate (default: the run's)"
    )
    add_dry_run_option(parser, "the byte table alone; keeps no file, and a size over the cap is no error")


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", help="a preset's name or id, or the path of a .toml file")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="data folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the runs and of sweep.json")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="SentencePiece model (default: the data's)")
    choices = parser.add_mutually_exclusive_group()
    choices.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="SECTION.FIELD=V,V",
        help="values of one setting; given several times, every combination",
    )
    choices.add_argument(
        "--list", type=Path, metavar="FILE", help="one choice of settings a line: --SECTION.FIELD V ..."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337], metavar="N", help="default: %(default)s")
    parser.add_argument("--mode", choices=("plain", "sliding", "ttt"), default="plain", help="default: %(default)s")
    parser.add_argument("--max-bytes", type=int, default=CAP_BYTES, metavar="N", help="default: %(default)s")
    parser.add_argument("--num-gpus", type=int, metavar="N", help="GPUs to spread the runs over (default: all)")
    parser.add_argument("--gpus-per-run", type=int, default=1, metavar="N", help="on CPUs: processes (default: 1)")


def add_submission_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="runs of one preset, a seed each")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--author", required=True, metavar="NAME")
    parser.add_argument("--github-id", required=True, metavar="ID")
    parser.add_argument("--name", required=True, metavar="TITLE", help="of the submission")
    parser.add_argument("--blurb", required=True, metavar="TEXT", help="what is new, in a sentence or two")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder to score on (default: the run's)")
    parser.add_argument(
        "--device", metavar="NAME", help="for scoring: cpu, cuda or cuda:N (default: cuda if available)"
    )


def add_report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="run folders")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: %(default)s")


def add_dry_run_option(parser: argparse.ArgumentParser, summary: str) -> None:
    parser.add_argument("--dry-run", action="store_true", help=summary)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def check_names(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """InputError for a misspelt command or option, with the nearest; argparse would list all, or complain of others."""
    subcommands = next((action for action in parser._actions if isinstance(action, argparse._SubParsersAction)), None)
    if subcommands is not None and arguments and not arguments[0].startswith("-"):
        if arguments[0] not in subcommands.choices:
            raise InputError(f"unknown command {arguments[0]}{nearest(arguments[0], subcommands.choices)}")
        check_names(subcommands.choices[arguments[0]], arguments[1:])
        return
    options = [name for action in parser._actions for name in action.option_strings]
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in options:
            raise InputError(f"{parser.prog}: unknown option {name}{nearest(name, options)}")
