"""The challenge's folder: what goes in, and what is refused because its artifact does not bear it out."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from launch.cli import main
from launch.submission import validate
from model.errors import InputError

ABOUT = ["--author", "A. Bird", "--github-id", "a-bird", "--name", "Albatross", "--blurb", "Three under par."]


@pytest.fixture(scope="module")
def packed(trained_run, prepared_data, tmp_path_factory) -> Path:
    """A run that was packed and scored."""
    folder = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("packed") / "run"))
    artifact, report = folder / "artifact.albatross", folder / "report.json"
    trained = {"bpb": 2.0, "train_seconds": 12.5, "num_steps": 3}
    report.write_text(json.dumps({"schema_version": 1, "pre_quantization": trained}))
    (folder / "metrics.jsonl").write_text('{"step": 3, "train_loss": 5.0, "tokens": 300, "train_time_ms": 9.0}\n')
    (folder / "log.txt").write_text("step:3/3 train_loss:5.0\n")
    assert main(["pack", str(folder)]) == 0
    assert main(["evaluate", str(artifact), "--data", str(prepared_data), "--report", str(report)]) == 0
    return folder


@pytest.fixture
def first(packed, tmp_path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "first"))


def with_seed(run: Path, folder: Path, seed: int) -> Path:
    shutil.copytree(run, folder)
    config = (run / "config.toml").read_text()
    (folder / "config.toml").write_text(re.sub(r"^seed = 1337$", f"seed = {seed}", config, count=1, flags=re.M))
    return folder


def edit(run: Path, **changes: object) -> None:
    report = json.loads((run / "report.json").read_text())
    report["post_quantization"].update(changes)
    (run / "report.json").write_text(json.dumps(report))


def test_two_seeds_become_one_folder(first, prepared_data, tmp_path):
    second = with_seed(first, tmp_path / "second", 7)
    edit(second, bpb=json.loads((first / "report.json").read_text())["post_quantization"]["bpb"] + 5e-5)
    out = tmp_path / "out" / "mine"
    assert main(["submission", str(first), str(second), "--out", str(out), *ABOUT]) == 0
    fields = json.loads((out / "submission.json").read_text())
    scores = [json.loads((run / "report.json").read_text())["post_quantization"]["bpb"] for run in (first, second)]
    assert fields["val_bpb"] == pytest.approx(sum(scores) / 2)
    assert fields["val_bpb_std"] == pytest.approx((scores[1] - scores[0]) / 2**0.5)
    assert fields["bytes_total"] == (first / "artifact.albatross").stat().st_size
    assert fields["bytes_model"] + fields["bytes_code"] == fields["bytes_total"]
    assert (fields["track"], fields["seeds"]) == ("non_record_16mb", [1337, 7])
    assert fields["seed_results"]["7"]["reproduced_bpb"] == pytest.approx(scores[0], abs=1e-9)
    assert {path.name for path in out.iterdir()} == {
        "README.md", "submission.json", "code",
        *(f"seed{seed}.{kind}" for seed in (1337, 7) for kind in ("albatross", "log", "toml", "json")),
    }  # fmt: skip
    assert f"**val_bpb {fields['val_bpb']:.6f}**" in (out / "README.md").read_text()
    # The code in the folder scores the artifact in the folder, without this checkout.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "eval", str(out / "seed7.albatross"), "--data", str(prepared_data)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(out / "code")},
        capture_output=True,
        text=True,
    )
    assert f"val_bpb:{scores[0]:.6f}" in done.stdout, done.stderr
    assert [path.name for path in out.parent.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"artifact_sha256": "0" * 64}, ["post_quantization.artifact_sha256", "that of the file is"]),
        ({"artifact_bytes": 5}, ["post_quantization.artifact_bytes is 5"]),
        ({"code_bytes": 1}, ["post_quantization.code_bytes is 1"]),
        ({"legal": False}, ["is not legal"]),
        ({"partial": True}, ["no complete evaluation in common"]),
    ],
)
def test_a_report_of_another_file_is_refused(refused, first, tmp_path, changes, words):
    edit(first, **changes)
    refused(["submission", first, "--out", tmp_path / "out", *ABOUT], *words)
    assert not (tmp_path / "out").exists()


def test_a_score_that_the_artifact_does_not_reproduce_is_refused(refused, first, tmp_path):
    bpb = json.loads((first / "report.json").read_text())["post_quantization"]["bpb"]
    edit(first, bpb=bpb - 0.001)
    refused(["submission", first, "--out", tmp_path / "out", *ABOUT], f"but the artifact scores {bpb:.6f}")
    assert not (tmp_path / "out").exists()


def test_runs_that_do_not_belong_together_are_refused(refused, first, tmp_path):
    same = Path(shutil.copytree(first, tmp_path / "same"))
    refused(["submission", first, same, "--out", tmp_path / "out", *ABOUT], "the same training.seed")
    other = with_seed(first, tmp_path / "other", 7)
    config = (other / "config.toml").read_text()
    (other / "config.toml").write_text(re.sub(r"^max_steps = \d+$", "max_steps = 3", config, flags=re.M))
    refused(["submission", first, other, "--out", tmp_path / "out", *ABOUT], "differ in more than their seed")
    refused(["submission", first, "--out", tmp_path, *ABOUT], "exists already")
    (first / "artifact.albatross").unlink()
    refused(["submission", first, "--out", tmp_path / "out", *ABOUT], "holds no artifact.albatross")


def test_fields_are_held_to_the_schema():
    schema = json.loads((Path("launch") / "submission.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    with pytest.raises(InputError, match="is a required property"):
        validate({"author": "A"})
