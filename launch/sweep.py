"""`albatross sweep`: a grid or a list of settings over seeds, each a run of `albatross train`, `pack` and `evaluate`.

Every run is a run folder below --out. The same command again goes on where it stopped: finished runs are kept, the
others continue from their newest checkpoint.
"""

import argparse
import itertools
import json
import os
import queue
import shlex
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch import exit_codes, processes
from launch.preset import Settings, load
from launch.run_folder import RunFolder, write_text
from launch.settings import split_overrides
from model.errors import InputError

SECTION_OF_MODE = {"plain": "post_quantization", "sliding": "post_quantization_sliding", "ttt": "post_ttt"}
RECORD = "sweep.json"


@dataclass(frozen=True)
class Point:
    """One choice of settings, as overrides of the command line, and its runs' folders by seed."""

    overrides: tuple[str, ...]
    folders: Mapping[int, Path]

    @property
    def label(self) -> str:
        return shlex.join(self.overrides) or "(the preset)"


@dataclass
class _Sweep:
    options: argparse.Namespace
    common: Sequence[str]
    """Overrides of every run."""
    stopping: threading.Event = field(default_factory=threading.Event)
    children: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def run_all(self, points: Sequence[Point]) -> int:
        """Runs what is not finished, as many at a time as there are places; the exit code that matters most."""
        places: queue.Queue[str | None] = queue.Queue()
        for place in device_places(self.options):
            places.put(place)
        jobs = [(point, seed) for point in points for seed in point.folders]

        def in_a_place(point: Point, seed: int) -> int:
            place = places.get()
            try:
                return exit_codes.PREEMPTED if self.stopping.is_set() else self.run_one(point, seed, place)
            finally:
                places.put(place)

        with processes.handlers(self.stop), ThreadPoolExecutor(places.qsize()) as pool:
            codes = list(pool.map(lambda job: in_a_place(*job), jobs))
        if self.stopping.is_set():
            return exit_codes.PREEMPTED
        return max(codes, default=exit_codes.OK)

    def run_one(self, point: Point, seed: int, place: str | None) -> int:
        """Trains, packs and evaluates one run, from where it stands. Returns the first exit code that is not 0."""
        folder = RunFolder(point.folders[seed])
        if score(folder, self.options.mode) is not None:
            print(f"{folder.path}: finished before", flush=True)
            return exit_codes.OK
        settings = [*self.common, *point.overrides, "--training.seed", str(seed)]
        where = ["--gpus", place] if place is not None else ["--num-gpus", str(self.options.gpus_per_run)]
        data = ["--data", str(self.options.data)]
        if self.options.tokenizer is not None:
            data += ["--tokenizer", str(self.options.tokenizer)]
        steps = [
            ["train", self.options.preset, *data, "--out", str(folder.path), "--resume", "auto", *where, *settings]
        ]
        if folder.report.is_file():  # trained before, but not evaluated
            steps = []
        steps.append(["pack", str(folder.path), "--max-bytes", str(self.options.max_bytes)])
        steps.append(
            ["evaluate", str(folder.artifact), *data, "--report", str(folder.report), "--mode", self.options.mode]
        )
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        for step in steps:
            code = self.call(step, folder.path.with_suffix(".log"), place)
            if code != exit_codes.OK:
                print(f"{folder.path}: albatross {step[0]} ended with exit code {code}; see its .log", flush=True)
                return code
        print(f"{folder.path}: val_bpb:{score(folder, self.options.mode):.6f}", flush=True)
        return exit_codes.OK

    def call(self, arguments: Sequence[str], log: Path, place: str | None) -> int:
        """Runs `albatross ARGUMENTS`, its output appended to `log`; its exit code."""
        environment = dict(os.environ)
        if place is not None and arguments[0] != "train":  # the launcher chooses the ranks' devices itself
            environment["CUDA_VISIBLE_DEVICES"] = place
        with log.open("ab") as output:
            output.write(f"$ albatross {shlex.join(arguments)}\n".encode())
            output.flush()
            child = subprocess.Popen(
                [sys.executable, "-m", "launch.cli", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self.children.add(child)
        if self.stopping.is_set():
            child.send_signal(signal.SIGTERM)
        try:
            return child.wait()
        finally:
            self.children.discard(child)

    def stop(self, *_: object) -> None:
        """Asks every run to save a checkpoint and end."""
        self.stopping.set()
        for child in list(self.children):
            child.send_signal(signal.SIGTERM)


def sweep(options: argparse.Namespace, overrides: list[str]) -> int:
    """Runs the sweep and prints its table. Returns 0; 75 if it was stopped; else the largest exit code of a run.

    Raises:
        InputError: an override that the preset does not take, or --out holding another sweep.
    """
    if options.gpus_per_run < 1:
        raise InputError(f"--gpus-per-run: accepts an integer of at least 1, got {options.gpus_per_run}")
    choices = [tuple(choice) for choice in (listed(options.list) if options.list else grid(options.grid))]
    preset = load(options.preset)
    for choice in choices:
        preset.with_overrides([*overrides, *choice])
    record = {"preset": options.preset, "overrides": overrides, "choices": [list(choice) for choice in choices]}
    record |= {"seeds": options.seeds, "mode": options.mode, "max_bytes": options.max_bytes}
    check_same(options.out, record)
    points = [
        Point(choice, {seed: options.out / f"{number:03d}_seed{seed}" for seed in options.seeds})
        for number, choice in enumerate(choices)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / RECORD, json.dumps(record, indent=2) + "\n")
    code = _Sweep(options, overrides).run_all(points)
    rows = results(points, options.mode)
    write_text(options.out / RECORD, json.dumps({**record, "results": rows}, indent=2) + "\n")
    print(format_results(rows))
    return code


def grid(assignments: Sequence[str]) -> list[list[str]]:
    """Overrides of every combination of `NAME=VALUE,VALUE,...`; a value of several numbers has spaces in it."""
    axes = []
    for assignment in assignments:
        name, equals, values = assignment.partition("=")
        if not equals or not values:
            raise InputError(f"--grid {assignment}: accepts SECTION.FIELD=VALUE,VALUE,...")
        axes.append([[f"--{name.removeprefix('--')}", *value.split()] for value in values.split(",")])
    return [check(list(itertools.chain(*choice))) for choice in itertools.product(*axes)]


def listed(path: Path) -> list[list[str]]:
    """Overrides, one choice a line as one would type them; empty lines and those that begin with # are left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    choices = [check(shlex.split(line)) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not choices:
        raise InputError(f"{path}: holds no line of settings")
    return choices


def check(words: list[str]) -> list[str]:
    """`words` if all of them are overrides, in the form that the command line passes on."""
    others, overrides = split_overrides(Settings, words)
    if others:
        raise InputError(f"{others[0]}: is no setting (--SECTION.FIELD VALUE)")
    if "--training.seed" in overrides:
        raise InputError("--training.seed: is set by --seeds")
    return overrides


def check_same(out: Path, record: Mapping[str, Any]) -> None:
    """InputError if `out` holds a sweep of something else."""
    path = out / RECORD
    if not path.is_file():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    for name, value in record.items():
        if before.get(name) != value:
            raise InputError(f"{out}: holds another sweep ({name}: {before.get(name)!r}); choose another --out")


def device_places(options: argparse.Namespace) -> list[str | None]:
    """GPU numbers of each run that may go on at a time, such as ["0,1", "2,3"]; [None] without GPUs or --num-gpus."""
    import torch

    count = options.num_gpus if options.num_gpus is not None else torch.cuda.device_count()
    if not torch.cuda.is_available():
        return [None]
    if count < options.gpus_per_run:
        raise InputError(f"--gpus-per-run {options.gpus_per_run}: there are {count} GPUs")
    numbers = [str(number) for number in range(count)]
    size = options.gpus_per_run
    return [",".join(numbers[start : start + size]) for start in range(0, count - size + 1, size)]


def score(folder: RunFolder, mode: str) -> float | None:
    """The run's complete BPB in this mode, None if it has none yet."""
    if not folder.report.is_file():
        return None
    section = json.loads(folder.report.read_text(encoding="utf-8")).get(SECTION_OF_MODE[mode], {})
    bpb = section.get("bpb")
    return None if bpb is None or section.get("partial", True) else float(bpb)


def results(points: Sequence[Point], mode: str) -> list[dict[str, Any]]:
    """One row a point, best first; points without a finished run at the end."""
    rows = []
    for point in points:
        scores = {seed: score(RunFolder(path), mode) for seed, path in point.folders.items()}
        found = [value for value in scores.values() if value is not None]
        rows.append(
            {
                "settings": point.label,
                "finished": len(found),
                "runs": len(scores),
                "mean_bpb": statistics.fmean(found) if found else None,
                "std_bpb": statistics.stdev(found) if len(found) > 1 else None,
                "folders": [str(path) for path in point.folders.values()],
            }
        )
    return sorted(rows, key=lambda row: (row["mean_bpb"] is None, row["mean_bpb"] or 0.0))


def format_results(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table that a sweep ends in."""
    lines = [f"{'BPB':>10} {'std':>10} {'runs':>6}  settings"]
    for row in rows:
        mean, std = ("-" if row[name] is None else f"{row[name]:.6f}" for name in ("mean_bpb", "std_bpb"))
        lines.append(f"{mean:>10} {std:>10} {row['finished']:>3}/{row['runs']:<2}  {row['settings']}")
    return "\n".join(lines)
