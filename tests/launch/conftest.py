"""A small data folder, and a run folder whose checkpoint holds a random network, for tests of the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from launch.arguments import Parser, add_run_options
from launch.cli import main
from launch.data.prepare import prepare
from launch.run_folder import RunFolder
from launch.train import make_plan
from model.network import gpt
from model.network.initialize import initialize
from trainer import checkpoint

VOCAB_SIZE = 300
# Overrides that make preset `tiny` fit the data folder below, and a test's patience.
SMALL_MODEL = {"vocab-size": VOCAB_SIZE, "num-layers": 2, "model-dim": 32, "num-heads": 2, "num-kv-heads": 1}
SMALL = [word for name, value in SMALL_MODEL.items() for word in (f"--model.{name}", str(value))]


@pytest.fixture(scope="session")
def prepared_data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("text")
    words = ["wing", "sea", "salt", "gull", "egg", "wind", "rock", "wave", "sky", "fish"]
    generator = np.random.default_rng(0)
    documents = [" ".join(generator.choice(words, int(n))) + ".\n" for n in generator.integers(20, 400, 60)]
    lines = [json.dumps({"text": text}) for text in documents]
    (root / "train.jsonl").write_text("\n".join(lines[10:]) + "\n")
    (root / "val.jsonl").write_text("\n".join(lines[:10]) + "\n")
    tokenizer = f"train:{VOCAB_SIZE}"
    prepare(root / "train.jsonl", tokenizer, root / "data", val_input=root / "val.jsonl", num_workers=1, quiet=True)
    return root / "data"


@pytest.fixture
def data(prepared_data, tmp_path) -> Path:
    """A copy of the data folder that a test may damage."""
    return Path(shutil.copytree(prepared_data, tmp_path / "data"))


@pytest.fixture(scope="session")
def trained_run(prepared_data, tmp_path_factory) -> Path:
    """A run folder as training leaves it, but for its weights: they are random."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    parser = Parser()
    add_run_options(parser)
    options = parser.parse_args(["tiny", "--data", str(prepared_data), "--out", str(folder.path)])
    plan = make_plan(options, SMALL)
    folder.start(plan.preset, plan.data_facts, num_processes=1)
    model = gpt.GPT(plan.preset.settings.model)
    initialize(model, seed=0)
    generator = torch.Generator().manual_seed(0)
    weights = {n: p.detach() + 0.05 * torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
    saved = checkpoint.Checkpoint(weights, None, {}, [torch.get_rng_state()], {"step": 3})
    checkpoint.save(folder.checkpoints, 3, saved, keep=1)
    return folder.path


@pytest.fixture
def run(trained_run, tmp_path) -> Path:
    """A copy of the run folder that a test may change."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


@pytest.fixture
def refused(capsys):
    """Runs the command line and asserts the shape of every refusal; returns its line.

    Exit code 2, and on standard error exactly one line `albatross: error: ...` that holds all of `words`.
    """

    def refuse(arguments: list[object], *words: str) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        marked = [line for line in captured.err.splitlines() if line.startswith("albatross: error: ")]
        assert code == 2
        assert len(marked) == 1
        assert "Traceback" not in captured.err + captured.out
        for word in words:
            assert word in marked[0]
        return marked[0]

    return refuse
