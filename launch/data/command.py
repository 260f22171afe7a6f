"""The subcommands of `albatross data`: their options, and what each does. Imports nothing heavy until one runs."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

VARIANT_NAMES = ("sp1024", "sp4096", "sp8192", "caseops8192")


@dataclass(frozen=True)
class DataCommand:
    """One subcommand; `run` returns an exit code."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` every subcommand; the parsed `data_command` says which was chosen."""
    commands = parser.add_subparsers(metavar="COMMAND", dest="data_command", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.summary, description=command.summary))


def run(options: argparse.Namespace) -> int:
    """Run the chosen subcommand."""
    return COMMANDS[options.data_command].run(options)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", type=Path, required=True, metavar="PATH", help=".txt, .jsonl, .jsonl.zst or a folder of them"
    )
    parser.add_argument(
        "--tokenizer", required=True, metavar="FILE|train:VOCAB", help="a SentencePiece model, or train a lossless one"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the data folder to write")
    parser.add_argument("--val-input", type=Path, metavar="PATH", help="validation text, in the same forms as --input")
    parser.add_argument("--val-documents", type=int, metavar="N", help="take the first N documents for validation")
    parser.add_argument("--caseops", action="store_true", help="a CaseOps tokenizer: capitals as operators")
    parser.add_argument("--challenge", action="store_true", help="train it with the challenge's settings (lossy)")
    parser.add_argument("--name", default="text", help="of the shards, NAME_train_000000.bin (default: %(default)s)")
    parser.add_argument("--shard-tokens", type=int, default=100_000_000, metavar="N", help="tokens in a shard")
    parser.add_argument("--num-workers", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--overwrite", action="store_true", help="replace the data folder if there is one")


def _run_prepare(options: argparse.Namespace) -> int:
    from launch.data.prepare import prepare

    prepare(
        options.input,
        options.tokenizer,
        options.out,
        val_input=options.val_input,
        val_documents=options.val_documents,
        num_workers=options.num_workers,
        case_operators=options.caseops,
        challenge=options.challenge,
        name=options.name,
        shard_tokens=options.shard_tokens,
        overwrite=options.overwrite,
    )
    return 0


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="a data folder")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="where the folder holds no tokenizer.model")


def _run_verify(options: argparse.Namespace) -> int:
    from launch.data.verify import verify

    print(verify(options.folder, tokenizer_path=options.tokenizer).format())
    return 0


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", choices=("fineweb",), help="what to fetch")
    parser.add_argument("--variant", required=True, choices=VARIANT_NAMES, help="the tokenizer it was encoded with")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the data folder to write")
    parser.add_argument("--shards", type=int, metavar="N", help="training shards of 100 M tokens (default: all)")
    parser.add_argument("--offline", action="store_true", help="only check that the folder already has them")
    parser.add_argument("--revision", default="main", help="branch, tag or commit on the hub (default: %(default)s)")


def _run_fetch(options: argparse.Namespace) -> int:
    from launch.data.fetch import fetch_fineweb

    record = fetch_fineweb(
        options.variant, options.out, num_shards=options.shards, offline=options.offline, revision=options.revision
    )
    size_bytes = sum(file.size_bytes for file in record.files.values())
    print(f"{len(record.files)} files, {size_bytes} bytes, from {record.repo_id} at {record.revision}: {options.out}")
    return 0


def _add_documentation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for train.jsonl and val.jsonl")


def _run_documentation(options: argparse.Namespace) -> int:
    from launch.data.corpus import write_python_documentation

    write_python_documentation(options.out)
    return 0


COMMANDS = {
    "prepare": DataCommand("text to token shards", _add_prepare, _run_prepare),
    "verify": DataCommand("what a data folder holds, every byte read", _add_verify, _run_verify),
    "fetch": DataCommand("download tokenized FineWeb from the Hugging Face hub", _add_fetch, _run_fetch),
    "documentation": DataCommand(
        "the documentation of this Python as a small English corpus", _add_documentation, _run_documentation
    ),
}
