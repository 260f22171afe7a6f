"""Golden loss curves: a few presets at toy size, one CPU thread, through the whole trainer.

    python benchmarks/golden_curves.py record                      # writes tests/trainer/golden_curves.json
    python benchmarks/golden_curves.py compare A B                 # two run folders, or two git revisions

Curves are bit-equal for the recorded torch version and CPU capability, and within 1e-3 nats elsewhere. For
revisions the curves of these presets are computed in checkouts of both (presets that one of them lacks are left out).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "trainer" / "golden_curves.json"
NUM_STEPS = 12
TOLERANCE_NATS = 1e-3

SMALL = {
    "model.vocab-size": 64,
    "model.model-dim": 32,
    "model.num-heads": 4,
    "model.num-kv-heads": 2,
    "training.sequence-tokens": 32,
    "training.batch-tokens": 256,
    "training.micro-batch-tokens": 128,
    "training.max-steps": NUM_STEPS,
    "training.budget-seconds": 0,
    "training.reserve-seconds": 0,
    "training.warmdown-steps": 0,
    "training.warmdown-fraction": 0.6,
    "training.validate-every-steps": 0,
    "training.checkpoint-every-steps": 0,
}
PACKED = {"training.packed-row-tokens": 128}
CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("rank42", {"training.average-horizon": 0.2}),
    "best": ("rank01", {"model.rope-dims": 4, **PACKED}),
    "untied recurrence": ("rank21", {"model.rope-dims": 4, "training.recurrence-start-steps": 5}),
    "weight averaging": ("rank29", {"training.swa-every-steps": 2}),
    "int6 in training": ("rank30", {}),
    "ternary": (
        "ternary",
        {
            "model.embedding-dim": 16,
            "training.qat.attention.group-size": 32,
            "training.qat.mlp.group-size": 32,
        },
    ),
}
"""Preset and what is changed of it, by name of the curve."""


def compute(names: list[str], tree: Path = ROOT) -> dict[str, Any]:
    """Curves of this version or of another checkout, in a process of one thread."""
    command = [sys.executable, str(Path(__file__).resolve()), "curves", str(tree), *names]
    environment = {
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        # As a launcher sets them: one rank that shares its address with nobody.
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree}: the curves could not be computed\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def conditions() -> dict[str, str]:
    """What bit-equality depends on."""
    return {"torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}


def _curves(names: list[str]) -> dict[str, Any]:
    """Train; sys.path leads to the version that is to be measured."""
    from eval.ledger import ByteLedger
    from launch.preset import load
    from model.text.shards import DataFolder
    from trainer.ranks import join
    from trainer.run import train

    torch.set_num_threads(1)
    curves, ranks = {}, join()
    with tempfile.TemporaryDirectory() as folder:
        data_folder = _write_data(Path(folder) / "data")
        for name in names:
            preset, changes = CURVES[name]
            options = [f"--{key}={value}" for key, value in {**SMALL, **changes}.items()]
            settings = load(preset).with_overrides(options).settings
            data = DataFolder.open(data_folder)
            assert data.val_token_bytes is not None
            ledger = ByteLedger(data.val_token_bytes, proved=False, lossless=None)
            run_dir = Path(folder) / name
            run_dir.mkdir()
            result = train(settings.model, settings.training, data, ledger, run_dir, ranks)
            rows = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
            losses = [row["train_loss"] for row in rows if "train_loss" in row]
            curves[name] = {"train_loss": losses, "val_bpb": result.validation.bpb}
    return {"conditions": conditions(), "curves": curves}


def _write_data(folder: Path) -> Path:
    """Documents of a noisy cycle through the vocabulary; no text, so that nothing changes with Python's version."""
    from model.text.shards import write_shard

    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, length in (("train", 20_000), ("val", 2_000)):
        tokens = 2 + (np.arange(length) * 7 + rng.integers(0, 3, length)) % 62
        tokens[:: 100 if split == "train" else 50] = 1
        write_shard(folder / f"cycle_{split}_000000.bin", tokens.astype(np.uint16))
        if split == "val":
            write_shard(folder / "cycle_val_bytes_000000.bin", np.where(tokens == 1, 0, 3).astype(np.uint16))
    return folder


def _of_revision(revision: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True)
        if archive.returncode:
            raise SystemExit(f"{revision}: neither a run folder nor a git revision")
        tree.mkdir()
        subprocess.run(["tar", "x", "-C", str(tree)], input=archive.stdout, check=True)
        present = [n for n, (preset, _) in CURVES.items() if (tree / f"launch/presets/{preset}.toml").is_file()]
        return compute(present, tree)


def _compare(first: str, second: str) -> str:
    sys.path.insert(0, str(ROOT))
    from trainer.curves import difference, format_differences, read_curve

    if all((Path(name) / "metrics.jsonl").is_file() for name in (first, second)):
        return format_differences({"train_loss": difference(read_curve(Path(first)), read_curve(Path(second)))})
    curves = [_of_revision(name)["curves"] for name in (first, second)]
    as_curves = [{n: dict(enumerate(c["train_loss"], 1)) for n, c in side.items()} for side in curves]
    both = [name for name in CURVES if all(name in side for side in as_curves)]
    return format_differences({name: difference(as_curves[0][name], as_curves[1][name]) for name in both})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("record", help="write the golden curves of this version")
    compare = actions.add_parser("compare", help="two run folders or two git revisions")
    compare.add_argument("first")
    compare.add_argument("second")
    curves = actions.add_parser("curves", help="compute curves with the code in TREE, as one line of JSON")
    curves.add_argument("tree")
    curves.add_argument("names", nargs="+")
    options = parser.parse_args()
    if options.action == "record":
        GOLDEN.write_text(json.dumps(compute(list(CURVES)), indent=1) + "\n")
    elif options.action == "compare":
        print(_compare(options.first, options.second))
    else:
        sys.path.insert(0, options.tree)
        print(json.dumps(_curves(options.names)))


if __name__ == "__main__":
    main()
