"""`albatross pack --fit` and calibration from the command line."""

from pathlib import Path

import pytest

from launch.cli import main

QUANTIZE = [
    *("--quantization.small-tensor-max-elements", "64"),
    *("--quantization.method", "gptq"),
    *("--quantization.clip-rule", "deviations"),
    *("--quantization.calibration.source", "training"),
    *("--quantization.calibration.num-batches", "1"),
    *("--quantization.calibration.batch-tokens", "256"),
    *("--quantization.calibration.sequence-tokens", "64"),
]


def test_fit_lands_just_under_the_cap(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    artifact = run / "artifact.albatross"
    assert main(["pack", str(run), *QUANTIZE]) == 0
    cap = artifact.stat().st_size - 5000
    assert main(["pack", str(run), *QUANTIZE, "--fit", "--max-bytes", str(cap)]) == 0
    assert cap - 4096 <= artifact.stat().st_size <= cap
    text = capsys.readouterr().out
    assert "calibration: Hessians of" in text
    assert "fit: steps x" in text


def test_missing_calibration_data_is_one_clear_line(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    assert main(["pack", str(run), *QUANTIZE, "--data", str(run / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nowhere" in error
    assert "--data" in error
    assert not (run / "artifact.albatross").exists()


def test_calibration_rows_longer_than_the_text(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    long = [
        "--quantization.calibration.batch-tokens",
        "4000000",
        "--quantization.calibration.sequence-tokens",
        "4000000",
    ]
    assert main(["pack", str(run), *QUANTIZE, *long]) == 2
    assert "fewer than one row of 4000000" in capsys.readouterr().err
