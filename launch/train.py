"""Training: `albatross train` starts the deepspeed launcher, which runs this file once for each rank.

`deepspeed launch/train.py PRESET --data DIR --out RUN_DIR ...` does the same without `albatross` around it.
"""

import argparse
import importlib.util
import re
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and not __package__:
    # Run as a file: Python put launch/ on the path, whose module names (data, pack, ...) are not meant to be top-level.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch import exit_codes, processes
from launch.arguments import Parser, add_run_options, check_names
from launch.data.verify import shard_hashes
from launch.preset import Preset, Settings, load
from launch.run_folder import RunFolder
from launch.settings import format_toml, split_overrides
from model.errors import InputError
from model.text.shards import DataFolder
from model.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from eval.ledger import ByteLedger
    from trainer.run import TrainingResult

# How long a rank that lost its peers waits to be ended by the launcher, which reports the rank that failed first.
PEER_LOSS_SECONDS = 60.0


def start(options: argparse.Namespace, overrides: list[str]) -> int:
    """Checks the request in this process, then trains in ranks under the deepspeed launcher; returns its exit code."""
    if options.num_gpus is not None and options.num_gpus < 1:
        raise InputError(f"--num-gpus: accepts an integer of at least 1, got {options.num_gpus}")
    if options.hostfile is not None and not options.hostfile.is_file():
        raise InputError(f"--hostfile: {options.hostfile} does not exist")
    if options.gpus is not None and (options.num_gpus is not None or options.hostfile is not None):
        raise InputError("--gpus: goes with neither --num-gpus nor --hostfile")
    if options.gpus is not None and not re.fullmatch(r"\d+(,\d+)*", options.gpus):
        raise InputError(f"--gpus: accepts numbers such as 0,1, got {options.gpus}")
    processes.require_launcher()
    plan = make_plan(options, overrides)
    for package in ("tensorboard", "wandb"):
        if getattr(options, package) and importlib.util.find_spec(package) is None:
            raise InputError(f"--{package}: the package is not installed; pip install 'albatross[trackers]'")
    num_processes = options.num_gpus
    if num_processes is None and options.hostfile is None:
        num_processes = processes.default_num_processes()
    code = processes.launch(
        "launch.train",
        [*_rank_arguments(options), *overrides],
        num_processes=num_processes,
        hostfile=None if options.hostfile is None else str(options.hostfile),
        gpus=options.gpus,
    )
    if code == exit_codes.OK and not plan.folder.report.is_file():
        exit_codes.print_error(f"the launcher ended, but the run in {plan.folder.path} did not")
        return exit_codes.FAILED
    return code


def _rank_arguments(options: argparse.Namespace) -> list[str]:
    arguments = [options.preset, "--data", str(options.data), "--out", str(options.out), "--resume", options.resume]
    if options.tokenizer is not None:
        arguments += ["--tokenizer", str(options.tokenizer)]
    if options.replay_clock is not None:
        arguments += ["--replay-clock", str(options.replay_clock)]
    if options.wandb is not None:
        arguments += ["--wandb", options.wandb]
    arguments += [f"--{name}" for name in ("tensorboard", "csv") if getattr(options, name)]
    return arguments


@dataclass(frozen=True)
class Plan:
    """What a run was asked to do, checked, before anything is written."""

    preset: Preset
    data: DataFolder
    tokenizer: Tokenizer
    data_facts: dict[str, Any]
    """What environment.json records of the data folder."""
    folder: RunFolder
    checkpoint: Path | None
    skipped_checkpoints: tuple[str, ...]
    """One line for each newer checkpoint that is damaged."""
    replay_clock: list[float] | None


def make_plan(options: argparse.Namespace, overrides: list[str]) -> Plan:
    """Reads and checks everything the run needs. InputError: one line naming what is wrong."""
    preset = load(options.preset).with_overrides(overrides)
    data = DataFolder.open(options.data)
    tokenizer_path = options.tokenizer or data.tokenizer_path
    if tokenizer_path is None:
        raise InputError(f"{options.data}: holds no tokenizer.model; name one with --tokenizer")
    tokenizer = Tokenizer.load(tokenizer_path)
    vocab_size = preset.settings.model.vocab_size
    if tokenizer.vocab_size != vocab_size:
        raise InputError(
            f"{tokenizer_path}: has {tokenizer.vocab_size} pieces, but model.vocab_size of preset {preset.name} is "
            f"{vocab_size} (change it with --model.vocab-size {tokenizer.vocab_size})"
        )
    folder = RunFolder(options.out)
    folder.check_unused_or_same(preset, options.resume)
    checkpoint, skipped = _find_checkpoint(folder, options.resume)
    return Plan(
        preset,
        data,
        tokenizer,
        _data_facts(options.data, data, Path(tokenizer_path), tokenizer),
        folder,
        checkpoint,
        tuple(skipped),
        _read_clock(options.replay_clock),
    )


def _data_facts(path: Path, data: DataFolder, tokenizer_path: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Opens every shard to count its tokens, so that a damaged one is found here."""
    return {
        "path": str(path.resolve()),
        "tokenizer_path": str(tokenizer_path.resolve()),
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "lossless": data.lossless,
        "num_train_tokens": data.train.num_tokens,
        "num_val_tokens": data.val.num_tokens,
    }


def _find_checkpoint(folder: RunFolder, resume: str) -> tuple[Path | None, list[str]]:
    if resume == "no":
        return None, []
    from trainer import checkpoint

    if resume != "auto":
        if not Path(resume).is_dir():
            raise InputError(f"--resume {resume}: accepts no, auto or the folder of a checkpoint")
        return Path(resume), []
    return checkpoint.newest_valid(folder.checkpoints)


def _read_clock(run_dir: Path | None) -> list[float] | None:
    if run_dir is None:
        return None
    from trainer.clock import recorded_clock

    return recorded_clock(RunFolder(run_dir).metrics)


def main(arguments: list[str] | None = None) -> int:
    """One rank. Returns its exit code; only the first rank prints what the user did wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = Parser(prog="launch/train.py", description=__doc__)
    add_run_options(parser)
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)

    def rank() -> int:
        others, overrides = split_overrides(Settings, arguments)
        check_names(parser, others)
        return run_rank(parser.parse_args(others), overrides)

    return exit_codes.run(rank, quiet=processes.rank_from_launcher() != 0)


def run_rank(options: argparse.Namespace, overrides: list[str]) -> int:
    """Trains in this process, together with the other ranks. Returns exit code 0, 75 if preempted, 1 if it diverged."""
    plan = make_plan(options, overrides)

    from eval.ledger import ByteLedger
    from trainer import ranks, run
    from trainer.gradients import NonFiniteGradient
    from trainer.trackers import TrackerConfig

    processes.prepare_rank()
    ledger = ByteLedger.open(plan.data, plan.tokenizer)
    joined = ranks.join()
    is_new = not plan.folder.path.exists()
    joined.barrier()
    if joined.is_first:
        facts = {**plan.data_facts, "shard_sha256": shard_hashes(options.data)}
        plan.folder.start(plan.preset, facts, joined.size, resumed=plan.checkpoint is not None)
        for line in plan.skipped_checkpoints:
            print(f"skipped: {line}", flush=True)
        print(format_toml(plan.preset.to_table()), flush=True)
    joined.barrier()
    settings = plan.preset.settings
    try:
        result = run.train(
            settings.model,
            settings.training,
            plan.data,
            ledger,
            plan.folder.path,
            joined,
            resume=plan.checkpoint,
            replay_clock=plan.replay_clock,
            trackers=TrackerConfig(options.tensorboard, options.csv, options.wandb),
        )
    except InputError:
        if joined.is_first and is_new:
            shutil.rmtree(plan.folder.path)
        raise
    except run.Preempted as stop:
        if joined.is_first:
            print(f"{stop}; continue with --resume auto", flush=True)
        return exit_codes.PREEMPTED
    except NonFiniteGradient as error:
        if joined.is_first:
            exit_codes.print_error(f"training diverged: {error}")
        return exit_codes.FAILED
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(plan.folder.path)) from error  # fsync and write name no file
    except RuntimeError as error:
        if joined.is_first or not _lost_peer(error):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PEER_LOSS_SECONDS)
        return exit_codes.FAILED
    if joined.is_first:
        _report(plan, ledger, result)
    return exit_codes.OK


def _lost_peer(error: RuntimeError) -> bool:
    import torch.distributed

    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or "connection closed" in text or "gloo" in text


def _report(plan: Plan, ledger: "ByteLedger", result: "TrainingResult") -> None:
    """Puts the result of training into report.json, as its section `pre_quantization`."""
    from eval import report

    tally = result.validation
    section = {
        "bpb": tally.bpb,
        "val_loss_nats": tally.nats_per_token,
        "num_targets": tally.num_tokens,
        "num_scored_targets": tally.num_tokens,
        "num_bytes": tally.num_bytes,
        "partial": False,
        "ledger": "proved" if ledger.proved else "unproved",
        "lossless": ledger.lossless,
        "changed_bytes": ledger.num_changed_bytes,
        "preset": plan.preset.id,
        "tokenizer_sha256": plan.tokenizer.sha256,
        "num_steps": result.num_steps,
        "num_train_tokens": result.num_tokens,
        "train_seconds": result.train_seconds,
        "train_loss_nats": result.train_loss_nats,
        "peak_memory_bytes": result.peak_memory_bytes,
        "checkpoint": result.checkpoint.name,
    }
    if result.live_validation is not None:
        section["live_bpb"] = result.live_validation.bpb
    report.update(plan.folder.report, "pre_quantization", section)


if __name__ == "__main__":
    sys.exit(main())
