"""`albatross pack`: a run's averaged weights, quantized, with the evaluator's code, in one file under a byte cap."""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from artifact.ledger import Ledger
from launch import code_archive, run_folder
from launch.arguments import CAP_BYTES
from launch.preset import load_file
from launch.settings import differences
from model.errors import InputError


def pack(
    run: Path, out: Path | None = None, *, max_bytes: int = CAP_BYTES, overrides: list[str] | None = None
) -> Ledger:
    """Writes the artifact of a run folder or checkpoint; returns its byte ledger.

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
    try:
        return export(
            weights,
            configuration=configuration,
            quantization=settings.quantization,
            tokenizer_sha256=folder.recorded_data()["tokenizer_sha256"],
            code=code_archive.build(),
            path=path,
            max_bytes=max_bytes,
        )
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # fsync and write name no file


def preview(run: Path, *, max_bytes: int = CAP_BYTES, overrides: list[str] | None = None) -> Ledger:
    """The byte ledger that `pack` would come to, measured against `max_bytes` without refusing; keeps no file.

    Raises what `pack` raises, but for a file over the cap.
    """
    with tempfile.TemporaryDirectory() as folder:
        ledger = pack(run, Path(folder) / "preview.albatross", max_bytes=sys.maxsize, overrides=overrides)
    return replace(ledger, max_bytes=max_bytes)
