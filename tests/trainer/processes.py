"""Ranks for tests: forked from this process, so that torch is loaded already."""

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer.ranks import Ranks

_FORK = multiprocessing.get_context("fork")


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(ranks, *arguments)` returns on each of `size` ranks (gloo); tensors must be returned as numpy."""
    if size == 1:
        return [function(Ranks(0, 1, torch.device("cpu")), *arguments)]
    with tempfile.TemporaryDirectory() as folder:
        pipes = [_FORK.Pipe(duplex=False) for _ in range(size)]
        processes = [
            _FORK.Process(target=_child, args=(rank, size, Path(folder), pipes[rank][1], function, arguments))
            for rank in range(size)
        ]
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            sender.close()
        try:
            results = [receiver.recv() for receiver, _ in pipes]
        finally:
            for process in processes:
                process.join(timeout=60)
                process.kill()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _child(rank: int, size: int, folder: Path, sender: Any, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), size), rank=rank, world_size=size)
        result = function(Ranks(rank, size, torch.device("cpu")), *arguments)
    except BaseException as error:
        result = RuntimeError(f"rank {rank}: {type(error).__name__}: {error}")
    sender.send(result)
    sender.close()
