"""Starts the processes that share one evaluation, and ends them all when one of them fails."""

from __future__ import annotations

import datetime
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from eval.ranks import Ranks
from model.errors import InputError

COLLECTIVE_TIMEOUT = datetime.timedelta(hours=2)
"""A rank may wait this long for the others at the end of a phase; a rank that fails ends all at once."""

Work = Callable[[Sequence[str], float, Ranks], None]


def run_processes(work: Work, argv: Sequence[str], started: float, num_processes: int, device: torch.device) -> None:
    """Calls `work(argv, started, ranks)` in new processes, one GPU each on CUDA (NCCL), sharing the CPU else (gloo).

    `work` must be a module's function. Raises InputError if there are too few GPUs or a process raises InputError, with
    its message, and whatever torch.multiprocessing raises if one fails otherwise.
    """
    if device.type == "cuda" and num_processes > torch.cuda.device_count():
        raise InputError(f"--num-processes: {num_processes} need as many GPUs; there are {torch.cuda.device_count()}")
    with tempfile.TemporaryDirectory(prefix="albatross-") as folder:
        arguments = (work, list(argv), started, num_processes, device.type, folder)
        try:
            start_processes(_process, arguments, nprocs=num_processes, join=True, start_method="spawn")  # type: ignore[no-untyped-call]
        except ProcessExitedException:
            messages = sorted(Path(folder).glob("error.*"))
            if not messages:
                raise
            raise InputError(messages[0].read_text(encoding="utf-8")) from None


def _process(
    rank: int, work: Work, argv: Sequence[str], started: float, num_processes: int, device_type: str, folder: str
) -> None:
    if device_type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
    dist.init_process_group(
        "nccl" if device_type == "cuda" else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=num_processes,
        timeout=COLLECTIVE_TIMEOUT,
    )
    try:
        work(argv, started, Ranks(rank, num_processes, device))
    except (InputError, OSError) as error:
        Path(folder, f"error.{rank}").write_text(str(error), encoding="utf-8")
        sys.exit(2)
    dist.destroy_process_group()
