"""`albatross pack`: a run's averaged weights, quantized, with the evaluator's code, in one file under a byte cap."""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from artifact.ledger import Ledger
from launch import code_archive, run_folder
from launch.arguments import CAP_BYTES
from launch.calibration import run_calibration
from launch.preset import load_file
from launch.settings import differences
from model.errors import InputError


def ignore(message: str) -> None:
    """A log that keeps nothing."""


def pack(
    run: Path,
    out: Path | None = None,
    *,
    max_bytes: int = CAP_BYTES,
    overrides: list[str] | None = None,
    data: Path | None = None,
    fit: bool = False,
    log: Callable[[str], None] = ignore,
) -> Ledger:
    """Writes the artifact of a run folder or checkpoint; returns its byte ledger.

    Args:
        data: folder whose training tokens calibrate; None: the run's own.
        fit: choose the quantizer's rate so that the file lands just under `max_bytes`.
        log: is told what calibration and fitting do.

    Raises:
        InputError: no run or checkpoint there, weights that are not finite, or a wrong override.
        ArtifactError: the file would be larger than `max_bytes`; the message holds the byte table, nothing is written.
        OSError: the file cannot be written, for instance because the disk is full; what was there before is intact.
    """
    from trainer.checkpoint import load_weights
    from trainer.export import pack as export

    folder = run_folder.find(run)
    preset = load_file(folder.config)
    settings = preset.with_overrides(overrides or []).settings
    configuration = {"preset": preset.id}
    for section in ("model", "eval"):
        if changed := differences(getattr(settings, section)):
            configuration[section] = changed
    weights = load_weights(run)
    if bad := next((name for name, values in weights.items() if not np.isfinite(values).all()), None):
        raise InputError(f"{run}: {bad} holds a value that is not finite (did the run diverge?)")
    path = out or folder.artifact
    calibration = run_calibration(folder, settings, weights, data, log)
    try:
        return export(
            weights,
            configuration=configuration,
            quantization=settings.quantization,
            tokenizer_sha256=folder.recorded_data()["tokenizer_sha256"],
            code=code_archive.build(),
            path=path,
            max_bytes=max_bytes,
            calibration=calibration,
            fit=fit,
            log=log,
        )
    except ValueError as error:  # a weight or a Hessian that cannot be quantized
        raise InputError(f"{run}: {error}") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # fsync and write name no file


def preview(run: Path, *, max_bytes: int = CAP_BYTES, fit: bool = False, **choices: Any) -> Ledger:
    """The byte ledger that `pack` would come to, measured against `max_bytes` without refusing; keeps no file.

    Takes and raises what `pack` does, but for the error of a file over the cap (with `fit` there is that, too).
    """
    with tempfile.TemporaryDirectory() as folder:
        cap = max_bytes if fit else sys.maxsize
        ledger = pack(run, Path(folder) / "preview.albatross", max_bytes=cap, fit=fit, **choices)
    return replace(ledger, max_bytes=max_bytes)
