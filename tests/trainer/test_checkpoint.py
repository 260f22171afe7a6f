"""Checkpoints: whole or not there; damage is detected and named; nothing in them is executed."""

import json
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from model.errors import InputError
from trainer import checkpoint as checkpoints
from trainer.checkpoint import Checkpoint


def example(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(8, 4, generator=generator), "b": torch.randn(3, generator=generator)}
    return Checkpoint(
        weights=weights,
        averages={name: tensor / 2 for name, tensor in weights.items()},
        optimizer={"momentum/a.weight": torch.randn(8, 4, generator=generator).bfloat16()},
        random=[torch.get_rng_state(), torch.get_rng_state().flip(0)],
        state={"step": step, "elapsed_seconds": 1.5, "clock": 0.25, "optimizer_steps": step},
    )


def test_round_trip(tmp_path: Path) -> None:
    saved = example(7)
    path = checkpoints.save(tmp_path, 7, saved, keep=2)
    loaded = checkpoints.load(path)
    assert loaded.state == {"format": 1, **saved.state}
    assert saved.averages is not None
    assert loaded.averages is not None
    for mine, theirs in (
        (saved.weights, loaded.weights),
        (saved.averages, loaded.averages),
        (saved.optimizer, loaded.optimizer),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)
    assert all(torch.equal(a, b) for a, b in zip(saved.random, loaded.random, strict=True))
    averaged = checkpoints.load_weights(path)
    assert (averaged["b"] == saved.averages["b"].numpy()).all()


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        checkpoints.save(tmp_path, step, example(step), keep=2)
    assert [p.name for p in checkpoints.complete(tmp_path)] == ["step_000010", "step_000003"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000003", "step_000010"]


@pytest.mark.parametrize("damaged", ["weights.pt", "averages.pt", "optimizer.pt", "random.pt", "state.json"])
@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_damage_is_named_and_the_previous_step_taken(tmp_path: Path, damaged: str, how: str) -> None:
    checkpoints.save(tmp_path, 1, example(1), keep=2)
    newest = checkpoints.save(tmp_path, 2, example(2), keep=2)
    file = newest / damaged
    data = bytearray(file.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif how == "truncate":
        file.write_bytes(data[:-1])
    else:
        file.unlink()
    with pytest.raises(InputError, match=damaged):
        checkpoints.load(newest)
    path, skipped = checkpoints.newest_valid(tmp_path)
    assert path is not None
    assert path.name == "step_000001"
    assert len(skipped) == 1
    assert damaged in skipped[0]


def test_a_folder_without_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 1, example(1), keep=2)
    (path / "manifest.json").unlink()
    assert checkpoints.newest_valid(tmp_path) == (None, [])
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoints.load_weights(tmp_path.parent)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    previous = checkpoints.save(tmp_path, 1, example(1), keep=1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # writes past it fail as on a full disk
        with pytest.raises(OSError):
            checkpoints.save(tmp_path, 2, example(2), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == [previous.name]
    assert checkpoints.load(previous).state["step"] == 1


def test_loading_executes_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    path = checkpoints.save(tmp_path, 1, example(1), keep=2)
    torch.save({"a": Hostile()}, path / "weights.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    data = (path / "weights.pt").read_bytes()
    manifest["weights.pt"] = [len(data), checkpoints.hashlib.sha256(data).hexdigest()]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match=r"[Uu]nsupported|weights_only|WeightsUnpickler"):
        checkpoints.load(path)
    assert not (tmp_path / "executed").exists()
