"""Processes: starting the deepspeed launcher, passing signals on to its ranks, and what a rank learns from it.

The variables that launchers set (RANK, LOCAL_SIZE) are read here.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def rank_from_launcher() -> int:
    """This process's rank over all machines; 0 if no launcher started it."""
    return int(os.environ.get("RANK", "0"))


def prepare_rank() -> None:
    """Sets this process up as one rank: its share of the cores, and the variable that deepspeed asks for.

    Started without a launcher, it is the only rank.
    """
    import torch

    os.environ.setdefault("LOCAL_RANK", "0")
    num_ranks = int(os.environ.get("LOCAL_SIZE", "1"))
    torch.set_num_threads(max(1, min(torch.get_num_threads(), len(os.sched_getaffinity(0)) // num_ranks)))


def default_num_processes() -> int:
    """One process for each GPU; one on a machine without GPUs."""
    import torch

    return torch.cuda.device_count() or 1


def require_launcher() -> None:
    """ModuleNotFoundError where deepspeed is not installed; it runs in other processes, so no import would say so."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ModuleNotFoundError("No module named 'deepspeed'", name="deepspeed")


def launch(
    module: str,
    arguments: list[str],
    *,
    num_processes: int | None,
    hostfile: str | None,
    gpus: str | None = None,
) -> int:
    """Runs `python -m module arguments` in every rank under the deepspeed launcher; the first failing exit code.

    `gpus`: the numbers of this machine's GPUs to use, such as "0,1", in place of the first `num_processes`.

    The launcher gets a process group of its own. A signal that asks this process to stop goes to all ranks at once as
    SIGTERM, so that they save a checkpoint and end; a second one ends the whole group at once.
    """
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet"]
    if hostfile is not None:
        command += ["--hostfile", hostfile]
    else:
        command += ["--master_port", str(free_port())]
    if gpus is not None:
        command += ["--include", f"localhost:{gpus}"]
    elif num_processes is not None:
        command += ["--num_gpus", str(num_processes)]
    command += ["--module", module, *arguments]
    launcher = subprocess.Popen(command, start_new_session=True)
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if received or not signal_ranks(launcher.pid, signal.SIGTERM):
            signal_group(launcher.pid, signal.SIGKILL if received else signal.SIGTERM)
        received.append(number)

    with handlers(forward):
        code = launcher.wait()
        signal_group(launcher.pid, signal.SIGKILL)  # whatever the launcher left behind
    code = code if code >= 0 else 128 - code
    return 128 + received[0] if received and code > 128 else code


@contextlib.contextmanager
def handlers(handler: object) -> Iterator[None]:
    """Routes STOP_SIGNALS to `handler` for a while."""
    previous = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def signal_ranks(launcher: int, number: int) -> bool:
    """Sends a signal to the ranks below the process `launcher` on this machine; False if there are none yet."""
    import psutil

    sent = False
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(launcher).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(argument.startswith("--local_rank=") for argument in process.cmdline()):
                    process.send_signal(number)
                    sent = True
    return sent


def signal_group(group: int, number: int) -> None:
    """Sends a signal to a process group; one that is gone already is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def free_port() -> int:
    """A TCP port on this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
